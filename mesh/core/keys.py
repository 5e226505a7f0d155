"""Keys of records: which object a record is about, as bytes. Pure packing, no judgement.

The first byte says the kind; ids are 16 raw bytes, addresses 4 or 16, and nothing is variable but
the address at the end, so a key reads in one way only. Kinds that this version does not know are
kept and passed on by the replica and left alone by the view.

    mesh shard   v VPC                       the VPC's register
                 s VPC subnet                a subnet's register
                 p VPC VPC half              a half of a peering: one register each time it is made
                 x VPC node address          an eviction of the node's claim for the address
                 g node                      a gateway's registration of itself
                 b node VPC                  the VNI that the node has bound to the VPC
                 i node VPC                  the node keeps the VPC's shard
    VPC shard    e address                   an endpoint claim
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, NamedTuple, TypeAlias

from mesh.core.ops import MESH_SHARD, NodeId

VPC: Final = b"v"
SUBNET: Final = b"s"
PEERING: Final = b"p"
EVICTION: Final = b"x"
GATEWAY: Final = b"g"
BINDING: Final = b"b"
INTEREST: Final = b"i"
ENDPOINT: Final = b"e"

MESH_KINDS: Final = VPC + SUBNET + PEERING + EVICTION + GATEWAY + BINDING + INTEREST
ID_BYTES: Final = 16
ADDR_BYTES: Final = (4, 16)

_SHARD: Final = re.compile(r"[0-9a-f]{32}")


class VpcKey(NamedTuple):
    vpc: str


class SubnetKey(NamedTuple):
    vpc: str
    subnet: str


class PeeringKey(NamedTuple):
    """`a`'s side says that `b` may talk to it. Removed for good with its `half` id."""

    a: str
    b: str
    half: str


class EvictionKey(NamedTuple):
    vpc: str
    node: NodeId
    addr: bytes


class GatewayKey(NamedTuple):
    node: NodeId


class BindingKey(NamedTuple):
    node: NodeId
    vpc: str


class InterestKey(NamedTuple):
    node: NodeId
    vpc: str


class EndpointKey(NamedTuple):
    addr: bytes


Key: TypeAlias = (
    VpcKey
    | SubnetKey
    | PeeringKey
    | EvictionKey
    | GatewayKey
    | BindingKey
    | InterestKey
    | EndpointKey
)

LongLived: TypeAlias = VpcKey | SubnetKey | PeeringKey | EvictionKey
"""Keys of what is not deleted by its writer alone: registers and evictions."""


class UnknownKey(Exception):
    """A kind of a newer version."""


class InvalidKey(Exception):
    """A known kind in a form that no version writes."""


def pack(key: Key) -> bytes:
    """The bytes of a key. Ids must be 32 hex digits, addresses 4 or 16 bytes."""
    match key:
        case EndpointKey(addr):
            return ENDPOINT + addr
        case VpcKey(vpc):
            return VPC + bytes.fromhex(vpc)
        case SubnetKey(vpc, subnet):
            return SUBNET + bytes.fromhex(vpc) + bytes.fromhex(subnet)
        case PeeringKey(a, b, half):
            return PEERING + bytes.fromhex(a) + bytes.fromhex(b) + bytes.fromhex(half)
        case EvictionKey(vpc, node, addr):
            return EVICTION + bytes.fromhex(vpc) + node + addr
        case GatewayKey(node):
            return GATEWAY + node
        case BindingKey(node, vpc):
            return BINDING + node + bytes.fromhex(vpc)
        case _:  # an interest
            return INTEREST + key.node + bytes.fromhex(key.vpc)


def unpack(shard: str, key: bytes) -> Key:
    """The key that `key` is in `shard`.

    Raises:
        UnknownKey: not a kind of this version for this sort of shard.
        InvalidKey: a known kind of the wrong length, or a shard that is none.
    """
    kind, body = key[:1], key[1:]
    if shard != MESH_SHARD:
        if not is_vpc_shard(shard):
            raise InvalidKey(f"shard {shard!r}")
        if kind != ENDPOINT:
            raise UnknownKey(kind.hex())
        if len(body) not in ADDR_BYTES:
            raise InvalidKey("address length")
        return EndpointKey(body)
    if not kind or kind not in MESH_KINDS:
        raise UnknownKey(kind.hex())
    return _unpack_mesh(kind, body)


def _unpack_mesh(kind: bytes, body: bytes) -> Key:
    first, second, third = body[:16], body[16:32], body[32:]
    size = len(body)
    if kind == VPC and size == ID_BYTES:
        return VpcKey(first.hex())
    if kind == SUBNET and size == 2 * ID_BYTES:
        return SubnetKey(first.hex(), second.hex())
    if kind == PEERING and size == 3 * ID_BYTES:
        return PeeringKey(first.hex(), second.hex(), third.hex())
    if kind == EVICTION and size - 2 * ID_BYTES in ADDR_BYTES:
        return EvictionKey(first.hex(), second, third)
    if kind == GATEWAY and size == ID_BYTES:
        return GatewayKey(first)
    if kind == BINDING and size == 2 * ID_BYTES:
        return BindingKey(first, second.hex())
    if kind == INTEREST and size == 2 * ID_BYTES:
        return InterestKey(first, second.hex())
    raise InvalidKey("length")


def is_vpc_shard(shard: str) -> bool:
    """Whether `shard` is named as the shard of a VPC is: with 32 hex digits."""
    return _SHARD.fullmatch(shard) is not None


def addr_of(ip: str) -> bytes:
    """4 or 16 bytes of a valid address text. Raises ValueError for most others."""
    parts = ip.split(".")
    if len(parts) == 4 and ":" not in ip:
        return bytes(map(int, parts))  # a seventh of the time that `ipaddress` takes
    return ipaddress.ip_address(ip).packed


def ip_of(addr: bytes) -> str:
    """The canonical text of 4 or 16 bytes."""
    if len(addr) == 4:
        a, b, c, d = addr  # a third of the time that `ipaddress` takes
        return f"{a}.{b}.{c}.{d}"
    return str(ipaddress.IPv6Address(addr))
