"""Nodes of releases that follow each other, in one mesh on real links.

The one before this and the one to come are as the simulator has them (`sim.core.releases`): what
the latter says on a link of this release's version has fields and kinds that this one does not
know. What version 1 itself is stays pinned by bytes it made (`test_forms`), and by that release
itself (`test_former_release`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from mesh.node.node import Node
from mesh.node.setup import found, join
from sim.core.releases import codec_of
from tests.mesh.node import test_node
from tests.mesh.node.test_node import equal, new_node, opened, until, write_vpc

pytestmark = pytest.mark.trio


def of_release(node: Node, release: int) -> None:
    node.replica._codec = codec_of(release)
    node.transport._speaks = node.replica._codec.speaks


@asynccontextmanager
async def running(config: Path, release: int) -> AsyncIterator[Node]:
    """The node, which is of that release before it has any link."""
    made = Node.__init__

    def make(self: Node, *args: object, **kwargs: object) -> None:
        made(self, *args, **kwargs)  # type: ignore[arg-type]
        of_release(self, release)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Node, "__init__", make)
        scope = test_node.running(config)
        node = await scope.__aenter__()
    try:
        yield node
    finally:
        await scope.__aexit__(None, None, None)


async def write(node: Node, number: int) -> None:
    await until(lambda: node.replica.writable)
    add = partial(node.writer.add_vpc, f"v{number}", number, ["10.0.0.0/16"], now_ns=1)
    await node.submit(add)


def spoken(node: Node, peer: Node) -> int | None:
    return node.replica._versions.get(peer.id)


async def test_a_mesh_is_upgraded_node_by_node_and_takes_writes_meanwhile(tmp_path: Path) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config, 1) as a:
        configs = [
            (await join(new_node(tmp_path, name, name[0]), await opened(a))).config
            for name in ("b1", "c1")
        ]
        await write_vpc(a)
        async with running(configs[0], 1) as b:
            await write(b, 11)
            await until(lambda: equal(a, b))
        async with running(configs[0], 2) as b:
            await write(b, 12)
            await write(a, 13)
            await until(lambda: equal(a, b) and spoken(a, b) == spoken(b, a) == 1)
            async with running(configs[1], 2) as c:
                await until(lambda: equal(a, b, c) and spoken(b, c) == spoken(c, b) == 2)
            async with running(configs[1], 3) as c:
                # Two releases apart: these two hear of each other through the one in between.
                await write(c, 14)
                await write(a, 15)
                await until(lambda: equal(a, b, c) and spoken(b, c) == spoken(c, b) == 2)
                assert "peer.incompatible" in a.alarms | c.alarms
                assert len(a.view.vpcs) == 6
    async with running(first.config, 2) as a, running(configs[0], 2) as b:
        await write(a, 16)
        await write(b, 17)
        await until(lambda: equal(a, b) and spoken(a, b) == spoken(b, a) == 2)
    async with running(first.config, 1) as a, running(configs[0], 2) as b:  # and back again
        await write(a, 18)
        await until(lambda: equal(a, b) and spoken(a, b) == 1 and len(a.view.vpcs) == 9)
