"""The data plane without a kernel: the same tables, and the programs' decisions in Python.

It serves machines without root or BPF, and the simulator. `forward` and `receive` decide as the
programs under `xdp/bpf` do, so a path can be followed from pod to pod through several of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv4Network
from typing import Any, Literal

from dataplane.backend import (
    ENDPOINTS_MAX,
    Audit,
    AuditReport,
    Json,
    TableFull,
    Usage,
)
from dataplane.fib.rows import (
    NO_GROUP,
    EndpointKey,
    EndpointRow,
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
    ip_number,
    ip_text,
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


class MemoryBackend:
    """See `backend.Backend`. Nothing outlives the process."""

    mode: Literal["memory"] = "memory"

    def __init__(self, *, endpoints_max: int = ENDPOINTS_MAX) -> None:
        self._endpoints_max = endpoints_max
        self._gateways: dict[int, GatewayRow] = {}
        self._groups: dict[int, GroupRow] = {}
        self._ports: dict[str, PortRow] = {}
        self._endpoints: dict[PackedKey, PackedRow] = {}
        self._subnets: dict[SubnetKey, SubnetRow] = {}
        self._peers: dict[int, int] = {}
        self._prefixes: dict[int, list[SubnetKey]] = {}
        self._drops: Counter[DropReason] = Counter()
        self._sent: Counter[int] = Counter()
        self._received: Counter[int] = Counter()
        self._from_port: Counter[str] = Counter()
        self._to_port: Counter[str] = Counter()

    # ---- tables ---------------------------------------------------------------------------------

    def replace(self, tables: Tables) -> None:
        self.apply(
            FibDelta(
                gateways=_difference(self._gateways, tables.gateways),
                groups=_difference(self._groups, tables.groups),
                ports=_difference(self._ports, tables.ports),
                endpoints=_difference(self._endpoints, tables.endpoints),
                subnets=_difference(self._subnets, tables.subnets),
            )
        )

    def apply(self, delta: FibDelta) -> None:
        _patch(self._gateways, delta.gateways)
        _patch(self._groups, delta.groups)
        _patch(self._ports, delta.ports)
        _patch(self._subnets, delta.subnets)
        if delta.gateways:
            # Two gateways that claim one address: the lower id counts what comes from it.
            rows = sorted(self._gateways.items(), reverse=True)
            self._peers = {row.underlay: id for id, row in rows}
        if delta.subnets:
            self._prefixes = {}
            for prefix in sorted(self._subnets, key=lambda key: -key.prefix_bits):
                self._prefixes.setdefault(prefix.vni, []).append(prefix)
        refused = 0
        for gone in delta.endpoints.remove:
            self._endpoints.pop(gone, None)
        for key, row in delta.endpoints.put.items():
            if key in self._endpoints or len(self._endpoints) < self._endpoints_max:
                self._endpoints[key] = row
            else:
                refused += 1
        if refused:
            raise TableFull("endpoints", refused, self.usage())

    def audit(self, tables: Tables) -> AuditReport:
        audit = Audit()
        audit.compare("gateways", tables.gateways, self._gateways)
        audit.compare("groups", tables.groups, self._groups)
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
        return {
            "drops": {reason.text: self._drops[reason] for reason in DropReason},
            "ports": {
                ifname: {"tx_packets": self._from_port[ifname], "rx_packets": self._to_port[ifname]}
                for ifname in sorted(self._ports)
            },
            "gateways": {
                str(id): {"tx_packets": self._sent[id], "rx_packets": self._received[id]}
                for id in sorted(self._gateways)
            },
        }

    def usage(self) -> Usage:
        return Usage(len(self._endpoints), self._endpoints_max)

    def usages(self) -> dict[str, Usage]:
        return {"endpoints": self.usage()}

    def show(self) -> Json:
        counters = self.counters()
        return {
            "gateways": [
                {
                    "id": id,
                    "node": row.node.hex(),
                    "site": row.site,
                    "underlay": ip_text(row.underlay),
                    **counters["gateways"][str(id)],
                }
                for id, row in sorted(self._gateways.items())
            ],
            "groups": [
                {"id": id, "name": row.name, "gateways": list(row.gateways)}
                for id, row in sorted(self._groups.items())
            ],
            "ports": [
                {
                    "ifname": ifname,
                    "vni": row.vni,
                    "ip": ip_text(row.ip),
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
        number = ip_number(ip)
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
            "ip": ip_text(key.ip),
            "ifname": row.ifname,
            "mac": mac_text(row.mac),
            **self._group_json(row.group),
        }

    def _subnet_json(self, key: SubnetKey, row: SubnetRow) -> Json:
        return {
            "vni": key.vni,
            "cidr": f"{ip_text(key.network)}/{key.prefix_bits}",
            "gateway_ip": ip_text(row.gateway_ip),
            **self._group_json(row.group),
        }

    # ---- packets --------------------------------------------------------------------------------

    def forward(self, ifname: str, src: str, dst: str) -> Verdict:
        """What becomes of an IPv4 packet that comes out of a local port (`xdp_pod`)."""
        port = self._ports.get(ifname)
        if port is None:
            return self._drop(DropReason.NO_PORT, f"{ifname} has no port row")
        if port.blocked:
            return self._drop(DropReason.PORT_BLOCKED, f"{ifname} lost the claim to its address")
        if ip_number(src) != port.ip:
            return self._drop(
                DropReason.SPOOFED_IP, f"{ifname} may send as {ip_text(port.ip)}, not as {src}"
            )
        self._from_port[ifname] += 1
        number = ip_number(dst)
        endpoint = self._endpoint(port.vni, number)
        if endpoint is not None:
            return self._to_endpoint(endpoint, port.vni, src, dst, came_from=None)
        prefix = self._prefix(port.vni, number)
        if prefix is None:
            return self._drop(DropReason.NO_SUBNET, f"{dst} is in no subnet of VNI {port.vni}")
        subnet = self._subnets[prefix]
        if number == subnet.gateway_ip:
            self._to_port[ifname] += 1
            return Verdict("deliver", f"{dst} is the gateway itself", port.vni, ifname)
        if subnet.group == NO_GROUP:
            return self._drop(DropReason.UNCLAIMED, f"nobody claims {dst}")
        return self._to_group(subnet.group, port.vni, src, dst, came_from=None)

    def receive(self, outer_src: str, vni: int, src: str, dst: str) -> Verdict:
        """What becomes of a tunnel packet from a peer's underlay address (`xdp_wan`)."""
        peer = self._peers.get(ip_number(outer_src))
        if peer is None:
            return self._drop(DropReason.UNKNOWN_PEER, f"{outer_src} is no gateway of the mesh")
        self._received[peer] += 1
        endpoint = self._endpoint(vni, ip_number(dst))
        if endpoint is None:
            return self._drop(DropReason.NOT_LOCAL, f"{dst} of VNI {vni} is not reached from here")
        return self._to_endpoint(endpoint, vni, src, dst, came_from=peer)

    def _to_endpoint(
        self, row: EndpointRow, vni: int, src: str, dst: str, *, came_from: int | None
    ) -> Verdict:
        if row.ifname:
            self._to_port[row.ifname] += 1
            return Verdict("deliver", f"{dst} is attached at {row.ifname}", vni, row.ifname)
        if row.group == NO_GROUP:
            return self._drop(DropReason.NOT_ATTACHED, f"{dst} is ours, and nothing is attached")
        return self._to_group(row.group, vni, src, dst, came_from=came_from)

    def _to_group(
        self, group: int, vni: int, src: str, dst: str, *, came_from: int | None
    ) -> Verdict:
        members = self._groups.get(group)
        if members is None:
            return self._drop(DropReason.NO_GROUP, f"no gateway is known that leads to {dst}")
        id = members.gateways[_flow_hash(src, dst) % len(members.gateways)]
        gateway: GatewayRow | None = self._gateways.get(id)
        if gateway is None:
            return self._drop(DropReason.NO_GATEWAY, f"{members.name} names an unknown gateway")
        if id == came_from:
            return self._drop(DropReason.LOOP, f"{dst} would go back to where it came from")
        self._sent[id] += 1
        underlay = ip_text(gateway.underlay)
        words = f"{dst} is reached through {members.name} by {underlay}, VNI {vni}"
        return Verdict("send", words, vni, gateway=gateway.node, underlay=underlay)

    def _endpoint(self, vni: int, number: int) -> EndpointRow | None:
        row = self._endpoints.get(EndpointKey(vni, number).pack())
        return None if row is None else EndpointRow.unpack(row)

    def _prefix(self, vni: int, number: int) -> SubnetKey | None:
        """The longest prefix of the VNI that holds the address."""
        for key in self._prefixes.get(vni, ()):
            if number in _hosts(key):
                return key
        return None

    def _drop(self, reason: DropReason, words: str) -> Verdict:
        self._drops[reason] += 1
        return Verdict("drop", f"{reason.text}: {words}", reason=reason)


def _by_address(entry: tuple[PackedKey, PackedRow]) -> EndpointKey:
    return EndpointKey.unpack(entry[0])


def _hosts(key: SubnetKey) -> range:
    network: Any = IPv4Network((key.network, key.prefix_bits))
    first = int(network.network_address)
    return range(first, first + int(network.num_addresses))


def _flow_hash(src: str, dst: str) -> int:
    return int.from_bytes(blake2b(f"{src} {dst}".encode(), digest_size=4).digest(), "big")


def _difference(old: Mapping[K, V], new: Mapping[K, V]) -> TableDelta[K, V]:
    put = {key: row for key, row in new.items() if old.get(key) != row}
    return TableDelta(put, tuple(key for key in old if key not in new))


def _patch(rows: dict[K, V], delta: TableDelta[K, V]) -> None:
    for key in delta.remove:
        rows.pop(key, None)
    rows.update(delta.put)
