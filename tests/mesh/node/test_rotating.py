"""A node's new key on real nodes: under traffic, cut off, after restarts, in snapshots, killed."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from mesh.core import ed25519
from mesh.core.errors import BadInput, NotReady, Refused
from mesh.node import rotating
from mesh.node.backup import restore, save
from mesh.node.config import read_config
from mesh.node.keys import next_seed, read_seed
from mesh.node.node import Node
from mesh.node.setup import found, join
from mesh.node.store import StoreError
from tests.mesh.node.test_node import equal, new_node, opened, running, until, write_vpc

if TYPE_CHECKING:
    from trio_typing import TaskStatus

pytestmark = pytest.mark.trio


def key_of(node: Node, whose: Node) -> bytes:
    return node.replica.roster.members()[whose.id].key


def linked(*nodes: Node) -> bool:
    """Whether all have links to all others, each made with the keys in use."""
    return all(
        {peer.node for peer in node.transport.peers()} == {o.id for o in nodes if o is not node}
        and all(
            link.session.key == node.replica.roster.members()[link.node].key
            for link in node.transport._links.values()
        )
        for node in nodes
    )


@asynccontextmanager
async def three(home: Path) -> AsyncIterator[tuple[Node, Node, Node]]:
    first = found(new_node(home, "a1", "a"), "m")
    async with running(first.config) as a:
        await write_vpc(a)
        second = await join(new_node(home, "b1", "b"), await opened(a))
        third = await join(new_node(home, "c1", "c"), await a.joining.invite("", 60))
        async with running(second.config) as b, running(third.config) as c:
            await until(lambda: linked(a, b, c) and b.replica.writable and c.replica.writable)
            await until(lambda: not any(node.replica.unheard() for node in (a, b, c)))
            yield a, b, c


async def add_vpcs(node: Node, start: int, count: int) -> None:
    for number in range(start, start + count):
        add = partial(node.writer.add_vpc, f"v{number}", number, ["10.0.0.0/16"])
        await node.submit(partial(add, now_ns=1))


async def test_an_admin_rotates_under_traffic_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    async with three(tmp_path) as (a, b, c):
        before = read_seed(a.config.node_key_path, "node")
        async with trio.open_nursery() as nursery:
            for number, node in enumerate((a, b, c)):
                nursery.start_soon(add_vpcs, node, 100 * (number + 1), 40)
            await a.rotating.rotate()
        seed = read_seed(a.config.node_key_path, "node")
        assert seed != before
        assert next_seed(a.config.node_key_path) is None
        assert a.config.node_key_path.stat().st_mode & 0o777 == 0o600
        await until(lambda: linked(a, b, c) and equal(a, b, c))
        assert len(c.view.vpcs) == 121
        for node in (a, b, c):
            assert key_of(node, a) == ed25519.public_key(seed)
            assert node.damaged_branches == 0
        fourth = await join(new_node(tmp_path, "d1", "d"), await opened(a))
        async with running(fourth.config) as d:
            await until(lambda: equal(a, b, c, d))
    async with running(a.config.path) as again:
        assert (again.id, again.damaged_branches) == (a.id, 0)
        await write_vpc(again)
        async with running(b.config.path) as b:
            assert b.damaged_branches == 0
            await until(lambda: linked(again, b) and equal(again, b))


@pytest.mark.parametrize("dials", ["the one that rotated", "the one that does not know"])
async def test_two_that_were_cut_off_let_each_other_in_again(tmp_path: Path, dials: str) -> None:
    """Nobody else could tell the peer: what is shown in the handshake is all that it has."""
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        await write_vpc(a)
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await until(lambda: linked(a, b) and b.id in a.view.gateways and equal(a, b))
            await until(lambda: not a.replica.unheard())
        for _ in range(2):
            await a.rotating.rotate()
            await add_vpcs(a, 100 + a.replica.roster.members()[a.id].rotations, 1)
        async with trio.open_nursery() as nursery:
            knows_not = Node(read_config(second.config))
            silent = a if dials == "the one that does not know" else knows_not
            set_targets = silent.transport.set_targets

            def never_dial(targets: Mapping[bytes, Sequence[str]]) -> None:
                set_targets(dict.fromkeys(targets, ()))

            silent.transport.set_targets = never_dial  # type: ignore[method-assign]
            silent.neighbours.dial_members()
            await nursery.start(knows_not.run, _no_api)
            await until(lambda: linked(a, knows_not) and equal(a, knows_not))
            assert knows_not.replica.roster.members()[a.id].rotations == 2
            nursery.cancel_scope.cancel()


async def test_who_has_not_heard_a_member_since_it_started_keeps_its_key(tmp_path: Path) -> None:
    """It may be a backup, of which the other has later writes."""
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await until(lambda: linked(a, b) and not a.replica.unheard())
        assert not a.replica.unheard(), "it has been heard, and is away since"
    async with running(first.config) as a:
        before = key_of(a, a)
        with pytest.raises(Refused, match=r"not heard since this node started: b1; .* --force"):
            await a.rotating.rotate()
        assert key_of(a, a) == before
        assert next_seed(a.config.node_key_path) is None
        async with running(second.config) as b:
            await until(lambda: linked(a, b) and not a.replica.unheard())
        await a.rotating.rotate()
        assert key_of(a, a) != before
    async with running(first.config) as a:
        before = key_of(a, a)
        await until(lambda: a.replica.writable)
        await a.rotating.rotate(force=True)
        assert key_of(a, a) != before


async def _no_api(
    _node: object, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    task_status.started()
    await trio.sleep_forever()


async def test_a_snapshot_made_after_it_starts_and_one_made_before_says_why_not(
    tmp_path: Path,
) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(made.config) as a:
        await write_vpc(a)
        old_key = a.config.node_key_path.read_bytes()
        await a.rotating.rotate()
        await a.durable()
        save(a.store, a.config, tmp_path / "after")
    again = restore(tmp_path / "after", tmp_path / "again")
    async with running(again.config) as restored:
        assert (restored.id, restored.damaged_branches) == (a.id, 0)
        await until(lambda: restored.replica.writable)
        await add_vpcs(restored, 100, 1)
    a.config.node_key_path.write_bytes(old_key)
    with pytest.raises(BadInput, match="was replaced by another"):
        Node(read_config(made.config))


async def test_a_store_that_fails_leaves_the_old_key_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(made.config) as a:
        await write_vpc(a)
        before = read_seed(a.config.node_key_path, "node")
        apply = a.store.apply

        def full(effects: object) -> None:
            raise StoreError("disk full")

        a.store.apply = full  # type: ignore[method-assign]
        with pytest.raises(NotReady, match="disk full"):
            a.rotating._switch(b"n" * 32)
        a.store.apply = apply  # type: ignore[method-assign]
        assert a.replica.roster.members()[a.id].rotations == 0
        assert read_seed(a.config.node_key_path, "node") == before
        await add_vpcs(a, 100, 1)
        directory = a.config.node_key_path.parent

        def refused(path: Path) -> bytes:
            raise PermissionError(13, "read-only")

        with monkeypatch.context() as patched:
            patched.setattr(rotating, "prepare_next", refused)
            with pytest.raises(NotReady, match="no new key"):
                await a.rotating.rotate()
        await a.rotating.rotate()
        assert not [p for p in directory.iterdir() if p.name.startswith("node.key.")]


KILLED = """
import os, sys, trio
from functools import partial
from pathlib import Path
from mesh.node import keys, rotating
from mesh.node.config import read_config
from mesh.node.node import Node

step, config = sys.argv[1], read_config(Path(sys.argv[2]))
def die(*args):
    os._exit(9)
def half(path, kind, seed):
    keys.write_file(path, b"weft-node-key-1 00")
    die()
def after(call, *args):
    call(*args)
    die()
match step:
    case "before the key file": rotating.prepare_next = die
    case "in the key file": keys.write_seed = half
    case "after the key file": rotating.prepare_next = partial(after, keys.prepare_next)
    case "after the statement": rotating.take_next = die
    case "after the replacement": rotating.take_next = partial(after, keys.take_next)
async def api(node, *, task_status):
    task_status.started()
    await trio.sleep_forever()
async def main():
    node = Node(config)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run, api)
        while not node.replica.writable or node.id not in node.view.gateways:
            await trio.sleep(0.01)
        if step == "before the statement":
            node.rotating._store = type("", (), {"apply": die})()
        await node.rotating.rotate()
        os._exit(0)
trio.run(main)
"""


@pytest.mark.parametrize(
    ("step", "rotations"),
    [
        ("before the key file", 0),
        ("in the key file", 0),
        ("after the key file", 0),
        ("before the statement", 0),
        ("after the statement", 1),
        ("after the replacement", 1),
    ],
)
async def test_killed_at_any_step_it_starts_with_the_right_key(
    tmp_path: Path, step: str, rotations: int
) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    done = await trio.run_process(
        [sys.executable, "-c", KILLED, step, str(made.config)],
        check=False,
        capture_stderr=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 9, done.stderr.decode()
    async with running(made.config) as again:
        assert again.damaged_branches == 0
        assert again.replica.roster.members()[again.id].rotations == rotations
        seed = read_seed(again.config.node_key_path, "node")
        assert key_of(again, again) == ed25519.public_key(seed)
        await write_vpc(again)
        await again.rotating.rotate()
        assert again.replica.roster.members()[again.id].rotations == rotations + 1
        assert next_seed(again.config.node_key_path) is None
        await add_vpcs(again, 100, 1)
