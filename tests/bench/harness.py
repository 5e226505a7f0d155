"""Measured values against targets, as a table and as JSON.

A metric is several runs of one measurement. Its value is their median, and `ok` says how that
compares with the target: nothing else decides.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import crdt

RUNS = 5
"""Of every metric. An even number would make the median a value nobody measured."""


@dataclass(frozen=True, slots=True)
class Metric:
    """`target` is a bound such as ">= 600000" or "<= 280", or None where there is none."""

    name: str
    unit: str
    target: str | None
    runs: tuple[float, ...]

    @property
    def value(self) -> float:
        return median(self.runs)

    @property
    def ok(self) -> bool | None:
        """Whether the median is within the target; None without one."""
        if self.target is None:
            return None
        relation, bound = self.target.split()
        if relation == ">=":
            return self.value >= float(bound)
        if relation == "<=":
            return self.value <= float(bound)
        raise ValueError(f"target {self.target!r}: neither >= nor <=")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "target": self.target,
            "ok": self.ok,
            "runs": list(self.runs),
        }


def progress(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()


def measure(
    name: str, unit: str, target: str | None, run: Callable[[], float], runs: int = RUNS
) -> Metric:
    """`runs` calls of `run`, each of which answers one value in `unit`."""
    values = []
    for i in range(runs):
        progress(f"{name}: {i + 1} of {runs}")
        values.append(run())
    return Metric(name, unit, target, tuple(values))


def cpu_s(step: Callable[[], object]) -> float:
    """Seconds of this process's CPU that `step` took: other work on the machine is not counted."""
    start = time.process_time()
    step()
    return time.process_time() - start


def resident_bytes() -> int:
    """Of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def in_child(*args: str) -> dict[str, float]:
    """What `python -m tests.bench.child ARGS` prints as JSON: memory needs a process of its own."""
    progress(f"{' '.join(args)}, in a process of its own")
    command = [sys.executable, "-m", "tests.bench.child", *args]
    found: dict[str, float] = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    )
    return found


def table(metrics: Sequence[Metric]) -> str:
    rows = [("metric", "median", "min - max", "unit", "target", "ok")]
    for metric in metrics:
        spread = f"{_short(min(metric.runs))} - {_short(max(metric.runs))}"
        verdict = {None: "-", True: "yes", False: "NO"}[metric.ok]
        target = metric.target or "-"
        rows.append((metric.name, _short(metric.value), spread, metric.unit, target, verdict))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, f"pure modules: {_core()}"]) + "\n"


def _core() -> str:
    return "compiled" if crdt.compiled() else "interpreted"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write(path: Path, part: str, metrics: Sequence[Metric]) -> None:
    """The results as CLI tools and later runs read them."""
    whole = {
        "part": part,
        "commit": _commit(),
        "machine": _machine(),
        "core": _core(),
        "metrics": [metric.to_json() for metric in metrics],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(whole, indent=1) + "\n")


def _commit() -> str:
    """The commit that is measured, with "+" after it when the checkout differs from it."""
    try:
        found = [
            subprocess.run(["git", *args], capture_output=True, text=True, check=True).stdout
            for args in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found[0].strip() + ("+" if found[1] else "")


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return f"{model}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
