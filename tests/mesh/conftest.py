"""Nodes for the tests of the API and of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mesh.api_nodes import Running, founded, joined, running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nodes")


@pytest.fixture(scope="module")
def first(home: Path) -> Iterator[Running]:
    """The node that founded its mesh; shared by a module's tests."""
    with running(founded(home)) as node:
        yield node


@pytest.fixture(scope="module")
def second(home: Path, first: Running) -> Iterator[Running]:
    """A node of another site that joined `first`'s mesh."""
    with running(joined(home, first, "b1", "b", "127.0.0.2")) as node:
        yield node
