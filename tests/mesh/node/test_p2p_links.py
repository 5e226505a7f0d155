"""Links between honest nodes, over real sockets on loopback."""

from __future__ import annotations

import errno
import os
import socket
import sys
from pathlib import Path

import pytest
import trio

from mesh.core.errors import BadInput, NotReady
from mesh.core.wire import SPOKEN, Versions
from mesh.node.p2p.events import FrameIn, PeerDown, PeerUp
from mesh.node.p2p.framing import FRAME_BYTES_MAX
from mesh.node.p2p.link import SOFT_STATE_BYTES_MAX
from mesh.node.p2p.tcp import Address, Conduit, Listener, TcpNet, _listen_error

sys.path.insert(0, str(Path(__file__).parent))
from tests.mesh.node.p2p_peers import (
    LOOPBACK,
    Members,
    Peer,
    Proxy,
    eventually,
    link_up,
    meet,
    nothing_leaks,
    raw_conduits,
    running,
)
from tests.own_time import OWN_TIME

pytestmark = OWN_TIME


async def test_two_nodes_carry_frames_both_ways_in_order() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await link_up(a, b)
        sent = [b"%d" % n for n in range(500)]
        for frame in sent:
            a.transport.send(b.id, frame)
            b.transport.send(a.id, frame, "sync")
        await b.until_frames(a, len(sent))
        await a.until_frames(b, len(sent), "sync")
        assert b.frames(a) == sent and a.frames(b, "sync") == sent
        assert b.frames(a, "sync") == [] and a.frames(b) == []
        assert a.said(PeerUp) == [PeerUp(b.id, b.transport.listen_addrs()[0], False)]
        assert [(up.node, up.inbound) for up in b.said(PeerUp)] == [(a.id, True)]
        assert not a.said(PeerDown) and not b.said(PeerDown)


async def test_each_end_is_told_what_the_other_speaks() -> None:
    a = Peer(1, Members([1, 2]))
    b = Peer(2, Members([1, 2]), speaks=Versions(2, 3))
    async with running(a, b):
        await link_up(a, b)
        assert [up.speaks for up in a.said(PeerUp)] == [(2, 3)]
        assert [up.speaks for up in b.said(PeerUp)] == [SPOKEN]


async def test_frames_of_the_largest_size_pass_and_larger_ones_are_our_own_mistake() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await link_up(a, b)
        largest = [bytes([n]) * FRAME_BYTES_MAX for n in range(3)]
        for frame in largest:
            a.transport.send(b.id, frame, "sync")
        await b.until_frames(a, 3, "sync")
        assert b.frames(a, "sync") == largest
        for frame in (b"", b"x" * (FRAME_BYTES_MAX + 1)):
            with pytest.raises(ValueError):
                a.transport.send(b.id, frame)
        assert a.linked(b)


async def test_a_large_sync_does_not_delay_a_push() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await link_up(a, b)
        for _ in range(6):
            a.transport.send(b.id, b"s" * FRAME_BYTES_MAX, "sync")
        a.transport.send(b.id, b"push")
        await b.until_frames(a, 1)
        # Yamux takes turns between the streams: at most one large frame can have been finished.
        assert len(b.frames(a, "sync")) <= 1
        await b.until_frames(a, 6, "sync")


async def test_sending_to_somebody_without_a_link_is_nothing() -> None:
    a = Peer(1, Members([1, 2]))
    async with running(a):
        a.transport.send(Peer(2, Members([])).id, b"x")


async def test_five_nodes_are_all_linked_once() -> None:
    peers = [Peer(n, Members(range(1, 6))) for n in range(1, 6)]
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        for peer in peers:
            for other in peers:
                if other is not peer:
                    await peer.until_linked(other)
        for peer in peers:
            for other in peers:
                if other is not peer:
                    peer.transport.send(other.id, peer.id)
        for peer in peers:
            for other in peers:
                if other is not peer:
                    await peer.until_frames(other, 1)
            assert {f.node for f in peer.said(FrameIn)} == {f.frame for f in peer.said(FrameIn)}
            assert len(peer.said(PeerUp)) == 4 and not peer.said(PeerDown)


async def test_dials_that_cross_end_in_one_link() -> None:
    for _ in range(8):
        a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
        async with running(a, b):
            a.target(b)
            b.target(a)
            await a.until_linked(b)
            await b.until_linked(a)
            a.transport.send(b.id, b"ping")
            b.transport.send(a.id, b"pong")
            await b.until_frames(a, 1)
            await a.until_frames(b, 1)
            # The loser of the two has been told by now or is about to be; nobody saw it.
            for peer in (a, b):
                await eventually(peer.idle)
            assert a.ups(b) == b.ups(a) == 1
            assert not a.said(PeerDown) and not b.said(PeerDown)


@pytest.mark.parametrize("breaker", [0, 1])
async def test_a_broken_connection_is_seen_and_made_good_within_two_seconds(breaker: int) -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await meet(a, b)
        broken_s = trio.current_time()
        raw_conduits((a, b)[breaker])[0].abort()
        for peer, other in ((a, b), (b, a)):
            assert await peer.until_downs(other) - broken_s < 1
        for peer, other in ((a, b), (b, a)):
            assert await peer.until_ups(other, 2) - broken_s < 2
        assert a.linked(b) and b.linked(a)


async def test_a_node_that_stops_says_so_and_is_seen_down_at_once() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await link_up(a, b)
        stopped_s = trio.current_time()
        await b.stop()
        assert await a.until_downs(b) - stopped_s < 1
        assert a.downs(b) == ["peer: shutting down"]


async def test_a_silent_cut_is_seen_within_three_seconds_and_healed_within_two() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b) as nursery:
        proxy = Proxy(b.transport.listen_addrs()[0])
        await nursery.start(proxy.run)
        a.target(b, via=proxy.addr)
        await a.until_linked(b)
        await b.until_linked(a)
        proxy.cut()
        cut_s = trio.current_time()
        for peer, other in ((a, b), (b, a)):
            seen_s = await peer.until_downs(other)
            assert seen_s - cut_s < 4  # 3 on a machine that is not busy: test_p2p_meshes.py
            assert peer.downs(other) == ["silent"]
        proxy.heal()
        healed_s = trio.current_time()
        for peer, other in ((a, b), (b, a)):
            assert await peer.until_linked(other) - healed_s < 2


async def test_a_peer_that_is_slow_to_read_gets_an_overflow_and_delays_nobody() -> None:
    a, b, c = (Peer(n, Members([1, 2, 3])) for n in (1, 2, 3))
    async with running(a, b, c):
        await link_up(a, b)
        a.target(b, c)
        await a.until_linked(c)
        b.pause_reading()
        sent = 0
        while not a.overflows(b):
            for _ in range(8):
                a.transport.send(b.id, b"x" * (1 << 20))
                sent += 1
            a.transport.send(c.id, b"ping")
            await c.until_frames(a, sent // 8)
        assert sent < 64
        assert a.overflows(b) == 1
        b.resume_reading()
        a.transport.send(b.id, b"last")
        await b.until(lambda: b.frames(a)[-1:] == [b"last"])
        assert len(b.frames(a)) < sent  # what was dropped was dropped
        assert a.linked(b) and not a.said(PeerDown)


async def test_a_channel_that_is_not_read_for_too_long_ends_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mesh.node.p2p.link.STALL_S", 0.5)
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await link_up(a, b)
        b.pause_reading()
        for _ in range(50):
            a.transport.send(b.id, b"x" * (1 << 19))
        await a.until_downs(b)
        assert "was not read" in a.downs(b)[0]


async def test_heartbeats_carry_soft_state_and_measure_the_round_trip() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    b.transport.set_soft_state(b"s" * SOFT_STATE_BYTES_MAX)
    with pytest.raises(ValueError):
        b.transport.set_soft_state(b"s" * (SOFT_STATE_BYTES_MAX + 1))
    async with running(a, b):
        await link_up(a, b)
        await eventually(lambda: a.transport.peers()[0].rtt_ms is not None)
        (info,) = a.transport.peers()
        assert info.soft_state == b"s" * SOFT_STATE_BYTES_MAX
        assert info.rtt_ms is not None and 0 < info.rtt_ms < 1000
        assert (info.node, info.path, info.inbound) == (b.id, "direct", False)
        assert info.addr == b.transport.listen_addrs()[0]
        assert info.connected_since_ns <= info.last_rx_ns


async def test_who_is_dropped_stays_away_until_the_time_is_up() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await meet(a, b)
        dropped_s = trio.current_time()
        a.transport.drop(b.id, "bad frame", 2.5)
        await a.until_downs(b)
        assert a.downs(b) == ["bad frame"]
        await b.until_downs(a)
        up_s = await a.until_ups(b, 2)
        assert 2.5 <= up_s - dropped_s < 4.5


async def test_who_is_no_member_any_more_loses_the_link() -> None:
    members = Members([1, 2])
    a, b = (Peer(n, members) for n in (1, 2))
    async with running(a, b):
        await link_up(a, b)
        members.by_key = {k: v for k, v in members.by_key.items() if v != b.id}
        a.transport.set_targets({})
        await a.until_downs(b)
        assert a.downs(b) == ["no longer a member"]


async def test_a_second_address_is_tried() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        good = b.transport.listen_addrs()[0]
        a.transport.set_targets({b.id: ["/ip4/127.0.0.1/tcp/1", "nonsense", good]})
        await a.until_linked(b)


async def test_a_port_in_use_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        addr = str(Address.of_socket(taken.getsockname()))
        async with nothing_leaks():
            with pytest.raises(NotReady, match=rf"{addr}.*in use.*choose another"):
                await Peer(1, Members([1]), listen=[LOOPBACK, addr]).transport.run()


async def test_two_nodes_do_not_share_a_port() -> None:
    a = Peer(1, Members([1, 2]))
    async with running(a):
        addr = a.transport.listen_addrs()[0]
        with pytest.raises(NotReady, match="in use"):
            await Peer(2, Members([1, 2]), listen=[addr]).transport.run()


@pytest.mark.parametrize(
    ("addr", "says"),
    [
        ("/ip4/192.0.2.1/tcp/0", "no interface of this machine has that address"),
        ("/dns4/localhost/tcp/0", "cannot listen on a name"),
        ("127.0.0.1:1", "not a TCP multiaddr"),
    ],
)
async def test_an_address_that_cannot_be_had_is_bad_input(addr: str, says: str) -> None:
    async with nothing_leaks():
        with pytest.raises(BadInput, match=says):
            await Peer(1, Members([1]), listen=[addr]).transport.run()


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [(errno.EACCES, BadInput, "not permitted"), (errno.ENOBUFS, NotReady, "No buffer space")],
)
async def test_other_reasons_not_to_listen_are_told(
    number: int, kind: type[Exception], says: str
) -> None:
    error = _listen_error(Address.parse(LOOPBACK), OSError(number, os.strerror(number)))
    assert isinstance(error, kind) and says in str(error)


async def test_running_out_of_files_does_not_end_the_listening() -> None:
    class Short(TcpNet):
        """The first connections cannot be accepted."""

        async def listen(self, address: Address) -> Listener:
            listener = await super().listen(address)
            accept, failures = listener.accept, iter(range(3))

            async def fail_first() -> Conduit:
                if next(failures, None) is not None:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
                return await accept()

            listener.accept = fail_first  # type: ignore[method-assign]
            return listener

    a, b = Peer(1, Members([1, 2]), net=Short()), Peer(2, Members([1, 2]))
    async with running(a, b):
        await link_up(b, a)


async def test_a_restart_on_the_same_port_leaves_nothing_behind() -> None:
    members = Members([1, 2])
    a, addr = Peer(1, members), LOOPBACK
    async with running(a):
        for _ in range(4):
            async with nothing_leaks():
                b = Peer(2, members, listen=[addr])
                addr = await _one_life(a, b)
                await eventually(a.idle)
        assert a.ups(b) == len(a.downs(b)) == 4


async def _one_life(a: Peer, b: Peer) -> str:
    downs = len(a.downs(b))
    async with running(b):
        (addr,) = b.transport.listen_addrs()
        await link_up(a, b)
        await b.stop()
        await a.until_downs(b, downs + 1)
        a.transport.set_targets({})
    return addr


async def test_events_end_when_the_transport_does() -> None:
    a = Peer(1, Members([1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(a.transport.run)
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.EndOfChannel):
        await a.transport.events.receive()


async def test_a_link_that_nobody_needs_ends_and_is_not_won_back() -> None:
    a, b = (Peer(n, Members([1, 2])) for n in (1, 2))
    async with running(a, b):
        await link_up(a, b)
        link = a.transport._links[b.id]
        await a.transport._let_go_of(link)
        await a.until(lambda: bool(a.downs(b)))
        await b.until(lambda: bool(b.downs(a)))
        assert (a.downs(b)[0], b.downs(a)[0]) == ("not needed", "peer: not needed")
        assert b.id not in a.transport._overlay._lost and a.id not in b.transport._overlay._lost
