"""`/metrics`: what the node counts, as Prometheus text (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Final

import trio

from mesh.core.errors import NotReady

if TYPE_CHECKING:
    from mesh.node.service import Service

_BUCKETS_S: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1.0, 5.0)
"""Around the 1 s within which a node answers its own users."""


class Latencies:
    """How long calls took, by route. Routes are those of the table, so this is bounded."""

    def __init__(self) -> None:
        self.counts: dict[str, list[int]] = {}
        self.sums_s: dict[str, float] = {}

    def add(self, route: str, seconds: float) -> None:
        counts = self.counts.setdefault(route, [0] * (len(_BUCKETS_S) + 1))
        for index, bound_s in enumerate(_BUCKETS_S):
            if seconds <= bound_s:
                counts[index] += 1
        counts[-1] += 1
        self.sums_s[route] = self.sums_s.get(route, 0.0) + seconds


class _Text:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def family(self, name: str, kind: str, help_: str) -> None:
        self.lines += [f"# HELP {name} {help_}", f"# TYPE {name} {kind}"]

    def sample(self, name: str, labels: Mapping[str, str], value: float) -> None:
        shown = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        self.lines.append(f"{name}{{{shown}}} {value}" if shown else f"{name} {value}")

    def one(self, name: str, kind: str, help_: str, value: float) -> None:
        self.family(name, kind, help_)
        self.sample(name, {}, value)

    def many(
        self, name: str, kind: str, help_: str, label: str, values: Iterable[tuple[str, float]]
    ) -> None:
        self.family(name, kind, help_)
        for key, value in values:
            self.sample(name, {label: key}, value)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


async def render(service: Service, latencies: Latencies) -> str:
    """The whole page. Counters of the data plane are left out while it is not there."""
    node = service.node
    status = await service.membership.status()
    shards = status["shards"]
    out = _Text()
    out.one("weft_ready", "gauge", "Whether the node takes writes.", int(status["ready"]))
    out.one("weft_problems", "gauge", "Problems shown by status.", len(status["problems"]))
    out.one("weft_conflicts", "gauge", "Conflicts in the view.", status["conflicts"])
    out.one("weft_peers_connected", "gauge", "Linked peers.", status["peers"]["connected"])
    out.one("weft_peers_known", "gauge", "Other active members.", status["peers"]["known"])
    tasks = trio.lowlevel.current_statistics().tasks_living
    out.one("weft_tasks", "gauge", "Tasks of the node's event loop.", tasks)
    peers = node.transport.peers()
    agreeing = sum(node.replica.in_sync_ns(peer.node) is not None for peer in peers)
    out.one(
        "weft_peers_agreed",
        "gauge",
        "Linked peers whose digests were equal to ours since the link came up.",
        agreeing,
    )
    offsets = [(node.view.names.node_text(p.node), p.clock_offset_ns) for p in peers]
    out.many(
        "weft_peer_clock_offset_seconds",
        "gauge",
        "A linked peer's wall clock ahead of this node's.",
        "peer",
        [(name, offset_ns / 1e9) for name, offset_ns in offsets if offset_ns is not None],
    )
    if status["oldest_sync_s"] is not None:
        out.one(
            "weft_oldest_sync_seconds",
            "gauge",
            "Age of the last agreement of digests with the worst linked peer.",
            status["oldest_sync_s"],
        )
    out.many(
        "weft_chains", "gauge", "Chains held.", "shard", [(s, shards[s]["chains"]) for s in shards]
    )
    out.many(
        "weft_records",
        "gauge",
        "Live records held.",
        "shard",
        [(s, shards[s]["records"]) for s in shards],
    )
    out.many(
        "weft_records_unknown",
        "gauge",
        "Live records of a newer version of weft: kept and passed on, not read.",
        "shard",
        [(s, shards[s]["unknown"]) for s in shards],
    )
    tables = node.forwarding.tables()
    names = sorted(each.name for each in fields(tables))
    rows = {name: len(getattr(tables, name)) for name in names}
    out.many("weft_fib_rows", "gauge", "Compiled forwarding rows.", "table", rows.items())
    out.one(
        "weft_dataplane_synced",
        "gauge",
        "Whether every compiled row is installed.",
        int(status["dataplane"]["synced"]),
    )
    try:
        counters = await service.dataplane.stats()
    except NotReady:
        counters = {"drops": {}, "vpcs": {}, "sites": {}}
    drops = counters["drops"].items()
    out.many("weft_drops_total", "counter", "Packets dropped.", "reason", drops)
    _traffic(out, "vpc", "a VPC here", counters["vpcs"])
    _traffic(out, "site", "a site", counters["sites"])
    _latencies(out, latencies)
    return "\n".join(out.lines) + "\n"


def _traffic(out: _Text, label: str, of: str, rows: Mapping[str, Mapping[str, int]]) -> None:
    """Packets and bytes both ways and drops, by VPC or by site. Memory counts no bytes."""
    words = ("from", "to") if label == "vpc" else ("to", "from")
    for direction, word in zip(("tx", "rx"), words, strict=True):
        for unit in ("packets", "bytes"):
            key = f"{direction}_{unit}"
            values = [(name, row[key]) for name, row in rows.items() if key in row]
            says = f"{unit.title()} {word} {of}."
            out.many(f"weft_{label}_{key}_total", "counter", says, label, values)
    drops = [(name, row["drops"]) for name, row in rows.items()]
    says = f"Packets from {of} that were dropped here."
    out.many(f"weft_{label}_drops_total", "counter", says, label, drops)


def _latencies(out: _Text, latencies: Latencies) -> None:
    name = "weft_api_seconds"
    out.family(name, "histogram", "Time to answer a call of the local API.")
    for route, counts in sorted(latencies.counts.items()):
        bounds = [*map(str, _BUCKETS_S), "+Inf"]
        for bound, count in zip(bounds, counts, strict=True):
            out.sample(f"{name}_bucket", {"route": route, "le": bound}, count)
        out.sample(f"{name}_sum", {"route": route}, round(latencies.sums_s[route], 6))
        out.sample(f"{name}_count", {"route": route}, counts[-1])
