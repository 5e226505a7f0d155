"""Whole nodes as processes of their own (`weft run`): real files, links on loopback, the data plane
in memory. Directories are made offline, so that a mesh of any size starts at once; members that no
process runs for have keys that a test can misuse."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mesh.core import ed25519
from mesh.core.effects import PersistStatements
from mesh.core.roster import Roster
from mesh.core.statements import found_mesh
from mesh.node.config import write_config
from mesh.node.keys import make_private_directory, write_seed
from mesh.node.setup import NewNode
from mesh.node.store import Store
from tests.mesh.api_nodes import in_memory
from tests.ports import free_port

DEADLINE_S = 60.0
"""For what takes a second or two on a machine that does nothing else."""
ANSWER_S = 60.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Usage:
    """What a process holds, and what it has written."""

    resident_bytes: int
    files: int
    threads: int
    tasks: int
    store_bytes: int
    """the database and its journal"""
    log_bytes: int


def seed_of(name: str) -> bytes:
    return hashlib.sha256(b"seed of " + name.encode()).digest()


def id_of(name: str) -> bytes:
    return ed25519.node_id(ed25519.public_key(seed_of(name)))


def site_of(name: str) -> str:
    """A node's site is its name's first letter."""
    return name[0]


class Process:
    """One node's directory, and the process that runs it, if any."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.name = home.name
        self.port = port
        self.config = home / "weft.toml"
        self.log = home / "log"
        self.source = Path(__file__).parents[3]
        """the tree that it runs from: another release's, perhaps"""
        self.environment: dict[str, str] | None = None
        """None: this process's"""
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def addr(self) -> str:
        return f"/ip4/127.0.0.1/tcp/{self.port}"

    @property
    def pid(self) -> int:
        assert self._child is not None, f"{self.name} does not run"
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self, *, wait: bool = True, netns: str = "") -> None:
        """Start it, in a network namespace if one is named; `wait`: until it takes writes."""
        command = [sys.executable, "-m", "mesh.cli", "run", "--config", str(self.config)]
        if netns:
            command = ["ip", "netns", "exec", netns, *command]
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.source, env=self.environment
            )
        if wait:
            self.until(lambda: bool(self.status()["ready"]), "ready")

    def kill(self) -> None:
        """SIGKILL, whatever it does."""
        if self._child is not None:
            self._child.kill()
            self._child.wait(DEADLINE_S)
            self._child = None

    def stop(self) -> None:
        """SIGTERM, and an orderly end."""
        assert self._child is not None
        self._child.send_signal(signal.SIGTERM)
        code = self._child.wait(DEADLINE_S)
        self._child = None
        assert code == 0, f"{self.name} ended with {code}:\n{self.last_words()}"

    def last_words(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]

    # ---- asking ----

    def ask(
        self, method: str, path: str, body: object = None, timeout_s: float = ANSWER_S
    ) -> tuple[int, Any]:
        """Status and JSON document (or text). Raises OSError when nobody answers in time."""
        connection = http.client.HTTPConnection("node", timeout=timeout_s)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout_s)
        try:
            connection.sock.connect(str(self.home / "weft.sock"))
            connection.request(method, path, None if body is None else json.dumps(body).encode())
            response = connection.getresponse()
            text = response.read().decode()
        except http.client.HTTPException as error:  # it was killed in the middle
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()
        is_json = response.headers["content-type"].startswith("application/json")
        return response.status, json.loads(text) if is_json else text

    def status(self, timeout_s: float = ANSWER_S) -> Json:
        code, answer = self.ask("GET", "/v1/status", timeout_s=timeout_s)
        assert code == 200, answer
        return dict(answer)

    def until(self, holds: Callable[[], bool], what: str, within_s: float = DEADLINE_S) -> None:
        """Wait for something that an answer of the node shows; a node that ended is an error."""
        end_s = time.monotonic() + within_s
        while True:
            assert self.running, f"{self.name} has ended:\n{self.last_words()}"
            with contextlib.suppress(OSError):
                if holds():
                    return
            assert time.monotonic() < end_s, (
                f"{self.name}: not within {within_s:g} s: {what}\n{self.last_words()}"
            )
            time.sleep(0.02)

    def add_vpc(self, name: str, vni: int) -> None:
        code, answer = self.ask(
            "POST", "/v1/vpcs", {"name": name, "vni": vni, "cidrs": ["10.0.0.0/16"]}
        )
        assert code == 200, answer

    def vpcs(self) -> set[str]:
        code, answer = self.ask("GET", "/v1/vpcs")
        assert code == 200, answer
        return {vpc["name"] for vpc in answer}

    # ---- measuring ----

    def waited_s(self) -> float:
        """How long its main thread and the calling one have been ready to run and did not: others
        had the processors. 0 where the kernel does not count it (schedstat's second number)."""
        waited_ns = 0
        for place in (f"/proc/{self.pid}/schedstat", "/proc/thread-self/schedstat"):
            with contextlib.suppress(OSError):
                waited_ns += int(Path(place).read_text().split()[1])
        return waited_ns / 1e9

    def usage(self) -> Usage:
        """Raises OSError when it has just ended."""
        proc = Path("/proc") / str(self.pid)
        pages = int((proc / "statm").read_text().split()[1])
        metrics = self.ask("GET", "/metrics")[1]
        tasks = re.search(r"^weft_tasks (\d+)", metrics, re.MULTILINE)
        assert tasks is not None
        return Usage(
            pages * os.sysconf("SC_PAGE_SIZE"),
            sum(1 for _ in (proc / "fd").iterdir()),
            sum(1 for _ in (proc / "task").iterdir()),
            int(tasks[1]),
            sum(file.stat().st_size for file in self.home.glob("store.db*")),
            self.log.stat().st_size,
        )


def new_mesh(home: Path, names: Sequence[str], loose: Sequence[str] = ()) -> dict[str, Process]:
    """Directories of the nodes `names`, the first one an admin; `loose` are members without one."""
    founder = names[0]
    root_seed = seed_of("root of " + founder)
    founding = found_mesh("edge", root_seed, seed_of(founder), founder, site_of(founder))
    roster = Roster.founded_by(founding)
    for name in (*names[1:], *loose):
        key = ed25519.public_key(seed_of(name))
        roster.add([roster.admit(seed_of(founder), key, name, site_of(name))])
    nodes = {name: Process(home / name, free_port()) for name in names}
    for name, process in nodes.items():
        make_private_directory(process.home)
        write_seed(process.home / "node.key", "node", seed_of(name))
        store = Store(process.home / "store.db")
        store.apply([PersistStatements(tuple(roster.statements()))])
        for other in nodes.values():
            if other is not process:
                store.add_address(id_of(other.name), other.addr, 1)
        store.close()
        new = NewNode(process.home, site_of(name), name, None, process.addr, "weft.sock")
        write_config(new.config(process.home, "edge", roster.mesh_id))
        in_memory(process.config)
    return nodes


@contextmanager
def running(nodes: Sequence[Process]) -> Iterator[None]:
    """All of them run, and are linked with each other; none does when the block ends."""
    try:
        for node in nodes:
            node.start(wait=False)
        for node in nodes:
            node.until(
                lambda node=node: (  # type: ignore[misc]
                    node.status()["ready"] and node.status()["peers"]["connected"] >= len(nodes) - 1
                ),
                "ready and linked",
            )
        yield
    finally:
        for node in nodes:
            node.kill()
