"""Real nodes on loopback for a bench: founded, joined, started as processes, asked by pipe.

The data plane is in memory: what is measured ends with the compiled rows.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mesh.cli.client import Client
from mesh.core.errors import NotReady, Refused
from mesh.node.config import read_config, render_config
from tests.bench.harness import progress
from tests.mesh.api_nodes import Running, founded, joined, running

DEADLINE_S = 300.0
POLL_S = 0.02
JOIN_RETRY_S = 1.0

Sent = dict[tuple[str, str], int]
"""(own end, other end) of a connection -> bytes"""


class Process:
    """One node that runs: `tests.bench.node_child` with its pipes."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.name = config.parent.name
        (addr, *_) = read_config(config).listen
        self.port = int(addr.split("/")[4])
        self.started_ns = time.monotonic_ns()
        with (config.parent / "log").open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.node_child", str(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def api(self) -> Client:
        return Client(read_config(self.config).socket_path)

    def take(self) -> Any:
        """The next answer."""
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            log = (self.config.parent / "log").read_text()[-2000:]
            raise RuntimeError(f"{self.name} has ended: {log}")
        return json.loads(line)

    def tell(self, name: str, **arguments: object) -> None:
        """Ask without waiting for the answer."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([name, arguments]) + "\n")
        self._child.stdin.flush()

    def ask(self, name: str, **arguments: object) -> Any:
        self.tell(name, **arguments)
        return self.take()

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.tell("stop")
        try:
            self._child.wait(30)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


class Mesh:
    """The processes, by the order in which they joined."""

    def __init__(self, nodes: list[Process], vpcs: list[str]) -> None:
        self.nodes = nodes
        self.vpcs = vpcs

    def all(self, name: str, **arguments: object) -> list[Any]:
        """Ask all at once."""
        for node in self.nodes:
            node.tell(name, **arguments)
        return [node.take() for node in self.nodes]

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        until(what, holds)

    def equal(self) -> bool:
        return len({tuple(digests) for digests in self.all("digests")}) == 1


def until(what: str, holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not holds():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not within {DEADLINE_S:.0f} s: {what}")
        time.sleep(POLL_S)


@contextmanager
def homes() -> Iterator[Path]:
    """A directory for nodes, gone at the end."""
    home = Path(tempfile.mkdtemp(prefix="weft-bench-"))
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


def site_of(number: int) -> str:
    return f"s{number % 5}"


def members(home: Path, count: int) -> list[Path]:
    """The configurations of `count` members of a new mesh."""
    configs = [founded(home, "n0", site_of(0))]
    with running(configs[0]) as first:
        for i in range(1, count):
            configs.append(_joined(home, first, i))
    return configs


def make_room(config: Path) -> None:
    """For a million endpoints in its data plane, which by default is for a site's share."""
    config.write_text(render_config(replace(read_config(config), endpoints_max=1 << 20)))


def _joined(home: Path, inviter: Running, number: int) -> Path:
    """An inviter takes few joins a second: a crowd waits for its turn."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            return joined(home, inviter, f"n{number}", site_of(number), f"127.0.1.{number}")
        except (Refused, NotReady):
            if time.monotonic() > deadline_s:
                raise
            time.sleep(JOIN_RETRY_S)


@contextmanager
def started(configs: Sequence[Path]) -> Iterator[list[Process]]:
    """The processes, once all take writes; stopped at the end."""
    with ExitStack() as stack:
        nodes = []
        for config in configs:
            node = Process(config)
            stack.callback(node.stop)
            nodes.append(node)
        for node in nodes:
            node.take()
        for node in nodes:
            until(f"{node.name} takes writes", lambda node=node: node.ask("ready"))  # type: ignore[misc]
        yield nodes


@contextmanager
def mesh(home: Path, count: int, vpcs: int = 1) -> Iterator[Mesh]:
    """Linked nodes that all know the same VPCs, each of all sites."""
    progress(f"{count} nodes: founding, joining, starting")
    with started(members(home, count)) as nodes:
        names = [f"v{i}" for i in range(vpcs)]
        sites = sorted({site_of(i) for i in range(count)})
        found = Mesh(nodes, nodes[0].ask("vpc", names=names, sites=sites))
        until("all know the VPCs", lambda: set(found.all("vpcs")) == {vpcs})
        until("all have links", lambda: min(found.all("peers")) >= min(4, count - 1))
        yield found


@dataclass(frozen=True, slots=True)
class Start:
    """Seconds from the start of `weft run`, and its CPU by the last of them."""

    answer_s: float
    """to the first answer of its API"""
    forwarding_s: float
    """to all rows in its data plane"""
    cpu_s: float


def start_of(config: Path, endpoints: int = 0) -> Start:
    """Start `weft run`, wait until it answers and forwards so many endpoints, and stop it."""
    client = Client(read_config(config).socket_path)
    command = [sys.executable, "-m", "mesh.cli", "run", "--config", str(config)]
    start_s = time.monotonic()
    answer_s = 0.0
    with (config.parent / "log").open("ab") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        while True:
            try:
                rows = client.get("/v1/status")["dataplane"]
                now_s = time.monotonic() - start_s
                answer_s = answer_s or now_s
                if rows["synced"] and rows["endpoints"] >= endpoints:
                    stat = Path(f"/proc/{child.pid}/stat").read_text()
                    spent = map(int, stat.rpartition(")")[2].split()[11:13])
                    return Start(answer_s, now_s, sum(spent) / os.sysconf("SC_CLK_TCK"))
            except NotReady:
                if child.poll() is not None:
                    raise
            if time.monotonic() - start_s > DEADLINE_S:
                raise RuntimeError(f"{config}: not within {DEADLINE_S:.0f} s: it forwards")
            time.sleep(POLL_S)
    finally:
        child.terminate()
        child.wait(60)


def sent_since(before: Sent, now: Sent) -> int:
    """Bytes. Of a connection that has ended since, nothing is known any more."""
    return sum(max(0, count - before.get(ends, 0)) for ends, count in now.items())


def sent_bytes(ports: Sequence[int]) -> Sent:
    """What has been sent above TCP over the connections to these ports, by both their ends."""
    done = subprocess.run(["ss", "-tinOH"], capture_output=True, text=True, check=True).stdout
    found: Sent = {}
    for line in done.splitlines():
        words = line.split()
        if words and words[0] == "ESTAB":
            ends = {int(end.rpartition(":")[2]) for end in words[3:5]}
            sent = re.search(r"bytes_sent:(\d+)", line)
            if ends & set(ports) and sent:
                found[words[3], words[4]] = int(sent[1])
    return found
