"""What the compiler says: rows of the five tables, and the difference between two states of them.

Rows are logical. They name interfaces, not indexes, and gateways by underlay address, not by MAC:
the backend resolves both on its machine. `vni` in a key is the number of the *forwarding domain*:
a VPC's VNI, or a number above 24 bits for a VPC that may not use its VNI. Such a number cannot
stand in a tunnel header, so nothing that arrives from outside can match its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any, Generic, NamedTuple, Protocol, TypeVar


class Ordered(Protocol):
    """What can be a key: it hashes and it sorts."""

    def __lt__(self, other: Any, /) -> bool: ...


K = TypeVar("K", bound=Ordered)
V = TypeVar("V")

VNI_MAX = 0xFFFFFF
"""The greatest VNI that a Geneve header can carry (RFC 8926, section 3.4)."""

GROUP_GATEWAYS_MAX = 16
"""Gateways in one next-hop group; a site with more is served by the lowest gateway ids."""

NO_GROUP = 0
"""Not a group: the address is known and packets for it are dropped here."""


class GatewayRow(NamedTuple):
    """A peer gateway, keyed by its u32 id."""

    node: bytes
    site: str
    underlay: int  # IPv4, host order


class GroupRow(NamedTuple):
    """Gateways that are equally good for a destination, in ascending order; keyed by u32 id."""

    name: str  # "site/NAME" or "gateway/HEX", for people
    gateways: tuple[int, ...]


class PortRow(NamedTuple):
    """What may come out of a local interface, keyed by its name."""

    vni: int
    ip: int
    mac: bytes
    blocked: bool  # its claim to the address lost: nothing it sends is carried


class EndpointKey(NamedTuple):
    vni: int
    ip: int


class EndpointRow(NamedTuple):
    """Where one address is: behind `ifname` here, else behind the gateways of `group`."""

    group: int
    ifname: str
    mac: bytes


class SubnetKey(NamedTuple):
    vni: int
    network: int
    prefix_bits: int


class SubnetRow(NamedTuple):
    """Where addresses go that nobody claims; the row's presence alone lets ARP be answered."""

    group: int
    gateway_ip: int


@dataclass(frozen=True, slots=True)
class Tables:
    """All rows. Compare with `==`."""

    gateways: Mapping[int, GatewayRow] = field(default_factory=dict)
    groups: Mapping[int, GroupRow] = field(default_factory=dict)
    ports: Mapping[str, PortRow] = field(default_factory=dict)
    endpoints: Mapping[EndpointKey, EndpointRow] = field(default_factory=dict)
    subnets: Mapping[SubnetKey, SubnetRow] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TableDelta(Generic[K, V]):
    """Rows to write and keys to remove, disjoint, each in ascending key order."""

    put: Mapping[K, V] = field(default_factory=dict)
    remove: tuple[K, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.put or self.remove)


@dataclass(frozen=True, slots=True)
class FibDelta:
    """What changed since the last delta. Falsy when nothing did."""

    gateways: TableDelta[int, GatewayRow] = field(default_factory=TableDelta)
    groups: TableDelta[int, GroupRow] = field(default_factory=TableDelta)
    ports: TableDelta[str, PortRow] = field(default_factory=TableDelta)
    endpoints: TableDelta[EndpointKey, EndpointRow] = field(default_factory=TableDelta)
    subnets: TableDelta[SubnetKey, SubnetRow] = field(default_factory=TableDelta)

    def __bool__(self) -> bool:
        return any((self.gateways, self.groups, self.ports, self.endpoints, self.subnets))


def apply_delta(tables: Tables, delta: FibDelta) -> Tables:
    """The tables after the delta; the argument is left alone."""
    return Tables(
        gateways=_patched(tables.gateways, delta.gateways),
        groups=_patched(tables.groups, delta.groups),
        ports=_patched(tables.ports, delta.ports),
        endpoints=_patched(tables.endpoints, delta.endpoints),
        subnets=_patched(tables.subnets, delta.subnets),
    )


def _patched(rows: Mapping[K, V], delta: TableDelta[K, V]) -> dict[K, V]:
    patched = {**rows, **delta.put}
    for key in delta.remove:
        patched.pop(key, None)
    return patched


def ip_number(text: str) -> int:
    """An IPv4 address as a number in host order; ValueError if it is not one."""
    return int(IPv4Address(text))


def ip_text(number: int) -> str:
    return str(IPv4Address(number))


def mac_bytes(text: str) -> bytes:
    """Six bytes from `aa:bb:cc:dd:ee:ff`; ValueError for anything else."""
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6 or len(text) != 17:
        raise ValueError(f"not a MAC address: {text}")
    return mac


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


def endpoint_name(key: EndpointKey) -> str:
    """How reports name an endpoint row: `VNI/IP`."""
    return f"{key.vni}/{ip_text(key.ip)}"


def subnet_name(key: SubnetKey) -> str:
    """How reports name a subnet row: `VNI/NETWORK/BITS`."""
    return f"{key.vni}/{ip_text(key.network)}/{key.prefix_bits}"
