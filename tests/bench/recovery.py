"""How a node comes back, and what it costs to lose nothing: real processes, files and links, the
data plane in memory.

An acknowledged write is durable, so what one write after the other can reach is the disk's to say:
beside each rate stands how long the disk takes for one `fdatasync` of a page in the same directory,
measured around it, and a write's time as a multiple of that.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import node_mesh
from tests.bench.harness import Metric, progress
from tests.bench.node import (
    CHAIN_RECORDS,
    FIRST,
    RECORD_BYTES,
    Runs,
    nodes_cpu_s,
)
from tests.bench.node_mesh import Process, homes, mesh
from tests.soak.kills import kill_nodes

SEED = 1
PAGE_BYTES = 4096
SYNCS = 40
WRITERS = 16


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a bench is. `starts`, `kills` and `runs` of the sections of these names."""

    starts: int = 5
    endpoints: int = 1_000_000
    kills: int = 11
    runs: int = 5
    writes: int = 300
    imports: int = 50_000


FULL = Sizes()
SHORT = Sizes(starts=1, endpoints=4_000, kills=1, runs=1, writes=16, imports=2_000)
"""The same steps within seconds: for the tests."""


def metrics(sizes: Sizes = FULL) -> list[Metric]:
    return [metric for section in SECTIONS.values() for metric in section(sizes)]


def _start(sizes: Sizes = FULL) -> list[Metric]:
    """A node alone, so that nothing but its own disk brings it back."""
    runs = Runs()
    size = f"{sizes.endpoints:,} endpoints"
    with homes() as home:
        with mesh(home, 1, -(-sizes.endpoints // CHAIN_RECORDS)) as alone:
            (node,) = alone.nodes
            progress(f"filling {size}")
            before_bytes = _written_bytes(node)
            for number, vpc in enumerate(alone.vpcs):
                count = min(CHAIN_RECORDS, sizes.endpoints - number * CHAIN_RECORDS)
                node.ask("fill", vpc=vpc, first=FIRST, count=count)
            written_bytes = _written_bytes(node) - before_bytes
            config = node.config
        node_mesh.make_room(config)
        stored_bytes = (config.parent / "store.db").stat().st_size
        name = f"{size}, each"
        runs.add(f"{name}: bytes stored", "B", None, stored_bytes / sizes.endpoints)
        runs.add(f"{name}: bytes written, journal included", "B", None,
                 written_bytes / sizes.endpoints)  # fmt: skip
        runs.add(f"{name}: bytes written / key and record", "ratio", None,
                 written_bytes / sizes.endpoints / RECORD_BYTES)  # fmt: skip
        for run in range(sizes.starts):
            progress(f"start with {size}: {run + 1} of {sizes.starts}")
            began = node_mesh.start_of(config, sizes.endpoints)
            name = f"start with {size} stored"
            runs.add(f"{name}: API answers", "s", "<= 6", began.answer_s)
            runs.add(f"{name}: forwarding, API answers", "s", "<= 6", began.forwarding_s)
            runs.add(f"{name}: CPU by then", "s", None, began.cpu_s)
    return runs.metrics()


def _kill(sizes: Sizes = FULL) -> list[Metric]:
    """AssertionError when anything that was acknowledged is gone."""
    progress(f"kill -9 under 200 writes/s: {sizes.kills} times")
    with homes() as home:
        back_s = kill_nodes(home, sizes.kills, SEED)
    name = "kill -9 under 200 writes/s: from the next start to equal digests"
    return [
        Metric(name, "s", "<= 10", tuple(back_s)),
        Metric(f"{name}, the slowest", "s", "<= 10", (max(back_s),)),
    ]


def _writes(sizes: Sizes = FULL) -> list[Metric]:
    runs = Runs()
    with homes() as home, mesh(home, 1, sizes.runs) as alone:
        (node,) = alone.nodes
        for run, vpc in enumerate(alone.vpcs):
            progress(f"writes: {run + 1} of {sizes.runs}")
            ips = [_ip(FIRST + i) for i in range(2 * sizes.writes + sizes.imports)]
            singles, crowd, many = (
                ips[: sizes.writes], ips[sizes.writes : 2 * sizes.writes], ips[2 * sizes.writes :]
            )  # fmt: skip
            floors_s = _sync_times_s(home)
            took_s = _measured(runs, node, "one by one", ">= 300", singles, _one_by_one, vpc)
            floor_s = median(floors_s + _sync_times_s(home))
            runs.add("fdatasync of one page, beside them", "ms", None, floor_s * 1e3)
            name = "durable writes over the API, one by one: a write / one fdatasync"
            runs.add(name, "ratio", None, took_s / len(singles) / floor_s)
            _measured(runs, node, f"{WRITERS} at once", None, crowd, _at_once, vpc)
            _measured(runs, node, "imported, 1,000 a call", ">= 50000", many, _imported, vpc)
    return runs.metrics()


def _measured(
    runs: Runs,
    node: Process,
    how: str,
    target: str | None,
    ips: Sequence[str],
    step: Callable[..., None],
    vpc: str,
) -> float:
    """Seconds that `step` takes for these addresses."""
    before_bytes, before_s, start_s = _written_bytes(node), nodes_cpu_s([node]), time.monotonic()
    step(node.api, vpc, ips)
    took_s = time.monotonic() - start_s
    spent_s = nodes_cpu_s([node]) - before_s
    name = f"durable writes over the API, {how}"
    runs.add(name, "/s", target, len(ips) / took_s)
    runs.add(f"{name}: by the node's CPU", "/CPU s", None, len(ips) / max(spent_s, 1e-9))
    written_bytes = (_written_bytes(node) - before_bytes) / len(ips)
    runs.add(f"{name}: bytes written, each", "B", None, written_bytes)
    return took_s


def _one_by_one(api: Any, vpc: str, ips: Sequence[str]) -> None:
    for ip in ips:
        api.post("/v1/endpoints", {"vpc": vpc, "ip": ip})


def _imported(api: Any, vpc: str, ips: Sequence[str]) -> None:
    for first in range(0, len(ips), 1000):
        endpoints = [{"vpc": vpc, "ip": ip} for ip in ips[first : first + 1000]]
        answer = api.post("/v1/endpoints/import", {"endpoints": endpoints}, timeout_s=60)
        assert answer["taken"] == len(endpoints), answer


def _at_once(api: Any, vpc: str, ips: Sequence[str]) -> None:
    with ThreadPoolExecutor(WRITERS) as pool:
        shares = [ips[number::WRITERS] for number in range(WRITERS)]
        for done in [pool.submit(partial(_one_by_one, api, vpc), share) for share in shares]:
            done.result()


def _ip(index: int) -> str:
    return f"10.{index >> 16 & 0xFF}.{index >> 8 & 0xFF}.{index & 0xFF}"


def _sync_times_s(home: Path) -> list[float]:
    """What the disk takes to have one more page of a file for good."""
    spent_s = []
    with tempfile.TemporaryFile(dir=home, buffering=0) as file:
        for _ in range(SYNCS):
            file.write(bytes(PAGE_BYTES))
            start_s = time.perf_counter()
            os.fdatasync(file.fileno())
            spent_s.append(time.perf_counter() - start_s)
    return spent_s


def _written_bytes(node: Process) -> int:
    """What the process has had the kernel write to disks so far."""
    counts = Path(f"/proc/{node.pid}/io").read_text()
    found = re.search(r"^write_bytes: (\d+)", counts, re.MULTILINE)
    assert found is not None
    return int(found[1])


SECTIONS: dict[str, Callable[..., list[Metric]]] = {
    "start": _start,
    "kill": _kill,
    "writes": _writes,
}
