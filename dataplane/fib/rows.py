"""What the compiler says: rows of the six tables, and the difference between two states of them.

Endpoint rows are many, and packed as the kernel's map holds them; the rest are tuples.

Rows are logical. They name interfaces, not indexes, and gateways by underlay address, not by MAC:
the backend resolves both on its machine. `vni` in a key is the number of the *forwarding domain*:
a VPC's VNI, or a number above 24 bits for a VPC that may not use its VNI. Such a number cannot
stand in a tunnel header, so nothing that arrives from outside can match its rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address, ip_network
from struct import Struct
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar


class Ordered(Protocol):
    """What can be a key: it hashes and it sorts."""

    def __lt__(self, other: Any, /) -> bool: ...


K = TypeVar("K", bound=Ordered)
V = TypeVar("V")

VNI_MAX: Final = 0xFFFFFF
"""The greatest VNI that a Geneve header can carry (RFC 8926, section 3.4)."""

GROUP_GATEWAYS_MAX: Final = 16
"""Gateways in one next-hop group; a site with more is served by the lowest gateway ids."""

NO_GROUP: Final = 0
"""Not a group: the address is known and packets for it are dropped here."""

MAC_BYTES: Final = 6

MOVED_MAX: Final = 1 << 14
"""Endpoints in one delta that are said to have moved, and remembered by a backend: what is beyond
that has no grace (see `xdp/bpf/source.h`)."""
MOVED_GRACE_NS: Final = 10_000_000_000
"""For so long the former site of an endpoint may send with its address: that is on its way."""


class GatewayRow(NamedTuple):
    """A peer gateway, keyed by its u32 id."""

    node: bytes
    site: str
    underlay: int  # 128 bits
    group: int  # that leads to it alone
    site_group: int  # the number of its site's group, also where that has no row
    own_site: bool  # it is of this machine's site
    vxlan: bool = False  # instead of Geneve, both ways


class GroupRow(NamedTuple):
    """Gateways that are equally good for a destination, in ascending order; keyed by u32 id."""

    name: str  # "site/NAME" or "gateway/HEX", for people
    gateways: tuple[int, ...]
    site_group: int  # of the site that it leads to


ANY_SITE: Final = 0
"""Stands for a site's group in the key of what all sites are entitled to."""


class EntitledKey(NamedTuple):
    """A VPC that a site may send for through tunnels."""

    vni: int
    site_group: int  # ANY_SITE: every site may


class EntitledRow(NamedTuple):
    site: str  # for people; empty: all


class PortRow(NamedTuple):
    """What may come out of a local interface, keyed by its name."""

    vni: int
    ip: int  # 128 bits
    mac: bytes
    blocked: bool  # its claim to the address lost: nothing it sends is carried


PackedKey: TypeAlias = bytes
"""An endpoint's key as it is in the map: domain (u32, host order), address (16 bytes)."""

Addr: TypeAlias = bytes
"""An address: 4 bytes, or 16 of which the first 12 are not `MAPPED`."""

PackedRow: TypeAlias = bytes
"""An endpoint's row as the map's value begins: group (u32), 4 bytes for the interface index, MAC,
2 bytes of padding, 16 in all. The name of the interface here follows, if there is one."""

MAPPED: Final = bytes(10) + b"\xff\xff"
"""How IPv4 addresses begin among those of 16 bytes (RFC 4291, section 2.5.5.2)."""
ADDRESS_BITS: Final = 128
_MAPPED_BITS: Final = 96
_MAPPED_NUMBER: Final = 0xFFFF
IPV4_BYTES: Final = 4
DOMAIN_BYTES: Final = 4
HEAD_BYTES: Final = 8
"""Of a packed row: what comes before the MAC."""
PAD: Final = bytes(2)
ROW_BYTES: Final = 16
"""Of a packed row that leads to no interface here."""
_HEAD: Final = Struct("=II")
_U32: Final = Struct("=I")


class EndpointKey(NamedTuple):
    vni: int
    ip: int  # 128 bits

    def pack(self) -> PackedKey:
        return packed_domain(self.vni) + address_bytes(self.ip)

    @classmethod
    def unpack(cls, raw: PackedKey) -> EndpointKey:
        (vni,) = _U32.unpack_from(raw)
        return cls(vni, int.from_bytes(raw[DOMAIN_BYTES:], "big"))


class EndpointRow(NamedTuple):
    """Where one address is: behind `ifname` here, else behind the gateways of `group`."""

    group: int
    ifname: str
    mac: bytes

    def pack(self) -> PackedRow:
        return packed_head(self.group) + self.mac + PAD + self.ifname.encode()

    @classmethod
    def unpack(cls, raw: PackedRow) -> EndpointRow:
        mac = raw[HEAD_BYTES : HEAD_BYTES + MAC_BYTES]
        return cls(group_of(raw), ifname_of(raw), mac)


def packed_domain(domain: int) -> bytes:
    """How the packed keys of a forwarding domain begin."""
    return _U32.pack(domain)


def packed_head(group: int) -> bytes:
    """How the packed rows of a group begin."""
    return _HEAD.pack(group, 0)


def group_of(row: PackedRow) -> int:
    """The group that a packed row leads to."""
    (group,) = _U32.unpack_from(row)
    return int(group)


def ifname_of(row: PackedRow) -> str:
    """The interface that a packed row leads to; empty: none here."""
    return row[ROW_BYTES:].decode()


class SubnetKey(NamedTuple):
    vni: int
    network: int  # 128 bits
    prefix_bits: int  # of these: 96 more than people write for IPv4


class SubnetRow(NamedTuple):
    """Where addresses go that nobody claims; the row's presence alone lets ARP be answered."""

    group: int
    gateway_ip: int  # 128 bits


@dataclass(frozen=True, slots=True)
class Tables:
    """All rows. Compare with `==`."""

    gateways: Mapping[int, GatewayRow] = field(default_factory=dict)
    groups: Mapping[int, GroupRow] = field(default_factory=dict)
    entitled: Mapping[EntitledKey, EntitledRow] = field(default_factory=dict)
    ports: Mapping[str, PortRow] = field(default_factory=dict)
    endpoints: Mapping[PackedKey, PackedRow] = field(default_factory=dict)
    subnets: Mapping[SubnetKey, SubnetRow] = field(default_factory=dict)


class TableDelta(NamedTuple, Generic[K, V]):
    """Rows to write and keys to remove, disjoint, each in ascending key order."""

    put: Mapping[K, V]
    remove: tuple[K, ...]

    @property
    def changes(self) -> bool:
        """Whether there is anything in it. A compiled module asks no tuple for its `__bool__`."""
        return bool(self.put or self.remove)


NO_DELTA: Final[TableDelta[Any, Any]] = TableDelta({}, ())
"""Most tables do not change most of the time."""


@dataclass(frozen=True, slots=True)
class FibDelta:
    """What changed since the last delta. Falsy when nothing did."""

    gateways: TableDelta[int, GatewayRow] = NO_DELTA
    groups: TableDelta[int, GroupRow] = NO_DELTA
    entitled: TableDelta[EntitledKey, EntitledRow] = NO_DELTA
    ports: TableDelta[str, PortRow] = NO_DELTA
    endpoints: TableDelta[PackedKey, PackedRow] = NO_DELTA
    subnets: TableDelta[SubnetKey, SubnetRow] = NO_DELTA
    moved: Mapping[PackedKey, int] = field(default_factory=dict)
    """Of the endpoints in `endpoints.put` that were behind another group: which."""

    @property
    def put(self) -> Tables:
        """The rows to write, in all tables."""
        return Tables(
            gateways=self.gateways.put,
            groups=self.groups.put,
            entitled=self.entitled.put,
            ports=self.ports.put,
            endpoints=self.endpoints.put,
            subnets=self.subnets.put,
        )

    def __bool__(self) -> bool:
        return (
            self.gateways.changes
            or self.groups.changes
            or self.entitled.changes
            or self.ports.changes
            or self.endpoints.changes
            or self.subnets.changes
        )


def apply_delta(tables: Tables, delta: FibDelta) -> Tables:
    """The tables after the delta; the argument is left alone."""
    return Tables(
        gateways=_patched(tables.gateways, delta.gateways),
        groups=_patched(tables.groups, delta.groups),
        entitled=_patched(tables.entitled, delta.entitled),
        ports=_patched(tables.ports, delta.ports),
        endpoints=_patched(tables.endpoints, delta.endpoints),
        subnets=_patched(tables.subnets, delta.subnets),
    )


def _patched(rows: Mapping[K, V], delta: TableDelta[K, V]) -> dict[K, V]:
    patched = {**rows, **delta.put}
    for key in delta.remove:
        patched.pop(key, None)
    return patched


@lru_cache(maxsize=4096)
def addr_of(text: str) -> Addr:
    """The bytes of an address; ValueError if it is none, or IPv4 written as IPv6."""
    addr = ip_address(text).packed
    if addr.startswith(MAPPED):
        raise ValueError(f"an IPv4 address written as IPv6: {text}")
    return addr


def addr_text(addr: Addr) -> str:
    return str(ip_address(addr))


def address_of(text: str) -> int:
    """As `addr_of`, as the number that stands for the address in rows."""
    return addr_number(addr_of(text))


def addr_number(addr: Addr) -> int:
    return int.from_bytes(addr if len(addr) != IPV4_BYTES else MAPPED + addr, "big")


def number_addr(number: int) -> Addr:
    raw = address_bytes(number)
    return raw[len(MAPPED) :] if raw.startswith(MAPPED) else raw


def address_text(number: int) -> str:
    return addr_text(number_addr(number))


def address_bytes(number: int) -> bytes:
    """The 16 bytes of an address' number."""
    return number.to_bytes(ADDRESS_BITS // 8, "big")


@lru_cache(maxsize=4096)
def prefix_of(cidr: str) -> tuple[int, int]:
    """Network and prefix length as in rows. ValueError for what is none, or would hold IPv4
    addresses as IPv6."""
    network = ip_network(cidr)
    first, bits = network.network_address.packed, network.prefixlen
    if network.version == 4:
        return addr_number(first), _MAPPED_BITS + bits
    key = SubnetKey(0, int.from_bytes(first, "big"), bits)
    if first.startswith(MAPPED) or in_prefix(addr_number(bytes(IPV4_BYTES)), key):
        raise ValueError(f"an IPv6 network that has IPv4 addresses in it: {cidr}")
    return key.network, bits


def in_prefix(number: int, key: SubnetKey) -> bool:
    """Whether an address lies in a subnet's prefix."""
    return (number ^ key.network) >> (ADDRESS_BITS - key.prefix_bits) == 0


def is_ipv4(number: int) -> bool:
    """Whether an address' number stands for one of IPv4."""
    return number >> (ADDRESS_BITS - _MAPPED_BITS) == _MAPPED_NUMBER


def encapsulation(vxlan: bool) -> str:
    """How people name it."""
    return "vxlan" if vxlan else "geneve"


def mac_bytes(text: str) -> bytes:
    """Six bytes from `aa:bb:cc:dd:ee:ff`; ValueError for anything else."""
    mac = bytes.fromhex(text.replace(":", ""))
    if len(mac) != 6 or len(text) != 17:
        raise ValueError(f"not a MAC address: {text}")
    return mac


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


def entitled_name(key: EntitledKey) -> str:
    """How reports name a row: `VNI/SITE GROUP`."""
    return f"{key.vni}/{key.site_group}"


def endpoint_name(key: EndpointKey) -> str:
    """How reports name an endpoint row: `VNI/IP`."""
    return f"{key.vni}/{address_text(key.ip)}"


def subnet_name(key: SubnetKey) -> str:
    """How reports name a subnet row: `VNI/NETWORK/BITS`."""
    return f"{key.vni}/{cidr_text(key)}"


def cidr_text(key: SubnetKey) -> str:
    """The prefix as people write it."""
    four = len(number_addr(key.network)) == IPV4_BYTES
    return f"{address_text(key.network)}/{key.prefix_bits - _MAPPED_BITS * four}"
