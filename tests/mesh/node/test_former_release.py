"""The last release of the wire version before this one's, run as it was, and upgraded node by node:
both converge both ways, and nothing that was acknowledged is lost on the way."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mesh.core.wire import SPOKEN
from tests.mesh.node.processes import Process
from tests.ports import free_port
from tests.releases.pinned import environment, unpack

HERE = Path(__file__).parents[3]


@dataclass
class Node:
    """A directory, and the release that runs it now."""

    process: Process
    written: set[str] = field(default_factory=set)
    """addresses that were acknowledged"""

    def weft(self, release: Path, *arguments: str) -> dict[str, str]:
        """What a command of that release answers."""
        command = [sys.executable, "-m", "mesh.cli", *arguments, "--output", "json"]
        done = subprocess.run(
            command, cwd=release, env=environment(), capture_output=True, check=False, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return dict(json.loads(done.stdout))

    def made(self, release: Path, command: str, *arguments: str) -> Node:
        """Have the release make the directory."""
        place = ["--dir", str(self.process.home), "--node", self.process.name]
        place += ["--site", self.process.name[0], "--socket", "weft.sock"]
        self.weft(release, command, *arguments, *place, "--listen", self.process.addr)
        written = self.process.config.read_text()
        assert 'mode = "auto"' in written
        self.process.config.write_text(written.replace('mode = "auto"', 'mode = "memory"'))
        return self

    def run(self, release: Path) -> None:
        self.process.source, self.process.environment = release, environment()
        self.process.start()

    def write(self, count: int) -> None:
        """Claim so many addresses more, of this node's own."""
        place = ord(self.process.name[0]) - ord("a") + 1
        for _ in range(count):
            ip = f"10.0.{place}.{len(self.written) + 2}"
            self.process.until(lambda: "v" in self.process.vpcs(), "the VPC")
            code, answer = self.process.ask("POST", "/v1/endpoints", {"vpc": "v", "ip": ip})
            assert code == 200, answer
            self.written.add(ip)


@contextmanager
def nodes(home: Path, *names: str) -> Iterator[list[Node]]:
    made = [Node(Process(home / name, free_port())) for name in names]
    try:
        yield made
    finally:
        for node in made:
            node.process.kill()


def converge(*members: Node) -> None:
    """All show exactly what was acknowledged anywhere, and hold the same."""
    wanted = set().union(*(node.written for node in members))

    def seen(node: Node) -> set[str]:
        return {claim["ip"] for claim in node.process.ask("GET", "/v1/endpoints?vpc=v")[1]}

    def digests(node: Node) -> dict[str, str]:
        shards = node.process.status()["shards"]
        return {name: shard["digest"] for name, shard in shards.items()}

    for node in members:
        node.process.until(lambda node=node: seen(node) == wanted, "all of it")  # type: ignore[misc]
        node.process.until(
            lambda node=node: digests(node) == digests(members[0]),  # type: ignore[misc]
            "equal digests",
        )


VERSIONS = range(SPOKEN.lowest, SPOKEN.highest)
"""The former ones."""


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pinned_release_speaks_its_version_and_no_later_one(version: int) -> None:
    command = [sys.executable, "-c", "from mesh.core.wire import SPOKEN; print(SPOKEN.highest)"]
    release = unpack(version)
    told = subprocess.run(
        command, cwd=release, env=environment(), capture_output=True, check=True, text=True
    )
    assert int(told.stdout) == version


@pytest.mark.parametrize("version", VERSIONS)
def test_a_mesh_of_the_former_release_is_upgraded_node_by_node(
    tmp_path: Path, version: int
) -> None:
    former = unpack(version)
    with nodes(tmp_path, "a1", "b1") as (a, b):
        a.made(former, "init", "--mesh", "m").run(former)
        code, invited = a.process.ask("POST", "/v1/invitations", {"ttl_s": 600})
        assert code == 200, invited
        # This release joins a mesh of the former one.
        b.made(HERE, "join", invited["token"]).run(HERE)
        a.process.add_vpc("v", 7)
        subnet = {"name": "s", "vpc": "v", "cidr": "10.0.0.0/16", "sites": ["a", "b"]}
        assert a.process.ask("POST", "/v1/subnets", subnet)[0] == 200
        a.write(3)
        b.write(3)
        converge(a, b)
        # It is upgraded on its directory, and has missed something meanwhile.
        a.process.kill()
        b.write(3)
        a.run(HERE)
        converge(a, b)
        # And rolled back. (Its weft.toml has no fields that the former release does not know.)
        a.write(1)
        a.process.kill()
        b.write(3)
        a.run(former)
        a.write(3)
        converge(a, b)
