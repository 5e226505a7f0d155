"""What a node costs: real processes on loopback, the data plane in memory.

Latencies are wall time, as a user has them: other work on the machine is in them. So each comes
with the CPU time of the processes, which other work is not in. A link is a TCP connection with
Noise and Yamux; bytes are those that went above TCP, from the kernel's count of each socket.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tests.bench import node_mesh
from tests.bench.harness import RUNS, Metric, progress
from tests.bench.node_mesh import (
    Mesh,
    Process,
    homes,
    mesh,
    sent_bytes,
    sent_since,
    started,
    until,
)

CHAIN_RECORDS = 125_000
"""a VPC of one writer: below the usual quota"""
RECORD_BYTES = 45
"""key and record of a claim with a MAC and a name"""
FIRST = 16
"""the first address that is claimed"""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a bench is. `runs` of each measurement, `large_runs` of those of `endpoints`."""

    runs: int = RUNS
    large_runs: int = RUNS
    endpoints: int = 1_000_000
    probes: int = 200
    gap_s: float = 0.02
    idle_nodes: int = 9
    idle_s: float = 10.0
    partition_nodes: int = 10
    divergent: int = 10_000
    mesh_nodes: int = 20
    updates_per_s: int = 200
    updates_s: float = 60.0


FULL = Sizes()
SHORT = Sizes(
    runs=1, large_runs=1, endpoints=4_000, probes=10, gap_s=0.01, idle_nodes=2, idle_s=0.5,
    partition_nodes=2, divergent=100, mesh_nodes=2, updates_per_s=30, updates_s=1.0,
)  # fmt: skip
"""The same steps within seconds: for the tests."""


def metrics(sizes: Sizes = FULL) -> list[Metric]:
    return [metric for section in SECTIONS.values() for metric in section(sizes)]


class Runs:
    """Collects the runs of several metrics that one measurement gives."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, str | None, list[float]]] = {}

    def add(self, name: str, unit: str, target: str | None, value: float) -> None:
        self._found.setdefault(name, (unit, target, []))[2].append(value)

    def metrics(self) -> list[Metric]:
        return [
            Metric(name, unit, target, tuple(values))
            for name, (unit, target, values) in self._found.items()
        ]


def _percentile(values: Iterable[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _ms(asked: Mapping[str, int], seen: Mapping[str, int]) -> list[float]:
    return [(seen[name] - at_ns) / 1e6 for name, at_ns in asked.items()]


def nodes_cpu_s(nodes: Sequence[Process]) -> float:
    for node in nodes:
        node.tell("usage")
    return float(sum(node.take()["cpu_s"] for node in nodes))


# ---- one update from A to B ----


def _latency(sizes: Sizes = FULL) -> list[Metric]:
    runs = Runs()
    with homes() as home, mesh(home, 2) as two:
        for run in range(sizes.runs):
            progress(f"A to B: {run + 1} of {sizes.runs}")
            _probe(two, runs, sizes, FIRST + run * sizes.probes, "", "<= 5", "<= 15")
    return runs.metrics()


def _probe(
    two: Mesh, runs: Runs, sizes: Sizes, first: int, where: str, p50: str | None, p99: str
) -> None:
    """Add endpoints at A, and see when B's view has them."""
    a, b = two.nodes[:2]
    b.ask("forget_seen")
    before_s = nodes_cpu_s([a, b])
    answer = a.ask("add", vpc=two.vpcs[0], first=first, count=sizes.probes, gap_s=sizes.gap_s)
    until("all are seen", lambda: b.ask("seen_count") >= sizes.probes)
    spent_ms = (nodes_cpu_s([a, b]) - before_s) / sizes.probes * 1e3
    latencies = _ms(answer["asked"], b.ask("seen"))
    acknowledged = _ms(answer["asked"], answer["acknowledged"])
    left = _ms({name: answer["asked"][name] for name in answer["left"]}, answer["left"])
    name = f"endpoint added at A, in B's view{where}"
    runs.add(f"{name}: p50", "ms", p50, _percentile(latencies, 50))
    runs.add(f"{name}: p99", "ms", p99, _percentile(latencies, 99))
    runs.add(f"{name}: durable at A, p50", "ms", None, _percentile(acknowledged, 50))
    runs.add(f"{name}: given to A's links, p50", "ms", "<= 2", _percentile(left, 50))
    runs.add(f"{name}: CPU of both, idle work included", "ms/update", None, spent_ms)


# ---- a million endpoints ----


def _large(sizes: Sizes = FULL) -> list[Metric]:
    """Filled once; then started, taken over by an empty node and probed, over and over."""
    runs = Runs()
    size = f"{sizes.endpoints:,} endpoints"
    vpcs = -(-sizes.endpoints // CHAIN_RECORDS)
    with homes() as home:
        with mesh(home, 3, vpcs) as filled:
            progress(f"filling {size}")
            for number, vpc in enumerate(filled.vpcs):
                count = min(CHAIN_RECORDS, sizes.endpoints - number * CHAIN_RECORDS)
                writer = filled.nodes[number % 2]  # half are of either: the third one is emptied
                writer.ask("fill", vpc=vpc, first=FIRST, count=count)
            for node in filled.nodes:
                node.ask("until_records", count=sizes.endpoints)
            configs, ids = [node.config for node in filled.nodes], filled.vpcs
        for config in configs:
            node_mesh.make_room(config)
        stored_bytes = (configs[0].parent / "store.db").stat().st_size
        name = "bytes on disk an endpoint, indexes and headers included"
        runs.add(f"{name}: {size}", "B", None, stored_bytes / sizes.endpoints)
        for run in range(sizes.large_runs):
            progress(f"{size}: {run + 1} of {sizes.large_runs}")
            began = node_mesh.start_of(configs[0])
            name = f"start with {size} stored, until the API answers"
            runs.add(name, "s", "<= 6", began.answer_s)
            runs.add(f"{name}: CPU", "s", None, began.cpu_s)
            with started(configs[:2]) as nodes:
                two = Mesh(nodes, ids)
                until("linked", lambda two=two: min(two.all("peers")) == 1)  # type: ignore[misc]
                first = FIRST + CHAIN_RECORDS + run * 4 * sizes.probes
                _probe(two, runs, sizes, first, f", {size} loaded", None, "<= 25")
                _bootstrap(home, two, configs[2], runs, sizes, first + sizes.probes)
    return runs.metrics()


def _bootstrap(home: Path, two: Mesh, config: Path, runs: Runs, sizes: Sizes, first: int) -> None:
    """An emptied member comes back to A alone, while A goes on taking small updates."""
    a, b = two.nodes
    empty = home / "empty"
    if empty.exists():
        shutil.rmtree(empty)
    shutil.copytree(config.parent, empty)
    _forget_chains(empty / "store.db")
    b.ask("cut", names=[config.parent.name])
    a.ask("pauses")
    before_s = nodes_cpu_s([a])
    joiner = Process(empty / config.name)
    try:
        joiner.take()
        joiner.ask("pauses")
        joiner.tell("until_records", count=sizes.endpoints)
        # Small updates until well after an empty node is expected to have all.
        count = 3 * sizes.probes
        answer = a.ask("add", vpc=two.vpcs[0], first=first, count=count, gap_s=sizes.gap_s)
        times = joiner.take()
        spent_s, joiner_s = nodes_cpu_s([a]) - before_s, nodes_cpu_s([joiner])
        pauses = {"serving": a.ask("pauses"), "new": joiner.ask("pauses")}
    finally:
        joiner.stop()
    name = f"bootstrap of an empty node, {sizes.endpoints:,} endpoints"
    took_s = (times["done_ns"] - times["linked_ns"]) / 1e9
    process_s = (times["done_ns"] - joiner.started_ns) / 1e9
    runs.add(f"{name}: from its link to a whole view, stored", "s", "<= 12", took_s)
    runs.add(f"{name}: from the start of its process", "s", None, process_s)
    runs.add(f"{name}: CPU of the new node", "s", None, joiner_s)
    runs.add(f"{name}: CPU of the serving node", "s", None, spent_s)
    acknowledged = _ms(answer["asked"], answer["acknowledged"])
    p99 = _percentile(acknowledged, 99)
    runs.add(f"{name}: update at the serving node durable, p99", "ms", "<= 100", p99)
    for which, pause in pauses.items():
        what = f"{name}: longest step of the {which} node's loop"
        runs.add(f"{what}, its CPU", "ms", "<= 20", pause["cpu_ms"])
        runs.add(f"{what}, of one task", "ms", None, pause["step_ms"])
        runs.add(f"{what}, wall", "ms", None, pause["wall_ms"])


def _forget_chains(store: Path) -> None:
    """Leave only the roster and the address book."""
    import sqlite3

    database = sqlite3.connect(store)
    with database:
        database.execute("DELETE FROM record")
        database.execute("DELETE FROM branch")
    database.close()


# ---- at rest ----


def _idle(sizes: Sizes = FULL) -> list[Metric]:
    runs = Runs()
    links = sizes.idle_nodes - 1
    with homes() as home, mesh(home, sizes.idle_nodes) as idle:
        until("all linked", lambda: min(idle.all("peers")) == links)
        until("all equal", idle.equal)
        ports = [node.port for node in idle.nodes]
        for run in range(sizes.runs):
            progress(f"idle with {links} links: {run + 1} of {sizes.runs}")
            cpu_s, sent, start_s = nodes_cpu_s(idle.nodes), sent_bytes(ports), time.monotonic()
            time.sleep(sizes.idle_s)
            spent_s = time.monotonic() - start_s
            cpu = (nodes_cpu_s(idle.nodes) - cpu_s) / spent_s / sizes.idle_nodes * 100
            grown = sent_since(sent, sent_bytes(ports))
            per_link = grown / spent_s / (sizes.idle_nodes * links / 2)
            resident_mb = median(usage["rss_mb"] for usage in idle.all("usage"))
            name = f"idle node with {links} links"
            runs.add(f"{name}: CPU", "% of a core", "<= 1", cpu)
            runs.add(f"{name}: memory", "MiB", "<= 120", resident_mb)
            runs.add(f"{name}: both ways, above TCP, a link", "B/s", "<= 200", per_link)
    return runs.metrics()


# ---- partition and heal ----


def _partition(sizes: Sizes = FULL) -> list[Metric]:
    runs = Runs()
    half = sizes.partition_nodes // 2
    with homes() as home, mesh(home, sizes.partition_nodes) as parted:
        sides = parted.nodes[:half], parted.nodes[half:]
        ports = [node.port for node in parted.nodes]
        for run in range(sizes.runs):
            progress(f"partition of {sizes.partition_nodes}: {run + 1} of {sizes.runs}")
            for side, other in (sides, sides[::-1]):
                for node in side:
                    node.ask("cut", names=[n.name for n in other])
            each = sizes.divergent // half
            for number, node in enumerate(parted.nodes):
                first = FIRST + (run * sizes.partition_nodes + number) * each
                node.ask("fill", vpc=parted.vpcs[0], first=first, count=each)
            for side in sides:
                until("each side equal", lambda side=side: _agree(side))  # type: ignore[misc]
            cpu_s, sent, start_s = nodes_cpu_s(parted.nodes), sent_bytes(ports), time.monotonic()
            parted.all("heal")
            until("equal", parted.equal)
            healed_s = time.monotonic() - start_s
            spent_s = nodes_cpu_s(parted.nodes) - cpu_s
            lacked_bytes = sizes.partition_nodes * half * each * RECORD_BYTES
            name = (
                f"partition of {sizes.partition_nodes} nodes, {sizes.divergent:,} writes on each"
                " side"
            )
            runs.add(f"{name}: heal to equal digests", "s", "<= 10", healed_s)
            runs.add(f"{name}: CPU of all nodes", "s", None, spent_s)
            runs.add(
                f"{name}: bytes sent / records that nodes lacked", "ratio", None,
                sent_since(sent, sent_bytes(ports)) / lacked_bytes,
            )  # fmt: skip
    return runs.metrics()


def _agree(nodes: Sequence[Process]) -> bool:
    return len({tuple(node.ask("digests")) for node in nodes}) == 1


# ---- many nodes, many updates ----


def _spread(sizes: Sizes = FULL) -> list[Metric]:
    runs = Runs()
    count = int(sizes.updates_per_s * sizes.updates_s / sizes.mesh_nodes)
    gap_s = sizes.mesh_nodes / sizes.updates_per_s
    name = (
        f"{sizes.mesh_nodes} processes, {sizes.updates_per_s} updates/s for {sizes.updates_s:g} s"
    )
    with homes() as home, mesh(home, sizes.mesh_nodes) as many:
        for run in range(sizes.runs):
            progress(f"{name}: {run + 1} of {sizes.runs}")
            many.all("forget_seen")
            cpu_s, start_s = nodes_cpu_s(many.nodes), time.monotonic()
            for number, node in enumerate(many.nodes):
                first = FIRST + (run * sizes.mesh_nodes + number) * count
                node.tell("add", vpc=many.vpcs[0], first=first, count=count, gap_s=gap_s)
            asked: dict[str, int] = {}
            for node in many.nodes:
                asked |= node.take()["asked"]
            total = len(asked)
            until("all are seen", lambda total=total: min(many.all("seen_count")) >= total)  # type: ignore[misc]
            spent_s = time.monotonic() - start_s
            cores = (nodes_cpu_s(many.nodes) - cpu_s) / spent_s
            latencies = [ms for seen in many.all("seen") for ms in _ms(asked, seen)]
            assert len(latencies) == total * sizes.mesh_nodes
            runs.add(f"{name}: p50 of all deliveries", "ms", None, _percentile(latencies, 50))
            runs.add(f"{name}: p99 of all deliveries", "ms", "<= 1000", _percentile(latencies, 99))
            runs.add(
                f"{name}: CPU a 5 nodes", "% of a core", "<= 25", cores / sizes.mesh_nodes * 500
            )
    return runs.metrics()


SECTIONS: dict[str, Callable[..., list[Metric]]] = {
    "latency": _latency,
    "idle": _idle,
    "partition": _partition,
    "spread": _spread,
    "large": _large,
}
