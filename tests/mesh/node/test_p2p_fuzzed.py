"""Nearly right bytes on every stream that a link knows, over real sockets: what they cost is the
stream, or the link of who sent them."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from mesh.core.errors import PeerError
from mesh.node.p2p import session
from mesh.node.p2p.circuit import HOP_PROTOCOL, STOP_PROTOCOL
from mesh.node.p2p.link import CHANNEL_PROTOCOLS, LINK_PROTOCOL
from mesh.node.p2p.punch import PUNCH_PROTOCOL
from mesh.node.p2p.session import Session, Stream
from mesh.node.p2p.transport import Transport
from tests.fuzz.mutate import mutated
from tests.fuzz.seeds import seeds
from tests.mesh.node.p2p_peers import Members, MemoryNet, Peer, eventually, running
from tests.mesh.node.test_p2p_hostile import open_link, session_with, still_links
from tests.own_time import OWN_TIME

pytestmark = OWN_TIME

TRIES = 40
YAMUX = [
    bytes((0, kind, 0, flags)) + stream.to_bytes(4, "big") + length.to_bytes(4, "big") + body
    for kind, flags, stream, length, body in (
        (0, 0, 1, 3, b"abc"), (0, 1, 7, 0, b""), (1, 0, 1, 65536, b""), (1, 2, 3, 0, b""),
        (2, 1, 0, 9, b""), (3, 0, 0, 0, b""), (0, 4, 1, 0, b""), (0, 8, 3, 0, b""),
    )
]  # fmt: skip
"""Frames of Yamux: data, windows, a ping, and the end of everything."""


def inputs(name: str) -> list[bytes]:
    chance, right = random.Random(name), seeds()[name]
    return [mutated(chance, right) for _ in range(TRIES)]


@pytest.mark.parametrize(("protocol", "name"), [(HOP_PROTOCOL, "hop"), (STOP_PROTOCOL, "stop")])
async def test_questions_about_circuits_cost_their_streams(
    protocol: str, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "STREAMS_BURST", 1000)
    r, a, b = (Peer(n, Members([1, 2, 3])) for n in (1, 2, 3))
    async with running(r, b):
        async with session_with(r, a.number) as own:
            await open_link(own)
            await r.until_linked(a)
            for data in inputs(name):
                stream = await own.open_stream(protocol)
                with contextlib.suppress(PeerError):
                    await stream.write(data, 5)
                    await stream.finish()
            assert r.linked(a) and not r.downs(a)
            await still_links(r, b)
        await eventually(r.idle)
    assert "internal" not in caplog.text


async def test_messages_about_punching_cost_their_streams(
    autojump_clock: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(session, "STREAMS_BURST", 1000)
    net = MemoryNet()
    net.cut = {frozenset((1, 2))}
    members = Members([1, 2, 3])
    a, b, _ = peers = [Peer(n, members, net=net.view(n)) for n in (1, 2, 3)]
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        await a.until_linked(b)
        await b.until_linked(a)
        link = a.transport._links[b.id]
        for data in inputs("punch"):
            with contextlib.suppress(PeerError):
                stream = await link.session.open_stream(PUNCH_PROTOCOL)
                await stream.write(data, 5)
                await stream.finish()
            await eventually(lambda: not b.transport.traversal._punching)
        assert not a.downs(b) and not b.downs(a)
        assert a.linked(b)
    assert "internal" not in caplog.text


async def on_control(own: Session, streams: dict[str, Stream], data: bytes) -> None:
    await streams[LINK_PROTOCOL].write(data, 5)


async def on_frames(own: Session, streams: dict[str, Stream], data: bytes) -> None:
    await streams[CHANNEL_PROTOCOLS["sync"]].write(data, 5)


async def under_streams(own: Session, streams: dict[str, Stream], data: bytes) -> None:
    await own._muxer.secured_conn.write(data)


@pytest.mark.parametrize(
    ("deed", "name"), [(on_control, "link"), (on_frames, "frames"), (under_streams, "yamux")]
)
async def test_what_is_said_on_a_link_costs_that_link_at_most(
    deed: Callable[[Session, dict[str, Stream], bytes], Awaitable[None]],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    chance = random.Random(name)
    right = YAMUX if name == "yamux" else seeds()[name]
    a, b, c = (Peer(n, Members([1, 2, 3])) for n in (1, 2, 3))
    async with running(a, c):
        await still_links(a, c)
        for _ in range(TRIES // 4):
            async with session_with(a, b.number) as own:
                with contextlib.suppress(Exception):
                    streams = await open_link(own)
                    await a.until_linked(b)
                    for _ in range(5):
                        await deed(own, streams, mutated(chance, right))
                        await trio.lowlevel.checkpoint()
            await eventually(lambda: not a.linked(b))
        assert a.linked(c) and not a.downs(c)
        assert not any("internal" in reason for reason in a.downs(b)), a.downs(b)
        await eventually(lambda: _links(a.transport) == 1)
    assert "internal" not in caplog.text


def _links(transport: Transport) -> int:
    return len(transport._pulse.watches)
