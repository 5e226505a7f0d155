"""What a peer, or somebody who is none, can do to a node over real sockets: lose its own link."""

from __future__ import annotations

import contextlib
import logging
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
import trio

from mesh.core.errors import PeerError
from mesh.node.p2p.dialler import ATTEMPTS_PER_PEER_MAX
from mesh.node.p2p.events import PeerDown, PeerUp
from mesh.node.p2p.framing import FRAME_BYTES_MAX, FrameReader, pack
from mesh.node.p2p.link import CHANNEL_PROTOCOLS, LINK_PROTOCOL, PROTOCOLS
from mesh.node.p2p.session import (
    HANDSHAKE_BYTES_MAX,
    RECEIVE_BYTES_MAX,
    STREAMS_MAX,
    Identity,
    Session,
    Stream,
    open_session,
)
from mesh.node.p2p.tcp import Address, TcpNet
from mesh.node.p2p.transport import PENDING_MAX

sys.path.insert(0, str(Path(__file__).parent))
from tests.mesh.node.p2p_peers import (
    LOOPBACK,
    Members,
    Peer,
    eventually,
    link_up,
    nothing_leaks,
    running,
    seed_of,
)
from tests.own_time import OWN_TIME

pytestmark = OWN_TIME

PUSH = CHANNEL_PROTOCOLS["push"]


def where(peer: Peer) -> tuple[str, int]:
    address = Address.parse(peer.transport.listen_addrs()[0])
    return address.host, address.port


@asynccontextmanager
async def session_with(peer: Peer, number: int) -> AsyncIterator[Session]:
    """A connection to `peer` with the key of member `number`, to do with as one likes."""
    conduit = await TcpNet().connect(Address.parse(peer.transport.listen_addrs()[0]))
    identity = Identity(seed_of(number))
    async with open_session(
        conduit, identity, lambda key: True, initiator=True, setup_s=10
    ) as session:
        yield session


async def open_link(session: Session) -> dict[str, Stream]:
    """What an honest dialler does up to and including HELLO."""
    streams = {protocol: await session.open_stream(protocol) for protocol in sorted(PROTOCOLS)}
    await streams[LINK_PROTOCOL].write(pack(msgpack.packb([1, 1])), 5)
    return streams


async def misbehave(
    a: Peer, b: Peer, deed: Callable[[Session, dict[str, Stream]], Awaitable[None]]
) -> None:
    """Have a link to `a` with the key of `b` and do something with it; returns when it is over."""
    async with session_with(a, b.number) as session:
        streams = await open_link(session)
        await a.until_linked(b)
        await deed(session, streams)
        await trio.sleep_forever()  # the end of the session ends this
    await a.until_downs(b)


async def until_closed(stream: Stream) -> None:
    with pytest.raises(PeerError), trio.fail_after(10):
        while await stream.read(65536):
            pass
        raise PeerError("end of stream")


async def still_links(a: Peer, b: Peer) -> None:
    """The node goes on as if nothing had been."""
    await link_up(b, a)
    b.transport.send(a.id, b"well")
    await a.until(lambda: a.frames(b)[-1:] == [b"well"])


# -- before anybody has shown a key ---------------------------------------------------------------

GARBAGE = {
    "nothing": b"",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "not utf-8": b"\x03\xff\xfe\n",
    "endless varint": b"\xff" * 64,
    "huge multistream message": b"\xff\xff\xff\xff\xff\x7f" + b"x" * 2 * HANDSHAKE_BYTES_MAX,
    "not noise": b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\x00\x40" + b"z" * 64,
    "plaintext": b"\x13/multistream/1.0.0\n\x11/plaintext/2.0.0\n",
    "many questions": b"\x13/multistream/1.0.0\n" + b"\x03ls\n" * 10_000,
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_on_the_port_costs_nobody_anything(garbage: bytes) -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        stream = await trio.open_tcp_stream(*where(a))
        async with stream:
            with pytest.raises((trio.BrokenResourceError, EOFError)), trio.fail_after(10):
                await stream.send_all(garbage)
                await stream.send_eof()
                while await stream.receive_some(65536):
                    pass
                raise EOFError
        await still_links(a, b)
        await eventually(a.idle)


async def test_a_huge_message_before_the_handshake_is_not_collected() -> None:
    a = Peer(1, Members([1]))
    async with running(a), await trio.open_tcp_stream(*where(a)) as stream:
        await stream.send_all(b"\xff\xff\xff\xff\x7f")  # 32 GiB will follow, it says
        sent = 0
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(10):
            while True:
                await stream.send_all(b"x" * 4096)
                sent += 4096
        assert sent < 64 << 20  # what fits into two kernels' buffers, at most


async def test_half_open_connections_make_room_and_end_by_themselves() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b), nothing_leaks():
        streams = [await trio.open_tcp_stream(*where(a)) for _ in range(3 * PENDING_MAX)]
        await eventually(lambda: len(a.transport._pending) == PENDING_MAX)
        began_s = trio.current_time()
        for stream in streams:
            with pytest.raises((trio.BrokenResourceError, EOFError)), trio.fail_after(10):
                while await stream.receive_some(4096):
                    pass
                raise EOFError
            await stream.aclose()
        assert trio.current_time() - began_s < 6
        await eventually(a.idle)


async def test_half_open_connections_are_in_nobodys_way() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        streams = [await trio.open_tcp_stream(*where(a)) for _ in range(2 * PENDING_MAX)]
        await still_links(a, b)
        for stream in streams:
            await stream.aclose()


async def test_hundreds_of_connections_do_not_make_a_node_deaf() -> None:
    """B2 of the package's list: a limit of 250 that counted what had long been closed."""
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        for _ in range(270):
            async with await trio.open_tcp_stream(*where(a)):
                pass
        for _ in range(30):
            async with session_with(a, 2) as session:
                await session.open_stream(LINK_PROTOCOL)
        await eventually(a.idle)
        await still_links(a, b)


# -- who is let in ---------------------------------------------------------------------------------


async def test_a_stranger_is_refused_when_it_calls() -> None:
    a, stranger = Peer(1, Members([1, 2])), Peer(3, Members([1, 3]))
    async with running(a, stranger):
        stranger.target(a)
        await eventually(
            lambda: (
                stranger.transport._dialler.dialled.get(a.id, 0) >= 1
                and not a.transport._pulse.watches
            )
        )
        assert not a.log and not stranger.log
        with pytest.raises(PeerError):
            async with session_with(a, 3) as session:
                await session.open_stream(LINK_PROTOCOL)


async def test_a_stranger_is_refused_when_it_is_called() -> None:
    a, stranger = Peer(1, Members([1, 2])), Peer(3, Members([1, 3]))
    async with running(a, stranger):
        a.transport.set_targets({Peer(2, Members([])).id: stranger.transport.listen_addrs()})
        await eventually(
            lambda: len(a.transport._dialler.dialled) == 1 and not a.transport._pulse.watches
        )
        assert not a.log and not stranger.log


async def test_another_member_at_the_address_is_not_the_one_we_called() -> None:
    a, b = (Peer(n, Members([1, 2, 3])) for n in (1, 2))
    async with running(a, b):
        a.transport.set_targets({Peer(3, Members([])).id: b.transport.listen_addrs()})
        await eventually(
            lambda: len(a.transport._dialler.dialled) == 1 and not a.transport._pulse.watches
        )
        assert not a.log and not b.log


async def test_a_node_does_not_link_with_itself() -> None:
    a = Peer(1, Members([1, 2]))
    async with running(a):
        with pytest.raises(PeerError):
            async with session_with(a, 1) as session:
                await session.open_stream(LINK_PROTOCOL)
        a.target(a)
        assert not a.transport._dialler.targets and not a.log


async def test_an_identify_that_fails_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    members = Members([1, 2])
    a, b = Peer(1, members), Peer(2, members)
    async with running(a, b):
        a.transport._identify_key = lambda key: members.by_key[b"not there"]
        b.target(a)
        await eventually(lambda: "p2p.identify_failed" in caplog.text)
        a.transport._identify_key = members.identify
        await b.until_linked(a)


# -- members that misbehave ------------------------------------------------------------------------


async def bad_frame_size(session: Session, streams: dict[str, Stream]) -> None:
    await streams[PUSH].write(struct.pack("!I", FRAME_BYTES_MAX + 1), 5)


async def empty_frame(session: Session, streams: dict[str, Stream]) -> None:
    await streams[PUSH].write(struct.pack("!I", 0), 5)


async def bad_control(session: Session, streams: dict[str, Stream]) -> None:
    await streams[LINK_PROTOCOL].write(pack(b"\xc1"), 5)


async def control_of_another_shape(session: Session, streams: dict[str, Stream]) -> None:
    await streams[LINK_PROTOCOL].write(pack(msgpack.packb({"beat": 3})), 5)


async def bad_beat(session: Session, streams: dict[str, Stream]) -> None:
    await streams[LINK_PROTOCOL].write(pack(msgpack.packb([3, "now", None])), 5)


async def too_much_soft_state(session: Session, streams: dict[str, Stream]) -> None:
    await streams[LINK_PROTOCOL].write(pack(msgpack.packb([3, 1, 1, 1, b"s" * 600, 1])), 5)


async def huge_control(session: Session, streams: dict[str, Stream]) -> None:
    await streams[LINK_PROTOCOL].write(struct.pack("!I", 5000), 5)


async def finished_stream(session: Session, streams: dict[str, Stream]) -> None:
    await streams[PUSH].finish()


@pytest.mark.parametrize(
    "misdeed",
    [
        bad_frame_size,
        empty_frame,
        bad_control,
        control_of_another_shape,
        bad_beat,
        too_much_soft_state,
        huge_control,
        finished_stream,
    ],
    ids=lambda misdeed: misdeed.__name__,
)
async def test_breaking_the_protocol_costs_the_link_and_nothing_else(
    misdeed: Callable[[Session, dict[str, Stream]], Awaitable[None]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b, c = (Peer(n, Members([1, 2, 3])) for n in (1, 2, 3))
    async with running(a, b, c):
        await link_up(c, a)
        await misbehave(a, b, misdeed)
        assert a.linked(c) and not a.downs(c)
        assert a.downs(b) != ["silent"]
        assert "internal" not in a.downs(b)[0] and "internal_error" not in caplog.text
        await still_links(a, b)


async def test_numbers_in_a_beat_can_be_anything() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a), session_with(a, 2) as session:
        streams = await open_link(session)
        await a.until_linked(b)
        for number in (0, -1, 2**63, 2**64 - 1, -(2**63)):
            message = [3, number, number, number, b"%d" % number, number]
            await streams[LINK_PROTOCOL].write(pack(msgpack.packb(message)), 5)
        await eventually(lambda: a.transport.peers()[0].soft_state == b"%d" % -(2**63))
        assert a.transport.peers()[0].rtt_ms is None
        assert a.transport.peers()[0].clock_offset_ns is None


async def test_messages_of_a_later_version_are_passed_over() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a), session_with(a, 2) as session:
        streams = await open_link(session)
        await a.until_linked(b)
        for message in ([77, "what?"], [3, 1, 0, 0, b"soft", 0, "more"]):
            await streams[LINK_PROTOCOL].write(pack(msgpack.packb(message)), 5)
        await eventually(lambda: a.transport.peers()[0].soft_state == b"soft")


async def test_a_handshake_that_stops_half_way_ends() -> None:
    a = Peer(1, Members([1, 2]))
    async with running(a):
        async with session_with(a, 2) as session:
            stream = await session.open_stream(LINK_PROTOCOL)
            await until_closed(stream)
        await eventually(a.idle)
        assert not a.log


async def test_streams_nobody_asked_for_are_reset_and_too_many_cost_the_link() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))

    async def ask(session: Session, streams: dict[str, Stream]) -> None:
        for _ in range(3):
            with pytest.raises(PeerError):
                await session.open_stream("/ipfs/id/1.0.0")
        assert a.linked(b)
        with contextlib.suppress(Exception):
            for _ in range(STREAMS_MAX):
                await session._muxer.open_stream()

    async with running(a):
        await misbehave(a, b, ask)
        assert a.downs(b) == ["too many streams"]


async def test_a_negotiation_that_never_ends_is_cut_short() -> None:
    a = Peer(1, Members([1, 2]))
    async with running(a):
        async with session_with(a, 2) as session:
            muxed = await session._muxer.open_stream()
            await muxed.write(b"\xff\xff\xff\xff\x7f")
            # At once, and not when a timeout strikes: nothing of the 32 GiB is collected.
            with pytest.raises(Exception, match=r"reset|closed|shut"), trio.fail_after(2):
                while True:
                    await muxed.read(100)
        await eventually(a.idle)


async def test_who_ignores_the_receive_window_loses_the_link() -> None:
    """B9: without a bound of ours the receiver's memory grows with what the sender sends."""
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    sent = 0

    async def flood(session: Session, streams: dict[str, Stream]) -> None:
        nonlocal sent
        a.pause_reading()
        frame = pack(b"f" * 65000)
        while True:
            streams[PUSH]._muxed.send_window = 1 << 30
            await streams[PUSH].write(frame, 5)
            sent += len(frame)

    async with running(a):
        with contextlib.suppress(PeerError):
            await misbehave(a, b, flood)
        a.resume_reading()
        await a.until_downs(b)
        assert a.downs(b) == ["receive window exceeded"]
        assert RECEIVE_BYTES_MAX // 2 < sent < RECEIVE_BYTES_MAX + (64 << 20)


async def test_a_failing_consumer_of_events_does_not_end_the_links(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a), trio.open_nursery() as nursery:
        await nursery.start(b.transport.run)
        b.transport.events.close()
        a.target(b)
        await a.until_linked(b)
        a.transport.send(b.id, b"x")
        await eventually(lambda: "p2p.events_unread" in caplog.text)
        b.transport.send(a.id, b"still here")
        await a.until_frames(b, 1)
        nursery.cancel_scope.cancel()


async def test_a_mistake_of_our_own_costs_one_link_and_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c = (Peer(n, Members([1, 2, 3])) for n in (1, 2, 3))
    async with running(a, b, c):
        await link_up(b, a)
        await link_up(c, a)

        def broken(self: object, fields: object, wall_ns: int) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(a.transport._links[b.id], "_heard_beat", broken.__get__(b))
        await a.until(lambda: a.downs(b) != [])
        assert "ZeroDivisionError" in a.downs(b)[0]
        assert a.linked(c)
        await a.until_ups(b, 2)


async def test_a_write_cut_short_ends_the_connection() -> None:
    """B3: a Noise message that is half sent makes nonsense of every later one."""
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    ended: list[Session] = []

    async def cut_short(session: Session, streams: dict[str, Stream]) -> None:
        ended.append(session)
        send_all = session._raw.conduit.send_all

        async def slow_send(data: bytes) -> None:
            await send_all(data[: len(data) // 2])
            await trio.sleep_forever()

        session._raw.conduit.send_all = slow_send  # type: ignore[method-assign]
        with trio.move_on_after(0.05):
            await streams[PUSH].write(pack(b"x" * 1000), 5)

    async with running(a):
        await misbehave(a, b, cut_short)
        assert ended[0].ended == "write cut short"
        assert not a.frames(b)


async def test_a_flood_of_bad_connections_does_not_flood_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a = Peer(1, Members([1]))
    with caplog.at_level(logging.INFO):
        async with running(a):
            for _ in range(100):
                async with await trio.open_tcp_stream(*where(a)) as stream:
                    await stream.send_all(b"\x03\xff\xfe\n")
            await eventually(a.idle)
    assert 0 < len(caplog.records) < 40


async def test_a_full_node_refuses_more_but_not_who_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.node.p2p.transport.LINKS_MAX", 1)
    a, b, c = (Peer(n, Members([1, 2, 3])) for n in (1, 2, 3))
    async with running(a, b, c):
        await link_up(b, a)
        c.target(a)
        await eventually(lambda: c.transport._dialler.dialled.get(a.id, 0) >= 1 and c.idle())
        assert not c.said(PeerUp) and not a.said(PeerDown)
        await b.stop()
        await a.until_downs(b)
        await c.until_linked(a)


async def test_a_peer_that_accepts_and_says_nothing_is_tried_within_bounds() -> None:
    """A stopped process: its kernel completes every connection."""
    a = Peer(1, Members([1, 2]))
    listener = await TcpNet().listen(Address.parse(LOOPBACK))
    attempts = 0
    async with running(a):
        a.transport.set_targets({Peer(2, Members([])).id: [listener.addr]})
        with trio.move_on_after(4.5):
            while True:
                attempts = max(attempts, len(a.transport._pulse.watches))
                await trio.sleep(0.05)
        assert 2 <= attempts <= ATTEMPTS_PER_PEER_MAX
        listener.close()
        await eventually(lambda: not a.transport._pulse.watches)


async def test_any_libp2p_host_with_a_members_key_can_talk_to_a_node() -> None:
    """The wire is libp2p's: py-libp2p's own host dials, negotiates and carries frames."""
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as x25519
    from libp2p.peer.id import ID
    from libp2p.peer.peerinfo import PeerInfo
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport
    from multiaddr import Multiaddr

    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    pair = create_new_key_pair(seed_of(2))
    noise = Transport(pair, noise_privkey=x25519().private_key)
    host = new_host(key_pair=pair, sec_opt={PROTOCOL_ID: noise}, muxer_preference="YAMUX")
    async with running(a):
        async with host.run(listen_addrs=[]):
            target = ID.from_pubkey(create_new_key_pair(seed_of(1)).public_key)
            await host.connect(
                PeerInfo(target, [Multiaddr(addr) for addr in a.transport.listen_addrs()])
            )
            streams = {p: await host.new_stream(target, [p]) for p in sorted(PROTOCOLS)}
            await streams[LINK_PROTOCOL].write(pack(msgpack.packb([1, 1])))
            await a.until_linked(b)
            await streams[PUSH].write(pack(b"from elsewhere"))
            await a.until_frames(b, 1)
            a.transport.send(b.id, b"back again")
            assert await FrameReader(streams[PUSH].read, 100).frame() == b"back again"
            with trio.CancelScope(shield=True):
                await host.close()
        await a.until_downs(b)
