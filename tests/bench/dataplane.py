"""What the kernel data plane costs, beside what the kernel itself costs, in one run.

Times of programs are of BPF_PROG_TEST_RUN repeated many times, so that the system call and the
timer are not in them; what has to be undone between two runs (dataplane.c) is measured alone and
taken off. Each run takes the least of several tries, with all programs in turn: other work on the
machine only ever makes them slower. Of throughputs it takes the best, for the same reason.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from dataplane.backend import Hook
from dataplane.fib.rows import FibDelta, TableDelta
from dataplane.xdp import kernel, links
from mesh.node.memory import give_back
from tests.bench.dataplane_world import (
    MANY_FIRST,
    WRAPPED,
    Crowd,
    Joined,
    close_all,
    crowd,
    joined_by_vxlan,
    joined_by_weft,
    opened_maps,
    packets_per_s,
    round_trips_us,
    settle,
    tcp_bytes_per_s,
    wrapped,
)
from tests.bench.harness import RUNS, Metric, cpu_s, in_child, progress, resident_bytes


@dataclass(frozen=True, slots=True)
class Sizes:
    """`endpoints` is a power of two; of each measurement `runs`, and in each so many `tries`."""

    runs: int = RUNS
    tries: int = 20
    repeat: int = 20_000
    endpoints: int = 1 << 20
    packets: int = 200_000
    stream_s: float = 0.5
    pings: int = 500


FULL = Sizes()
SHORT = Sizes(runs=1, tries=2, repeat=200, endpoints=1 << 10, packets=2000, stream_s=0.05, pings=10)
"""The same steps within seconds: for the tests."""

CHANGES = 100
HOOKS_TARGETS: tuple[tuple[Hook, bool], ...] = (("tc", True), ("xdp", False))
"""Of bulk TCP: which has to reach the target."""
RATIOS = (
    ("encapsulation, always the same endpoint", "pod4_hot", "xdp_pass", "<= 6.0"),
    ("encapsulation, endpoints by chance", "pod4_random", "xdp_pass", "<= 20"),
    ("decapsulation, always the same endpoint", "wan4_hot", "xdp_pass", "<= 6.0"),
    ("decapsulation, endpoints by chance", "wan4_random", "xdp_pass", "<= 20"),
    ("encapsulation of IPv6 against IPv4", "pod6_hot", "pod4_hot", "<= 1.3"),
    ("decapsulation of IPv6 against IPv4", "wan6_hot", "wan4_hot", "<= 1.3"),
)


def metrics(sizes: Sizes = FULL) -> list[Metric]:
    return [metric for section in SECTIONS.values() for metric in section(sizes)]


# ---- one packet ---------------------------------------------------------------------------------


def packet(sizes: Sizes = FULL) -> list[Metric]:
    """Nanoseconds of each program, with all endpoints installed, and how they compare."""
    with crowd(sizes.endpoints) as world:
        world.gateway.run(lambda: world.gateway.backend.replace(world.tables))
        with ExitStack() as held:
            maps = opened_maps(world.gateway.pin_dir)
            held.callback(close_all, maps)
            macs = world.four.mac, world.six.mac
            fds = wrapped(WRAPPED, macs, MANY_FIRST, sizes.endpoints, maps)
            held.callback(close_all, fds)
            runs = []
            for number in range(sizes.runs):
                progress(f"programs: {number + 1} of {sizes.runs}")
                found = world.gateway.run(partial(_run_ns, world, fds, sizes))
                runs.append(_without_undoing(found))
    size = f"{sizes.endpoints:,} endpoints"
    plain = ("xdp_pass", *(name for _, name, _, _ in RATIOS))
    return [
        *(
            Metric(f"{name}: one packet, {size}", "ns", None, tuple(run[name] for run in runs))
            for name in dict.fromkeys(plain)
        ),
        *(
            Metric(
                f"{label}, {size}" + (", of XDP_PASS" if base == "xdp_pass" else ""),
                "ratio",
                target,
                tuple(run[name] / run[base] for run in runs),
            )
            for label, name, base, target in RATIOS
        ),
    ]


def _run_ns(world: Crowd, fds: Mapping[str, int], sizes: Sizes) -> dict[str, float]:
    """The least of the tries of each program. AssertionError where one does not forward."""
    least: dict[str, float] = {}
    for _ in range(sizes.tries):
        for name in WRAPPED:
            six, wan = "6" in name, name.startswith("wan")
            pod = world.six if six else world.four
            interface = links.interface("wan0" if wan else pod.ifname)
            assert interface is not None
            run = kernel.prog_test_run(
                fds[name],
                world.tunnelled(six) if wan else world.sent(six),
                ifindex=interface.ifindex,
                repeat=sizes.repeat,
            )
            assert run.verdict == (2 if name == "xdp_pass" else 4), (name, run.verdict)
            least[name] = min(least.get(name, run.duration_ns), run.duration_ns)
    return least


def _without_undoing(found: Mapping[str, float]) -> dict[str, float]:
    """The programs' own time. `undone` makes room once more than undoing does."""
    prepared = found["bare"] - found["xdp_pass"]
    undoing = prepared + (found["undone"] - found["bare"]) / 2
    free = ("xdp_pass", "bare", "undone")
    return {name: ns if name in free else ns - undoing for name, ns in found.items()}


# ---- many packets -------------------------------------------------------------------------------


def capacity(sizes: Sizes = FULL) -> list[Metric]:
    """Packets that one processor carries from pod to pod, making and taking them included."""
    found = _beside(sizes, lambda world: packets_per_s(world, sizes.packets), sizes.tries // 4)
    return _compared("packets from pod to pod on one processor", "packets/s", found, ">= 5.0")


def flows(sizes: Sizes = FULL) -> list[Metric]:
    """What programs in the pods see."""
    metrics = []
    for streams, target in ((1, ">= 1.0"), (4, ">= 1.1")):
        run = partial(tcp_bytes_per_s, streams=streams, seconds=sizes.stream_s)
        for hook, wanted in HOOKS_TARGETS:
            name = f"TCP from pod to pod, {streams} stream{'s' * (streams > 1)}, hook {hook}"
            found = _beside(sizes, run, sizes.tries // 4, hook)
            metrics += _compared(name, "bytes/s", found, target if wanted else None)
    found = _beside(sizes, lambda world: -median(round_trips_us(world, sizes.pings)), 2)
    positive = {name: tuple(-value for value in values) for name, values in found.items()}
    return metrics + _compared("ping from pod to pod, median", "us", positive, "<= 0.9")


def _beside(
    sizes: Sizes, measured: Callable[[Joined], float], tries: int, hook: Hook = "xdp"
) -> dict[str, tuple[float, ...]]:
    """The greatest of some tries in each run, for Weft and for VXLAN, which take turns."""
    with joined_by_weft(hook) as weft, joined_by_vxlan() as vxlan:
        worlds = {"Weft": weft, "VXLAN": vxlan}
        for world in worlds.values():
            settle(world)
        runs: dict[str, list[float]] = {name: [] for name in worlds}
        for number in range(sizes.runs):
            progress(f"Weft beside VXLAN: {number + 1} of {sizes.runs}")
            tried = [[measured(world) for world in worlds.values()] for _ in range(max(1, tries))]
            for name, values in zip(worlds, zip(*tried, strict=True), strict=True):
                runs[name].append(max(values))
    return {name: tuple(values) for name, values in runs.items()}


def _compared(
    name: str, unit: str, found: Mapping[str, tuple[float, ...]], target: str | None
) -> list[Metric]:
    ratios = (weft / vxlan for weft, vxlan in zip(found["Weft"], found["VXLAN"], strict=True))
    return [
        *(Metric(f"{name}: {kind}", unit, None, values) for kind, values in found.items()),
        Metric(f"{name}: Weft against VXLAN", "ratio", target, tuple(ratios)),
    ]


# ---- rows ---------------------------------------------------------------------------------------


def rows(sizes: Sizes = FULL) -> list[Metric]:
    """Seconds of this process's CPU, in which the kernel's part of its calls is."""
    filled, audited, changed = [], [], []
    for number in range(sizes.runs):
        progress(f"rows: {number + 1} of {sizes.runs}")
        with crowd(sizes.endpoints) as world:
            gateway, tables = world.gateway, world.tables
            filled.append(_in(gateway, partial(gateway.backend.replace, tables)))
            audited.append(_in(gateway, partial(gateway.backend.audit, tables)))
            changed.append(1000 * median(_changes(world)))
    size = f"{sizes.endpoints:,} rows"
    return [
        Metric(f"first fill of {size}", "CPU s", "<= 2.0", tuple(filled)),
        Metric(f"audit of {size}", "CPU s", "<= 1.5", tuple(audited)),
        Metric(f"one endpoint that changes, of {size}", "CPU ms", "<= 1.0", tuple(changed)),
    ]


def _in(gateway: Any, call: Callable[[], object]) -> float:
    spent: float = gateway.run(lambda: cpu_s(call))
    return spent


def _changes(world: Crowd) -> Iterable[float]:
    backend = world.gateway.backend
    for key, row in list(world.tables.endpoints.items())[-CHANGES:]:
        delta = FibDelta(endpoints=TableDelta({key: row}, ()))
        yield _in(world.gateway, partial(backend.apply, delta))


# ---- memory -------------------------------------------------------------------------------------


def memory(sizes: Sizes = FULL) -> list[Metric]:
    """Of a process that has the rows and an open data plane: what installing them leaves."""
    found = [in_child("dataplane", str(sizes.endpoints)) for _ in range(sizes.runs)]
    name = f"resident memory that installing {sizes.endpoints:,} rows leaves, beyond them"
    return [Metric(name, "MB", "<= 20", tuple(child["added_mb"] for child in found))]


def added_memory(endpoints: int) -> dict[str, float]:
    """In a process of its own, that treats its memory as a node does."""
    give_back()
    with crowd(endpoints) as world:
        backend = world.gateway.backend
        gc.collect()
        before = resident_bytes()
        world.gateway.run(lambda: backend.replace(world.tables))
        world.gateway.run(lambda: backend.audit(world.tables))
        gc.collect()
        return {"added_mb": (resident_bytes() - before) / 1e6}


SECTIONS: dict[str, Callable[..., list[Metric]]] = {
    "packet": packet,
    "capacity": capacity,
    "flows": flows,
    "rows": rows,
    "memory": memory,
}
