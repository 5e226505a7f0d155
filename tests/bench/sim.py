"""What the simulator costs: schedules of faults a second, a quiet day, a thousand sites.

Seeds a second are wall time over all cores, processes and their start included, and come with the
CPU time of one seed, which other work on the machine is not in. That each schedule has the writes,
frames and faults that it should is checked in every run: the scenario says so.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sim.collecting import few_collections
from sim.core.scenario import Scenario, parse
from sim.core.simulation import Result, run
from sim.reading import load
from sim.seeding import chance_of
from sim.soaking import Cores, Sweep, sweep
from tests.bench.harness import RUNS, Metric, measure, progress

SCENARIOS = Path(__file__).parents[2] / "sim" / "scenarios"
SCHEDULES = SCENARIOS / "schedules.toml"
LEAST = {"writes": 50, "frames": 200, "faults": 3}
"""What each schedule must have."""
DAY_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a bench is."""

    runs: int = RUNS
    seeds: int = 500
    """schedules in a run"""
    day_s: int = DAY_S
    day_sites: int = 20
    small: bool = False
    """whether it is `thousand-sites` in its small form"""


FULL = Sizes()
SHORT = Sizes(runs=1, seeds=4, day_s=600, day_sites=3, small=True)
"""The same steps within seconds: for the tests."""


def metrics(sizes: Sizes = FULL) -> list[Metric]:
    return [metric for section in SECTIONS.values() for metric in section(sizes)]


# ---- schedules ----


def schedules(sizes: Sizes = FULL) -> list[Metric]:
    scenario = load(SCHEDULES)
    expected, jobs = scenario.expected, os.cpu_count() or 1
    found = {
        "writes": expected.writes_min,
        "frames": expected.frames_min,
        "faults": expected.faults_min,
    }
    assert all(found[what] >= least for what, least in LEAST.items()), "the schedules are too small"
    rates: list[float] = []
    cpu_ms: list[float] = []
    for i in range(sizes.runs):
        progress(f"{sizes.seeds} schedules: {i + 1} of {sizes.runs}")
        seconds, cpu_s = _sweep(
            scenario, range(1 + i * sizes.seeds, 1 + (i + 1) * sizes.seeds), jobs
        )
        rates.append(sizes.seeds / seconds)
        cpu_ms.append(1000 * cpu_s / sizes.seeds)
    least = ", ".join(f">= {count} {what}" for what, count in LEAST.items())
    name = f"fault schedules of five nodes, each {least}"
    return [
        Metric(f"{name}, over {jobs} cores", "seeds/s", ">= 100", tuple(rates)),
        Metric(f"CPU of one: {name}", "ms", None, tuple(cpu_ms)),
    ]


def _sweep(scenario: Scenario, seeds: range, jobs: int) -> tuple[float, float]:
    """(wall, CPU) seconds of all these seeds. Every one of them must hold."""
    before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    found = Sweep(seeds)
    pool = Cores(scenario, jobs)
    try:
        for _ in sweep(pool, found):
            pass
    finally:
        pool.close()
    took_s = time.monotonic() - began_s
    assert found.failed is None, (found.failed.seed, found.failed.violations)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return took_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ---- a quiet day ----


def day(sizes: Sizes = FULL) -> list[Metric]:
    scenario = parse(
        {
            "duration_s": sizes.day_s,
            "quiet_s": 300,
            "sites": sizes.day_sites,
            "network": {"latency_ms": 40, "loss": 0.01},
            "workload": {"vpcs": 2, "endpoints": 3, "rate_per_s": 0.003},
        }
    )

    def once() -> float:
        began_s = time.monotonic()
        _held(run(scenario, 1, chance_of(1)))
        return time.monotonic() - began_s

    name = f"{sizes.day_s / 3600:g} virtual hours of {sizes.day_sites} sites, a write in five min"
    return [measure(name, "s", "<= 10", once, sizes.runs)]


# ---- a thousand sites ----


def thousand_sites(sizes: Sizes = FULL) -> list[Metric]:
    """One run: it takes minutes."""
    scenario = load(SCENARIOS / "thousand-sites.toml", small=sizes.small)
    progress("thousand-sites, one run")
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    with few_collections():
        result = _held(run(scenario, 1, chance_of(1)))
    cpu_s, took_s = time.process_time() - began_cpu_s, time.monotonic() - began_s
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows: Sequence[tuple[str, str, str | None, float | None]] = (
        ("wall time", "s", "<= 300", took_s),
        ("CPU time", "s", None, cpu_s),
        ("peak resident memory", "MiB", None, peak_mib),
        ("updates that are everywhere at the end", "share", ">= 1", result.reached),
        ("a write at every other node, p50", "s", None, result.push_p50_s),
        ("a write at every other node, p99", "s", "<= 1", result.push_p99_s),
        ("copies of an update that come to a node", "copies", "<= 5", result.copies),
        ("sent by a site", "B", None, result.bytes_per_site),
    )
    name = f"{len(scenario.sites)} sites, {len(scenario.node_names)} nodes, one run"
    assert all(value is not None for *_, value in rows)
    return [Metric(f"{what}: {name}", unit, target, (v or 0.0,)) for what, unit, target, v in rows]


def _held(result: Result) -> Result:
    assert result.ok, result.violations
    return result


SECTIONS: Mapping[str, Callable[..., list[Metric]]] = {
    "schedules": schedules,
    "day": day,
    "thousand-sites": thousand_sites,
}
