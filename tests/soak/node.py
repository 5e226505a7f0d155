"""Real nodes under churn: endpoints come and go, one node is killed and started again, and after
each time nothing acknowledged is lost and all nodes hold the same. The first node lives all the
while: what it holds is watched from the beginning to the end."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.mesh.node.processes import Process, new_mesh, running
from tests.soak.slopes import LIMITS, grows, slope_per_hour

NAMES = ("a1", "b1", "c1")
ADDRESSES = 400
"""Endpoints that come and go: as many at the end as at the start, on average."""
ROUND_WRITES = 40
SETTLE_ROUNDS = 3
"""Rounds before samples count: pools and caches fill."""

Samples = dict[str, list[tuple[float, float]]]


@dataclass
class Report:
    """What was found. `rows` are (node, what, first, last, slope an hour, unit, grows)."""

    rounds: int = 0
    kills: int = 0
    writes: int = 0
    rows: list[tuple[str, str, float, float, float, str, bool]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not any(row[-1] for row in self.rows)


class Soak:
    """One run. `seed` makes the same choices again; the machine's timing is its own."""

    def __init__(self, nodes: dict[str, Process], seed: int) -> None:
        self.nodes = nodes
        self.chance = random.Random(seed)
        self.report = Report()
        self._lives: dict[str, list[Samples]] = {name: [] for name in nodes}
        self._claimed: dict[str, set[str]] = {name: set() for name in nodes}
        self._start_s = time.monotonic()

    def prepare(self) -> None:
        first = next(iter(self.nodes.values()))
        first.add_vpc("v", 7)
        subnet = {"name": "s", "vpc": "v", "cidr": "10.0.0.0/16", "site": ["a", "b", "c"]}
        subnet["sites"] = subnet.pop("site")
        code, answer = first.ask("POST", "/v1/subnets", subnet)
        assert code == 200, answer
        for node in self.nodes.values():
            node.until(lambda node=node: "v" in node.vpcs(), "the VPC")  # type: ignore[misc]

    def round(self) -> None:
        """Writes everywhere, with a kill in the middle of them every other time."""
        victim = None
        if self.report.rounds % 2:
            victim = self.nodes[self.chance.choice(sorted(self.nodes)[1:])]
        kill_at = self.chance.randrange(ROUND_WRITES)
        for number in range(ROUND_WRITES):
            node = self.nodes[self.chance.choice(sorted(self.nodes))]
            self._write(node)
            if victim is not None and number == kill_at:
                victim.kill()
                victim.start()
                self.report.kills += 1
        self._check()
        self.report.rounds += 1
        if self.report.rounds > SETTLE_ROUNDS:
            for name, node in self.nodes.items():
                self._sample(name, node, fresh=node is victim)

    def _write(self, node: Process) -> None:
        """Claim an address or give one up. Who is acknowledged is held to it."""
        mine = self._claimed[node.name]
        place = sorted(self.nodes).index(node.name)
        ip = f"10.0.{place + 1}.{self.chance.randrange(2, 2 + ADDRESSES // len(self.nodes))}"
        if ip in mine:
            code, answer = node.ask("DELETE", f"/v1/vpcs/v/endpoints/{ip}")
            mine.discard(ip)
        else:
            code, answer = node.ask("POST", "/v1/endpoints", {"vpc": "v", "ip": ip})
            mine.add(ip)
        assert code == 200, answer
        self.report.writes += 1

    def _check(self) -> None:
        """Every node shows exactly what was acknowledged, wherever it was written."""
        wanted = set().union(*self._claimed.values())
        for node in self.nodes.values():
            node.until(lambda node=node: self._seen(node) == wanted, "all that was acknowledged")  # type: ignore[misc]

    @staticmethod
    def _seen(node: Process) -> set[str]:
        return {endpoint["ip"] for endpoint in node.ask("GET", "/v1/endpoints?vpc=v")[1]}

    def _sample(self, name: str, node: Process, *, fresh: bool) -> None:
        usage = node.usage()
        at_s = time.monotonic() - self._start_s
        values = {
            "resident": usage.resident_bytes,
            "files": usage.files,
            "threads": usage.threads,
            "tasks": usage.tasks,
            "store": usage.store_bytes,
            "log": usage.log_bytes,
        }
        if fresh or not self._lives[name]:
            self._lives[name].append({what: [] for what in values})
        for what, value in values.items():
            self._lives[name][-1][what].append((at_s, float(value)))

    def finish(self) -> Report:
        """Fit the slopes: of each life of a process by itself, and the longest one counts; of what
        is on disk over all of them."""
        for name, lives in self._lives.items():
            for what, limit in LIMITS.items():
                if what in ("store", "log"):
                    samples = [sample for life in lives for sample in life[what]]
                else:
                    samples = max((life[what] for life in lives), key=_span_s, default=[])
                if not samples:
                    continue
                self.report.rows.append(
                    (
                        name, what, samples[0][1] / limit.scale, samples[-1][1] / limit.scale,
                        slope_per_hour(samples) / limit.scale, limit.unit, grows(samples, limit),
                    )
                )  # fmt: skip
        return self.report


def _span_s(samples: list[tuple[float, float]]) -> float:
    return samples[-1][0] - samples[0][0] if samples else 0.0


def soak(home: Path, seconds: float, seed: int, rounds: int = 0) -> Iterator[Report]:
    """For so long, and so many rounds at the least. Yields the report as it stands after each
    round, and at the end with its rows."""
    nodes = new_mesh(home, NAMES)
    with running(list(nodes.values())):
        run = Soak(nodes, seed)
        run.prepare()
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s or run.report.rounds < rounds:
            run.round()
            yield run.report
        yield run.finish()
        for node in nodes.values():
            with contextlib.suppress(AssertionError):
                node.stop()
