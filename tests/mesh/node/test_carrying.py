"""In which order a node stores and sends: a real store that can be held up, a real replica."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from mesh.core import wire
from mesh.core.effects import Send, Stored
from mesh.core.ops import NodeId
from mesh.core.replica import Replica
from mesh.node import carrying
from mesh.node.carrying import Carrier
from mesh.node.log import LimitedLog
from mesh.node.p2p.transport import Transport
from mesh.node.store import Store
from tests.mesh.core.test_replica import Wire, put

pytestmark = pytest.mark.trio
DEADLINE_S = 60.0


class Held(Store):
    """A store that carries nothing out while `free` is not set."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.free = threading.Event()
        self.free.set()

    def apply(self, effects: Sequence[Stored]) -> None:
        assert self.free.wait(DEADLINE_S)
        super().apply(effects)


class Sent:
    """What a carrier gives to the links, instead of a transport."""

    def __init__(self) -> None:
        self.frames: list[tuple[NodeId, wire.Frame | None]] = []
        self.news = trio.Event()

    def send(self, node: NodeId, frame: bytes, channel: str = "push") -> None:
        self.frames.append((node, wire.decode(frame)))
        self.news.set()
        self.news = trio.Event()

    def keys_to(self, node: NodeId) -> list[bytes]:
        deltas = [frame for peer, frame in self.frames if peer == node]
        return [
            key for f in deltas if isinstance(f, wire.Deltas) for d in f.deltas for key in d.puts
        ]

    async def until(self, node: NodeId, key: bytes) -> None:
        with trio.fail_after(DEADLINE_S):
            while key not in self.keys_to(node):
                await self.news.wait()


class Middle:
    """Node 1 between 0 and 2: what 0 writes comes to it by hand, and goes on by its carrier."""

    def __init__(self, store: Held) -> None:
        self.mesh = Wire(3)
        self.mesh.link(0, 1)
        self.mesh.link(1, 2)
        self.mesh.run()
        self.replica: Replica = self.mesh.replicas[1]
        self.store = store
        self.sent = Sent()
        self.carrier = Carrier(
            self.mesh.nodes[1],
            self.replica,
            store,
            cast("Transport", self.sent),
            LimitedLog(logging.getLogger("weft.test"), trio.current_time),
            {},
            lambda node: node.hex(),
            lambda: None,
        )

    def hear(self, key: bytes) -> None:
        """Take in a record that node 0 has written."""
        put(self.mesh.replicas[0], key)
        for effect in self.mesh.replicas[0].drain():
            if isinstance(effect, Send) and effect.peer == self.mesh.nodes[1]:
                self.replica.receive(self.mesh.nodes[0], effect.frame, self.mesh.now_ns)
        self.carrier.wake()

    def stored(self) -> set[bytes]:
        return {key for branch in self.store.load().branches for key in branch.records}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Held]:
    tmp_path.chmod(0o700)
    held = Held(tmp_path / "store.db")
    yield held
    held.free.set()
    held.close()


@asynccontextmanager
async def middle(store: Held) -> AsyncIterator[Any]:
    node = Middle(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.carrier.run)
        try:
            yield node
        finally:
            store.free.set()
            nursery.cancel_scope.cancel()


async def test_what_others_wrote_is_passed_on_while_it_is_being_stored(store: Held) -> None:
    async with middle(store) as node:
        store.free.clear()
        for key in (b"first", b"second"):
            node.hear(key)
            await node.sent.until(node.mesh.nodes[2], key)
        assert node.stored() == set()
        store.free.set()
        with trio.fail_after(DEADLINE_S):
            await node.carrier.durable()
        assert node.stored() == {b"first", b"second"}


async def test_what_a_node_wrote_is_stored_before_it_is_sent_and_after_what_came_before(
    store: Held,
) -> None:
    async with middle(store) as node:
        store.free.clear()
        node.hear(b"theirs")
        await node.sent.until(node.mesh.nodes[2], b"theirs")
        put(node.replica, b"ours")
        done = trio.Event()

        async def wait() -> None:
            await node.carrier.durable()
            assert {b"theirs", b"ours"} <= node.stored()
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert b"ours" not in node.sent.keys_to(node.mesh.nodes[0])
            assert not done.is_set()
            store.free.set()
            with trio.fail_after(DEADLINE_S):
                await done.wait()
            await node.sent.until(node.mesh.nodes[0], b"ours")


async def test_what_waits_for_the_store_is_bounded(
    store: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrying, "UNSTORED_RECORDS_MAX", 2)
    async with middle(store) as node:
        store.free.clear()
        for key in (b"1", b"2", b"3"):
            node.hear(key)
            await node.sent.until(node.mesh.nodes[2], key)
        node.hear(b"4")
        await trio.testing.wait_all_tasks_blocked()
        assert b"4" not in node.sent.keys_to(node.mesh.nodes[2])
        store.free.set()
        await node.sent.until(node.mesh.nodes[2], b"4")
