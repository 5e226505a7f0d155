"""Two nodes as processes, and a crowd of members who mean them harm; shared by tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.mesh.node.hostile_members import Victims
from tests.mesh.node.processes import new_mesh, running

LOOSE = 120
"""Members that are there to misbehave: some for each test."""
ENDPOINTS = 2000
"""What the nodes hold, so that there is something to ask for."""


@pytest.fixture(scope="session")
def victims(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    loose = [f"h{number}" for number in range(LOOSE)]
    nodes = new_mesh(tmp_path_factory.mktemp("victims"), ["a1", "b1"], loose)
    with running(list(nodes.values())):
        victims = Victims(nodes["a1"], nodes["b1"], loose)
        victims.fill(ENDPOINTS)
        yield victims
        for node in nodes.values():
            node.stop()
