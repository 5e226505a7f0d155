"""The map ABI: every struct and map of `bpf/structs.h` and `bpf/maps.h`, as Python packs them.

The loader turns this file into static assertions that are compiled with the programs, so a
difference between the two sides is a compile error. A change of anything here raises `ABI`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dataplane.backend import DEFAULT_CAPACITY, Capacity, Hook
from dataplane.fib.rows import ANY_SITE, GROUP_GATEWAYS_MAX, MOVED_GRACE_NS, MOVED_MAX
from dataplane.reasons import REASONS_MAX, DropReason
from dataplane.xdp.kernel import MAP_NO_PREALLOC, MapType

ABI = 6
"""Part of the pin path. Programs of different ABIs never share a map."""

GATEWAY_MAC = bytes.fromhex("027765667401")  # locally administered: "weft", 1
"""The MAC address that every gateway answers with, so a pod that moves keeps its ARP entry."""

PORT_BLOCKED = 1
GATEWAY_RESOLVED = 1
PEER_OWN_SITE = 1
PEER_VXLAN = 2
GATEWAY_SIX = 2
GATEWAY_VXLAN = 4
OUTER4_BYTES = 36
"""What a tunnel adds to an inner frame inside the outer IP packet: IPv4 20, UDP 8, Geneve or
VXLAN 8."""
OUTER6_BYTES = 56
"""The same over IPv6, whose header has 40."""
SUMMED_AT_ONCE = 512


@dataclass(frozen=True, slots=True)
class Layout:
    """A C struct: fields in order as (name, struct code), without implicit padding."""

    name: str
    fields: tuple[tuple[str, str], ...]

    @property
    def packer(self) -> struct.Struct:
        return struct.Struct("=" + "".join(code for _, code in self.fields))

    @property
    def offsets(self) -> dict[str, int]:
        codes = [code for _, code in self.fields]
        return {
            name: struct.calcsize("=" + "".join(codes[:index]))
            for index, (name, _) in enumerate(self.fields)
        }


@dataclass(frozen=True, slots=True)
class MapSpec:
    name: str
    type: MapType
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int = 0


PLACED = (("id", "I"), ("slot", "I"))
"""How the rows of an array begin that is read by way of an index (`indexed.py`): their key, and the
number that their counters have. What else Python calls such a row's value is what follows."""
PLACED_BYTES = 8
INDEX_PROBES = 2
INDEX_FIRST = 2
"""In a cell, with the place added: even, so that the two places of a slot differ in one byte and no
half of a change can be seen."""
INDEX_CELLS_PER_ROW = 4
"""At least: keys find a cell, others having moved, while half are free (Pagh and Rodler 2001)."""


def placed(value: Layout) -> Layout:
    return Layout(value.name, PLACED + value.fields)


# "16s": an address in network order; "I" and "H": host order.
ENDPOINT_KEY = Layout("endpoint_key", (("vni", "I"), ("ip", "16s")))
ENDPOINT_VALUE = Layout(
    "endpoint_value",
    (("group", "I"), ("ifindex", "I"), ("mac", "6s"), ("pad", "H"), ("generation", "I")),
)
# The prefix tree compares bits from the first byte on, so the VNI is in network order too.
SUBNET_KEY = Layout("subnet_key", (("prefix_bits", "I"), ("vni", "4s"), ("network", "16s")))
SUBNET_VALUE = Layout("subnet_value", (("group", "I"), ("gateway_ip", "16s"), ("generation", "I")))
GROUP_VALUE = Layout(
    "group_value",
    (
        ("count", "I"),
        ("site_group", "I"),
        ("generation", "I"),
        ("gateways", f"{4 * GROUP_GATEWAYS_MAX}s"),
    ),
)
ENTITLED_KEY = Layout("entitled_key", (("vni", "I"), ("site_group", "I")))
ENTITLED_VALUE = Layout("entitled_value", (("generation", "I"),))
MOVED_VALUE = Layout("moved_value", (("at_ns", "Q"), ("group", "I"), ("pad", "I")))
GATEWAY_VALUE = Layout(
    "gateway_value",
    (
        ("outer_src", "16s"),
        ("outer_dst", "16s"),
        ("src_mac", "6s"),
        ("dst_mac", "6s"),
        ("ifindex", "I"),
        ("mtu", "H"),
        ("flags", "H"),
        ("generation", "I"),
    ),
)
PORT_VALUE = Layout(
    "port_value",
    (
        ("vni", "I"),
        ("ip", "16s"),
        ("mac", "6s"),
        ("gateway_mac", "6s"),
        ("mtu", "H"),
        ("flags", "H"),
        ("generation", "I"),
    ),
)
PEER_KEY = Layout("peer_key", (("outer", "16s"),))
PEER_VALUE = Layout(
    "peer_value",
    (
        ("gateway", "I"),
        ("group", "I"),
        ("site_group", "I"),
        ("flags", "I"),
        ("generation", "I"),
    ),
)
CONFIG_VALUE = Layout("config_value", (("underlay", "16s"), ("generation", "I")))
SCRATCH = Layout("scratch", (("bytes", f"{SUMMED_AT_ONCE}s"),))
TRAFFIC = Layout(
    "traffic",
    (
        ("tx_packets", "Q"),
        ("tx_bytes", "Q"),
        ("rx_packets", "Q"),
        ("rx_bytes", "Q"),
        ("drops", "Q"),
    ),
)
DROP_COUNT = Layout(
    "drop_count",
    (
        ("packets", "Q"),
        ("told", "Q"),
        ("window_at_ns", "Q"),
        ("window_events", "I"),
        ("flow", "I"),
    ),
)
DROP_EVENT = Layout(
    "drop_event",
    (
        ("at_ns", "Q"),
        ("packets", "Q"),
        ("reason", "I"),
        ("vni", "I"),
        ("outer", "16s"),
        ("ifindex", "I"),
        ("ethertype", "2s"),
        ("pad", "H"),
        ("src", "16s"),
        ("dst", "16s"),
    ),
)
LAYOUTS = (
    ENDPOINT_KEY,
    ENDPOINT_VALUE,
    SUBNET_KEY,
    SUBNET_VALUE,
    placed(GROUP_VALUE),
    ENTITLED_KEY,
    ENTITLED_VALUE,
    MOVED_VALUE,
    placed(GATEWAY_VALUE),
    placed(PORT_VALUE),
    PEER_KEY,
    PEER_VALUE,
    CONFIG_VALUE,
    SCRATCH,
    TRAFFIC,
    DROP_COUNT,
    DROP_EVENT,
)

U32 = struct.Struct("=I")


def outer_bytes(six: bool) -> int:
    """What a tunnel over IPv4 or IPv6 adds to an inner frame."""
    return OUTER6_BYTES if six else OUTER4_BYTES


VPCS_MAX = 4096  # with subnets or ports on one machine, counted apart; others are only not counted
DROP_EVENTS_BYTES = 1 << 16
"""The ring of drop events: 744 between two looks. A power of two, and whole pages of any size."""
DROP_EVENTS_WINDOW_NS = 100_000_000
DROP_EVENTS_IN_WINDOW = 8


def _indexed(name: str, one: str, value: Layout, rows: int) -> tuple[MapSpec, MapSpec]:
    """A table's rows, each with two places, and its index."""
    cells = 1 << (INDEX_CELLS_PER_ROW * rows - 1).bit_length()
    return (
        MapSpec(name, MapType.ARRAY, 4, PLACED_BYTES + value.packer.size, 2 * rows),
        MapSpec(f"{one}_index", MapType.ARRAY, 4, 4, 1 + cells),
    )


def maps(capacity: Capacity = DEFAULT_CAPACITY) -> dict[str, MapSpec]:
    """Every map by name. Endpoints and subnets take memory as they grow, the others up front."""
    specs = (
        MapSpec("config", MapType.ARRAY, 4, CONFIG_VALUE.packer.size, 1),
        *_indexed("gateways", "gateway", GATEWAY_VALUE, capacity.gateways),
        MapSpec(
            "peers",
            MapType.HASH,
            PEER_KEY.packer.size,
            PEER_VALUE.packer.size,
            capacity.gateways,
        ),
        *_indexed("groups", "group", GROUP_VALUE, capacity.groups),
        MapSpec(
            "entitled",
            MapType.HASH,
            ENTITLED_KEY.packer.size,
            ENTITLED_VALUE.packer.size,
            capacity.entitled,
            MAP_NO_PREALLOC,
        ),
        MapSpec(
            "moved",
            MapType.LRU_HASH,
            ENDPOINT_KEY.packer.size,
            MOVED_VALUE.packer.size,
            MOVED_MAX,
        ),
        *_indexed("ports", "port", PORT_VALUE, capacity.ports),
        MapSpec(
            "endpoints",
            MapType.HASH,
            ENDPOINT_KEY.packer.size,
            ENDPOINT_VALUE.packer.size,
            capacity.endpoints,
            MAP_NO_PREALLOC,
        ),
        MapSpec(
            "subnets",
            MapType.LPM_TRIE,
            SUBNET_KEY.packer.size,
            SUBNET_VALUE.packer.size,
            capacity.subnets,
            MAP_NO_PREALLOC,
        ),
        MapSpec("drops", MapType.PERCPU_ARRAY, 4, DROP_COUNT.packer.size, REASONS_MAX),
        MapSpec("drop_events", MapType.RINGBUF, 0, 0, DROP_EVENTS_BYTES),
        MapSpec("vpc_drops", MapType.PERCPU_HASH, 4, 8, VPCS_MAX),
        MapSpec("port_traffic", MapType.PERCPU_ARRAY, 4, TRAFFIC.packer.size, capacity.ports),
        MapSpec("gateway_traffic", MapType.PERCPU_ARRAY, 4, TRAFFIC.packer.size, capacity.gateways),
        MapSpec("scratch", MapType.PERCPU_ARRAY, 4, SCRATCH.packer.size, 1),
    )
    return {spec.name: spec for spec in specs}


PROGRAMS: dict[Hook, tuple[str, ...]] = {
    "xdp": ("xdp_pod", "xdp_wan", "xdp_pass"),
    "tc": ("tc_pod", "tc_wan"),
}
"""By where they are attached: for ports, for the underlay, others."""


def assertions() -> str:
    """C that compiles only where the programs' structs and constants are the ones above."""
    lines = []
    for layout in LAYOUTS:
        name = f"struct {layout.name}"
        lines.append(f'_Static_assert(sizeof({name}) == {layout.packer.size}, "{layout.name}");')
        lines += [
            f"_Static_assert(__builtin_offsetof({name}, {field}) == {offset},"
            f' "{layout.name}.{field}");'
            for field, offset in layout.offsets.items()
        ]
    constants = {f"DROP_{reason.name}": int(reason) for reason in DropReason} | {
        "REASONS_MAX": REASONS_MAX,
        "GROUP_GATEWAYS_MAX": GROUP_GATEWAYS_MAX,
        "INDEX_PROBES": INDEX_PROBES,
        "INDEX_FIRST": INDEX_FIRST,
        "PORT_BLOCKED": PORT_BLOCKED,
        "GATEWAY_RESOLVED": GATEWAY_RESOLVED,
        "PEER_OWN_SITE": PEER_OWN_SITE,
        "ANY_SITE": ANY_SITE,
        "MOVED_GRACE_NS": MOVED_GRACE_NS,
        "GATEWAY_SIX": GATEWAY_SIX,
        "GATEWAY_VXLAN": GATEWAY_VXLAN,
        "PEER_VXLAN": PEER_VXLAN,
        "OUTER4_BYTES": OUTER4_BYTES,
        "OUTER6_BYTES": OUTER6_BYTES,
        "SUMMED_AT_ONCE": SUMMED_AT_ONCE,
        "DROP_EVENTS_WINDOW_NS": DROP_EVENTS_WINDOW_NS,
        "DROP_EVENTS_IN_WINDOW": DROP_EVENTS_IN_WINDOW,
    }
    lines += [f'_Static_assert({name} == {value}, "{name}");' for name, value in constants.items()]
    return "\n".join(lines) + "\n"
