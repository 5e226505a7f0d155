"""The data plane without a kernel: the same tables, and the programs' decisions in Python.

It serves machines without root or BPF, and the simulator. `forward` and `receive` decide as the
programs under `xdp/bpf` do, so a path can be followed from pod to pod through several of these.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import ip_address
from itertools import islice
from typing import Literal

from dataplane.backend import (
    DEFAULT_CAPACITY,
    Audit,
    AuditReport,
    Capacity,
    Json,
    TableFull,
    Usage,
)
from dataplane.drops import DROPS_TAKEN_MAX, DropEvent
from dataplane.fib.rows import (
    ANY_SITE,
    MOVED_GRACE_NS,
    MOVED_MAX,
    NO_GROUP,
    EndpointKey,
    EndpointRow,
    EntitledKey,
    EntitledRow,
    FibDelta,
    GatewayRow,
    GroupRow,
    K,
    PackedKey,
    PackedRow,
    PortRow,
    SubnetKey,
    SubnetRow,
    TableDelta,
    Tables,
    V,
    address_of,
    address_text,
    cidr_text,
    encapsulation,
    in_prefix,
    mac_text,
)
from dataplane.reasons import DropReason


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happens to a packet: delivered to `ifname`, sent to a gateway's underlay, or dropped."""

    action: Literal["deliver", "send", "drop"]
    words: str
    vni: int = 0
    ifname: str = ""
    gateway: bytes = b""  # node id of the next hop
    underlay: str = ""
    reason: DropReason | None = None


@dataclass(frozen=True, slots=True)
class _Packet:
    """What is known of a packet on its way: from a port, or from a peer gateway."""

    src: str
    dst: str
    vni: int
    ifname: str = ""
    outer: str = ""
    gateway: int | None = None


_COUNTED = ("tx_packets", "rx_packets", "drops")


class MemoryBackend:
    """See `backend.Backend`. Nothing outlives the process."""

    mode: Literal["memory"] = "memory"

    def __init__(
        self,
        *,
        capacity: Capacity = DEFAULT_CAPACITY,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._endpoints_max = capacity.endpoints
        self._gateways: dict[int, GatewayRow] = {}
        self._groups: dict[int, GroupRow] = {}
        self._ports: dict[str, PortRow] = {}
        self._endpoints: dict[PackedKey, PackedRow] = {}
        self._refused: dict[PackedKey, PackedRow] = {}
        """Rows that there was no room for."""
        self._subnets: dict[SubnetKey, SubnetRow] = {}
        self._entitled: dict[EntitledKey, EntitledRow] = {}
        self._moved: OrderedDict[PackedKey, tuple[int, int]] = OrderedDict()
        """Endpoint → the group that it was behind, and when that changed: the oldest first."""
        self._peers: dict[int, int] = {}
        self._prefixes: dict[int, list[SubnetKey]] = {}
        self._now_ns = now_ns
        self._drops: Counter[DropReason] = Counter()
        self._drop_events: deque[DropEvent] = deque(maxlen=DROPS_TAKEN_MAX)
        self._counts: Counter[tuple[str, str, str]] = Counter()
        """(kind, name, what) → packets; kinds and names as in `counters`."""

    # ---- tables ---------------------------------------------------------------------------------

    def replace(self, tables: Tables) -> None:
        self._refused = {}
        self.apply(
            FibDelta(
                gateways=_difference(self._gateways, tables.gateways),
                groups=_difference(self._groups, tables.groups),
                entitled=_difference(self._entitled, tables.entitled),
                ports=_difference(self._ports, tables.ports),
                endpoints=_difference(self._endpoints, tables.endpoints),
                subnets=_difference(self._subnets, tables.subnets),
            )
        )

    def apply(self, delta: FibDelta) -> None:
        _patch(self._gateways, delta.gateways)
        _patch(self._groups, delta.groups)
        _patch(self._entitled, delta.entitled)
        self._remember(delta.moved)
        _patch(self._ports, delta.ports)
        _patch(self._subnets, delta.subnets)
        if delta.gateways.changes:
            # Two gateways that claim one address: the lower id counts what comes from it.
            rows = sorted(self._gateways.items(), reverse=True)
            self._peers = {row.underlay: id for id, row in rows}
        if delta.subnets.changes:
            self._prefixes = {}
            for prefix in sorted(self._subnets, key=lambda key: -key.prefix_bits):
                self._prefixes.setdefault(prefix.vni, []).append(prefix)
        for gone in delta.endpoints.remove:
            self._endpoints.pop(gone, None)
            self._refused.pop(gone, None)
        self._take_refused(delta.endpoints.put)
        for key, row in delta.endpoints.put.items():
            if key in self._endpoints or len(self._endpoints) < self._endpoints_max:
                self._endpoints[key] = row
                self._refused.pop(key, None)
            else:
                self._refused[key] = row
        if self._refused:
            raise TableFull("endpoints", len(self._refused), self.usage())

    def _take_refused(self, wanted: Mapping[PackedKey, PackedRow]) -> None:
        """Rows that have waited for room come before those that are new."""
        room = self._endpoints_max - len(self._endpoints)
        for key in list(islice(self._refused, room)):
            row = self._refused.pop(key)
            self._endpoints[key] = wanted.get(key, row)

    def _remember(self, moved: Mapping[PackedKey, int]) -> None:
        for key, group in moved.items():
            self._moved[key] = group, self._now_ns()
            self._moved.move_to_end(key)
        while len(self._moved) > MOVED_MAX:
            self._moved.popitem(last=False)

    def audit(self, tables: Tables) -> AuditReport:
        audit = Audit()
        audit.compare("gateways", tables.gateways, self._gateways)
        audit.compare("groups", tables.groups, self._groups)
        audit.compare("entitled", tables.entitled, self._entitled)
        audit.compare("ports", tables.ports, self._ports)
        audit.compare("endpoints", tables.endpoints, self._endpoints)
        audit.compare("subnets", tables.subnets, self._subnets)
        return audit.report()

    def repair(self, tables: Tables) -> AuditReport:
        report = self.audit(tables)
        self.replace(tables)
        return report

    # ---- reports --------------------------------------------------------------------------------

    def counters(self) -> Json:
        seen = sorted({(kind, name) for kind, name, _ in self._counts})
        return {
            "drops": {reason.text: self._drops[reason] for reason in DropReason},
            "ports": {ifname: self._counted("ports", ifname) for ifname in sorted(self._ports)},
            "gateways": {str(id): self._counted("gateways", id) for id in sorted(self._gateways)},
            "vpcs": {name: self._counted(kind, name) for kind, name in seen if kind == "vpcs"},
            "sites": {name: self._counted(kind, name) for kind, name in seen if kind == "sites"},
        }

    def _counted(self, kind: str, name: object) -> Json:
        return {what: self._counts[kind, str(name), what] for what in _COUNTED}

    def take_drops(self) -> list[DropEvent]:
        events = list(self._drop_events)
        self._drop_events.clear()
        return events

    def usage(self) -> Usage:
        return Usage(len(self._endpoints), self._endpoints_max)

    def usages(self) -> dict[str, Usage]:
        return {"endpoints": self.usage()}

    def capacities(self) -> dict[str, int]:
        return {"endpoints": self._endpoints_max}

    def show(self) -> Json:
        counters = self.counters()
        return {
            "gateways": [
                {
                    "id": id,
                    "node": row.node.hex(),
                    "site": row.site,
                    "underlay": address_text(row.underlay),
                    "encapsulation": encapsulation(row.vxlan),
                    **counters["gateways"][str(id)],
                }
                for id, row in sorted(self._gateways.items())
            ],
            "groups": [
                {"id": id, "name": row.name, "gateways": list(row.gateways)}
                for id, row in sorted(self._groups.items())
            ],
            "entitled": [
                {"vni": key.vni, "site": row.site} for key, row in sorted(self._entitled.items())
            ],
            "ports": [
                {
                    "ifname": ifname,
                    "vni": row.vni,
                    "ip": address_text(row.ip),
                    "mac": mac_text(row.mac),
                    "blocked": row.blocked,
                    **counters["ports"][ifname],
                }
                for ifname, row in sorted(self._ports.items())
            ],
            "endpoints": [
                self._endpoint_json(EndpointKey.unpack(key), EndpointRow.unpack(row))
                for key, row in sorted(self._endpoints.items(), key=_by_address)
            ],
            "subnets": [self._subnet_json(key, row) for key, row in sorted(self._subnets.items())],
        }

    def explain(self, vni: int, ip: str) -> Json:
        number = address_of(ip)
        key = EndpointKey(vni, number)
        endpoint = self._endpoint(vni, number)
        if endpoint is not None:
            return {"kind": "endpoint", **self._endpoint_json(key, endpoint)}
        prefix = self._prefix(vni, number)
        if prefix is not None:
            return {"kind": "subnet", **self._subnet_json(prefix, self._subnets[prefix])}
        return {"kind": "none", "vni": vni, "ip": ip}

    def refresh_adjacency(self) -> int:
        return 0

    @property
    def changes(self) -> None:
        return None

    def missing_interfaces(self) -> tuple[str, ...]:
        return ()

    def detach(self) -> None:
        self.replace(Tables())

    def close(self) -> None:
        pass

    def _group_json(self, group: int) -> Json:
        row = self._groups.get(group)
        return {"group": group, "gateways": list(row.gateways) if row else []}

    def _endpoint_json(self, key: EndpointKey, row: EndpointRow) -> Json:
        return {
            "vni": key.vni,
            "ip": address_text(key.ip),
            "ifname": row.ifname,
            "mac": mac_text(row.mac),
            **self._group_json(row.group),
        }

    def _subnet_json(self, key: SubnetKey, row: SubnetRow) -> Json:
        return {
            "vni": key.vni,
            "cidr": cidr_text(key),
            "gateway_ip": address_text(row.gateway_ip),
            **self._group_json(row.group),
        }

    # ---- packets --------------------------------------------------------------------------------

    def forward(self, ifname: str, src: str, dst: str) -> Verdict:
        """What becomes of a packet that comes out of a local port (`xdp_pod`)."""
        port = self._ports.get(ifname)
        packet = _Packet(src, dst, port.vni if port else 0, ifname=ifname)
        if port is None:
            return self._drop(packet, DropReason.NO_PORT, f"{ifname} has no port row")
        if port.blocked:
            words = f"{ifname} lost the claim to its address"
            return self._drop(packet, DropReason.PORT_BLOCKED, words)
        if ip_address(dst).is_multicast or dst == "255.255.255.255":
            return self._drop(packet, DropReason.MULTICAST, f"{dst} is nobody in particular")
        if address_of(src) != port.ip:
            words = f"{ifname} may send as {address_text(port.ip)}, not as {src}"
            return self._drop(packet, DropReason.SPOOFED_IP, words)
        self._count_port(ifname, "tx_packets")
        number = address_of(dst)
        endpoint = self._endpoint(port.vni, number)
        if endpoint is not None:
            return self._to_endpoint(packet, endpoint)
        prefix = self._prefix(port.vni, number)
        if prefix is None:
            words = f"{dst} is in no subnet of VNI {port.vni}"
            return self._drop(packet, DropReason.NO_SUBNET, words)
        subnet = self._subnets[prefix]
        if number == subnet.gateway_ip:
            self._count_port(ifname, "rx_packets")
            return Verdict("deliver", f"{dst} is the gateway itself", port.vni, ifname)
        if subnet.group == NO_GROUP:
            return self._drop(packet, DropReason.UNCLAIMED, f"nobody claims {dst}")
        return self._to_group(packet, subnet.group)

    def receive(self, outer_src: str, vni: int, src: str, dst: str) -> Verdict:
        """What becomes of a tunnel packet from a peer's underlay address (`xdp_wan`)."""
        peer = self._peers.get(address_of(outer_src))
        if peer is None:
            stranger = _Packet("", "", 0, outer=outer_src)
            words = f"{outer_src} is no gateway of the mesh"
            return self._drop(stranger, DropReason.UNKNOWN_PEER, words)
        packet = _Packet(src, dst, vni, outer=outer_src, gateway=peer)
        self._count_gateway(peer, "rx_packets")
        refused = self._check_source(packet, self._gateways[peer])
        if refused is not None:
            return refused
        endpoint = self._endpoint(vni, address_of(dst))
        if endpoint is None:
            words = f"{dst} of VNI {vni} is not reached from here"
            return self._drop(packet, DropReason.NOT_LOCAL, words)
        return self._to_endpoint(packet, endpoint)

    def _check_source(self, packet: _Packet, peer: GatewayRow) -> Verdict | None:
        """The drop, if a gateway may not have sent what came by its tunnel (`source.h`). Errors
        from the address of a subnet's gateway are not told from other packets."""
        source = self._endpoint(packet.vni, address_of(packet.src))
        if source is not None and self._leads_to_site(peer, source.group):
            return None
        sites = (ANY_SITE, peer.site_group)
        if not any(EntitledKey(packet.vni, site) in self._entitled for site in sites):
            words = f"site {peer.site} may not send for VNI {packet.vni}"
            return self._drop(packet, DropReason.NOT_ENTITLED, words)
        if (
            peer.own_site
            or self._was_at(peer, packet.vni, packet.src, MOVED_GRACE_NS)
            or self._was_at(peer, packet.vni, packet.dst, None)
        ):
            return None
        words = f"{packet.src} is not claimed at site {peer.site}"
        return self._drop(packet, DropReason.FOREIGN_SOURCE, words)

    def _leads_to_site(self, peer: GatewayRow, group: int) -> bool:
        if group in (peer.group, peer.site_group):
            return True
        other = self._groups.get(group)
        return other is not None and other.site_group == peer.site_group

    def _was_at(self, peer: GatewayRow, vni: int, ip: str, within_ns: int | None) -> bool:
        """Whether an address was at the peer's site before it moved, so long ago at most."""
        group, at_ns = self._moved.get(EndpointKey(vni, address_of(ip)).pack(), (NO_GROUP, 0))
        if within_ns is not None and self._now_ns() - at_ns > within_ns:
            return False
        return group != NO_GROUP and self._leads_to_site(peer, group)

    def _to_endpoint(self, packet: _Packet, row: EndpointRow) -> Verdict:
        if row.ifname:
            self._count_port(row.ifname, "rx_packets")
            words = f"{packet.dst} is attached at {row.ifname}"
            return Verdict("deliver", words, packet.vni, row.ifname)
        if row.group == NO_GROUP:
            words = f"{packet.dst} is ours, and nothing is attached"
            return self._drop(packet, DropReason.NOT_ATTACHED, words)
        return self._to_group(packet, row.group)

    def _to_group(self, packet: _Packet, group: int) -> Verdict:
        members = self._groups.get(group)
        if members is None:
            words = f"no gateway is known that leads to {packet.dst}"
            return self._drop(packet, DropReason.NO_GROUP, words)
        id = members.gateways[_flow_hash(packet.src, packet.dst) % len(members.gateways)]
        gateway: GatewayRow | None = self._gateways.get(id)
        if gateway is None:
            words = f"{members.name} names an unknown gateway"
            return self._drop(packet, DropReason.NO_GATEWAY, words)
        if id == packet.gateway:
            words = f"{packet.dst} would go back to where it came from"
            return self._drop(packet, DropReason.LOOP, words)
        self._count_gateway(id, "tx_packets")
        underlay = address_text(gateway.underlay)
        words = f"{packet.dst} is reached through {members.name} by {underlay}, VNI {packet.vni}"
        return Verdict("send", words, packet.vni, gateway=gateway.node, underlay=underlay)

    def _endpoint(self, vni: int, number: int) -> EndpointRow | None:
        row = self._endpoints.get(EndpointKey(vni, number).pack())
        return None if row is None else EndpointRow.unpack(row)

    def _prefix(self, vni: int, number: int) -> SubnetKey | None:
        """The longest prefix of the VNI that holds the address."""
        for key in self._prefixes.get(vni, ()):
            if in_prefix(number, key):
                return key
        return None

    def _count_port(self, ifname: str, what: str) -> None:
        self._counts["ports", ifname, what] += 1
        if (port := self._ports.get(ifname)) is not None:
            self._counts["vpcs", str(port.vni), what] += 1

    def _count_gateway(self, id: int, what: str) -> None:
        self._counts["gateways", str(id), what] += 1
        if (gateway := self._gateways.get(id)) is not None:
            self._counts["sites", gateway.site, what] += 1

    def _drop(self, packet: _Packet, reason: DropReason, words: str) -> Verdict:
        self._drops[reason] += 1
        if packet.ifname:
            self._counts["ports", packet.ifname, "drops"] += 1
        if packet.gateway is not None:
            self._count_gateway(packet.gateway, "drops")
        if packet.vni:
            self._counts["vpcs", str(packet.vni), "drops"] += 1
        self._drop_events.append(
            DropEvent(
                at_ns=self._now_ns(),
                reason=reason,
                packets=1,
                vni=packet.vni,
                src=packet.src,
                dst=packet.dst,
                outer=packet.outer,
                ifname=packet.ifname,
            )
        )
        return Verdict("drop", f"{reason.text}: {words}", reason=reason)


def _by_address(entry: tuple[PackedKey, PackedRow]) -> EndpointKey:
    return EndpointKey.unpack(entry[0])


def _flow_hash(src: str, dst: str) -> int:
    return int.from_bytes(blake2b(f"{src} {dst}".encode(), digest_size=4).digest(), "big")


def _difference(old: Mapping[K, V], new: Mapping[K, V]) -> TableDelta[K, V]:
    put = {key: row for key, row in new.items() if old.get(key) != row}
    return TableDelta(put, tuple(key for key in old if key not in new))


def _patch(rows: dict[K, V], delta: TableDelta[K, V]) -> None:
    for key in delta.remove:
        rows.pop(key, None)
    rows.update(delta.put)
