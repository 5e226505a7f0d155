"""Whole meshes over a network in memory and a virtual clock: minutes of cuts in a moment."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from mesh.node.p2p.events import Overflow, PeerDown, PeerUp
from mesh.node.p2p.framing import QUEUE_FRAMES_MAX
from mesh.node.p2p.overlay import LINKS_MIN
from mesh.node.p2p.tcp import Address, Conduit
from mesh.node.p2p.transport import PENDING_GRACE_S, PENDING_MAX

sys.path.insert(0, str(Path(__file__).parent))
from tests.mesh.node.p2p_peers import (
    Members,
    MemoryNet,
    Peer,
    _MemoryView,
    eventually,
    link_up,
    running,
)

pytestmark = pytest.mark.trio


def mesh_of(count: int, net: MemoryNet) -> list[Peer]:
    members = Members(range(1, count + 1))
    return [Peer(n, members, net=net.view(n)) for n in range(1, count + 1)]


def fully_linked(peers: Sequence[Peer]) -> bool:
    return all(a.linked(b) for a in peers for b in peers if a is not b)


async def all_linked(peers: Sequence[Peer], within_s: float) -> None:
    """Every pair linked, and the dials that crossed on the way there have been settled."""
    for a in peers:
        for b in peers:
            if a is not b:
                await a.until_linked(b, within_s)
    await eventually(lambda: all(peer.idle() for peer in peers))


async def test_five_nodes_link_up_and_stay_so(autojump_clock: MockClock) -> None:
    peers = mesh_of(5, MemoryNet(latency_s=0.05))
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        await all_linked(peers, 5)
        await trio.sleep(120)
        assert all(not peer.said(PeerDown) for peer in peers)
        for peer in peers:
            for info in peer.transport.peers():
                assert info.rtt_ms is not None and 99 <= info.rtt_ms <= 101


@pytest.mark.parametrize("ahead_s", [-3 * 365 * 86_400, -12.5, 0, 0.25, 365 * 86_400])
async def test_a_peers_clock_is_measured_to_within_half_a_round_trip(
    autojump_clock: MockClock, ahead_s: float
) -> None:
    net, members = MemoryNet(latency_s=0.05), Members([1, 2])
    a = Peer(1, members, net=net.view(1))
    b = Peer(2, members, net=net.view(2), ahead_ns=int(ahead_s * 1e9))
    async with running(a, b):
        for peer in (a, b):
            peer.target(a, b)
        await all_linked([a, b], 5)
        assert a.transport.peers()[0].clock_offset_ns is None
        await trio.sleep(10)
        for peer, expected_s in ((a, ahead_s), (b, -ahead_s)):
            (info,) = peer.transport.peers()
            assert info.clock_offset_ns is not None
            assert abs(info.clock_offset_ns / 1e9 - expected_s) < 0.001


async def test_of_the_last_heartbeats_the_quickest_tells_the_offset(
    autojump_clock: MockClock,
) -> None:
    net, rng = MemoryNet(latency_s=0.01), Random(3)
    a, b = (Peer(n, Members([1, 2]), net=net.view(n)) for n in (1, 2))
    async with running(a, b):
        for peer in (a, b):
            peer.target(a, b)
        await all_linked([a, b], 5)
        for _ in range(100):
            # Ways that differ by up to 0.6 s, and every now and then both are short.
            await trio.sleep(0.3)
            net.latency_s = rng.choice([0.01, 0.01, 0.01, 0.3, 0.6])
        for peer in (a, b):
            (info,) = peer.transport.peers()
            assert info.clock_offset_ns is not None
            assert abs(info.clock_offset_ns) < 0.05 * 1e9


async def test_a_clock_that_steps_is_seen_within_ten_seconds(autojump_clock: MockClock) -> None:
    net, members = MemoryNet(), Members([1, 2])
    a, b = (Peer(n, members, net=net.view(n)) for n in (1, 2))
    async with running(a, b):
        for peer in (a, b):
            peer.target(a, b)
        await all_linked([a, b], 5)
        await trio.sleep(30)
        net.latency_s *= 3  # what was measured before has the shorter round trips
        b.ahead_ns = 10**12
        await trio.sleep(10)
        (info,) = a.transport.peers()
        assert info.clock_offset_ns is not None
        assert abs(info.clock_offset_ns - 10**12) < 10**9


@pytest.mark.parametrize("cut_s", [0.5, 5, 40, 300])
async def test_a_partition_is_seen_in_three_seconds_and_undone_in_two(
    autojump_clock: MockClock, cut_s: float
) -> None:
    net = MemoryNet()
    peers = mesh_of(3, net)
    a, b, c = peers
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        await all_linked(peers, 5)
        net.partition([1], [2, 3])
        began_s = trio.current_time()
        if cut_s > 3:
            for peer in (b, c):
                await a.until_downs(peer)
                await peer.until_downs(a)
                assert a.downs(peer) == peer.downs(a) == ["silent"]
            assert trio.current_time() - began_s < 3
        await trio.sleep(cut_s - (trio.current_time() - began_s))
        assert b.linked(c) and not b.downs(c)
        net.heal()
        if cut_s > 3:
            await all_linked(peers, 2)
        else:
            # Bytes were lost, so the connections are done for even if nobody has noticed yet.
            await a.until_downs(b)
            await all_linked(peers, 5)
        await trio.sleep(60)
        for peer in peers:
            for other in peers:
                if peer is not other:
                    assert peer.ups(other) == len(peer.downs(other)) + 1 <= 2


async def test_ends_that_notice_at_different_times_find_together(
    autojump_clock: MockClock,
) -> None:
    """One end has lost the link, the other still believes in it: it asks, and lets go."""
    net = MemoryNet()
    a, b = mesh_of(2, net)
    async with running(a, b):
        await link_up(a, b)
        net.partition([1], [2])
        b.transport.drop(a.id, "test", 0)
        await b.until_downs(a)
        net.heal()
        assert a.linked(b)
        b.target(a)
        began_s = trio.current_time()
        await b.until_ups(a, 2)
        await a.until_ups(b, 2)
        assert trio.current_time() - began_s < 2
        assert len(a.downs(b)) == 1


async def test_a_link_that_does_not_answer_makes_way_for_a_new_one(
    autojump_clock: MockClock,
) -> None:
    """The other machine has restarted and says nothing on the old connection, not even its end."""
    net = MemoryNet()
    a, b = mesh_of(2, net)
    async with running(a, b):
        await link_up(a, b)
        net.tear()
        b.transport.drop(a.id, "test", 0)
        await b.until_downs(a)
        a.pause_reading()  # the old link is told to be over before the new one is told of
        b.target(a)
        await trio.sleep(0.5)
        a.resume_reading()
        began_s = trio.current_time()
        await b.until_ups(a, 2)
        await a.until_ups(b, 2)
        assert trio.current_time() - began_s < 2
        assert a.downs(b) == ["replaced"]
        assert [type(event) for event in a.log] == [PeerUp, PeerDown, PeerUp]


async def test_a_mesh_of_ten_keeps_few_links_and_heals(autojump_clock: MockClock) -> None:
    net = MemoryNet()
    peers = mesh_of(10, net)
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        await trio.sleep(10)
        links = {p.number: len(p.transport.peers()) for p in peers}
        assert min(links.values()) >= LINKS_MIN
        assert sum(links.values()) <= 2 * LINKS_MIN * len(peers)
        assert connected(peers)
        net.partition(range(1, 6), range(6, 11))
        await trio.sleep(90)  # past the minute in which neighbours are dialled eagerly
        assert not connected(peers)
        net.heal()
        await trio.sleep(30)
        assert connected(peers)


async def test_whoever_knows_one_address_of_many_members_dials_that_one(
    autojump_clock: MockClock,
) -> None:
    """As after a join: the roster names everybody, and only the inviter can be dialled."""
    net = MemoryNet()
    first, *others = peers = mesh_of(12, net)
    async with running(*peers):
        for peer in others:
            peer.transport.set_targets(
                {p.id: first.transport.listen_addrs() if p is first else () for p in peers}
            )
        await trio.sleep(5)
        assert all(peer.linked(first) for peer in others)


def connected(peers: Sequence[Peer]) -> bool:
    by_id = {peer.id: peer for peer in peers}
    reached, border = set(), [peers[0]]
    while border:
        peer = border.pop()
        if peer.id not in reached:
            reached.add(peer.id)
            border += [by_id[info.node] for info in peer.transport.peers()]
    return len(reached) == len(peers)


async def test_a_node_that_does_not_read_its_events_keeps_its_links(
    autojump_clock: MockClock,
) -> None:
    """Back-pressure: what is not taken stays with the sender, and the heartbeat goes on."""
    a, b = mesh_of(2, MemoryNet())
    async with running(a, b):
        await link_up(a, b)
        b.pause_reading()
        for _ in range(60):
            a.transport.send(b.id, b"x" * (1 << 18))
        await trio.sleep(12)  # longer than any silence that would end the link
        assert not a.said(PeerDown)
        b.resume_reading()
        await b.until_frames(a, 60)
        assert not a.overflows(b)


async def test_a_link_that_ends_while_nobody_reads_is_no_link_any_more(
    autojump_clock: MockClock,
) -> None:
    net = MemoryNet()
    a, b = mesh_of(2, net)
    async with running(a, b):
        a.target(b)
        await link_up(b, a)
        b.pause_reading()
        for _ in range(500):
            a.transport.send(b.id, b"more than is read")
        await trio.sleep(1)
        a.transport.drop(b.id, "test", 5)
        await trio.sleep(3)
        assert b.transport.peers() == [] and not b.downs(a)
        b.resume_reading()
        await b.until_downs(a)
        await b.until_ups(a, 2)


async def test_a_slow_handshake_is_left_to_finish(autojump_clock: MockClock) -> None:
    """Ten round trips take longer than a second there; more dials would only be in the way."""
    net = MemoryNet(latency_s=0.25)
    a, b = mesh_of(2, net)
    async with running(a, b):
        began_s = trio.current_time()
        await link_up(a, b)
        assert trio.current_time() - began_s > 2
        assert a.transport._dialler.dialled[b.id] == 0
        await trio.sleep(30)
        assert a.ups(b) == 1 and not a.said(PeerDown)


async def test_who_reads_of_a_link_can_use_it_at_once(autojump_clock: MockClock) -> None:
    """Whichever of the two tasks, teller and told, trio happens to run first."""
    for round_number in range(20):
        a, b = mesh_of(2, MemoryNet())
        async with running(b), trio.open_nursery() as nursery:
            await nursery.start(a.transport.run)
            a.target(b)
            event = await a.transport.events.receive()
            assert isinstance(event, PeerUp), round_number
            assert [info.node for info in a.transport.peers()] == [b.id]
            for _ in range(QUEUE_FRAMES_MAX + 1):
                a.transport.send(b.id, b"x")
            with trio.fail_after(5):
                assert await a.transport.events.receive() == Overflow(b.id)
            nursery.cancel_scope.cancel()


async def test_a_flooding_peer_does_not_keep_others_from_being_heard(
    autojump_clock: MockClock,
) -> None:
    a, b, c = mesh_of(3, MemoryNet())
    async with running(a, b, c):
        await link_up(b, a)
        await link_up(c, a)
        a.pause_reading()
        for _ in range(2000):
            b.transport.send(a.id, b"flood")
        await trio.sleep(1)
        c.transport.send(a.id, b"heard")
        await trio.sleep(1)
        a.resume_reading()
        await a.until_frames(c, 1)
        # Full channel: those who wait take turns, so it is behind what was queued, and little more.
        assert len(a.frames(b)) < 100
        await a.until_frames(b, 2000)


async def test_a_busy_moment_of_our_own_is_not_taken_for_the_silence_of_others(
    autojump_clock: MockClock,
) -> None:
    a, b = mesh_of(2, MemoryNet())
    async with running(a, b):
        await link_up(a, b)
        for _ in range(5):
            await trio.sleep(3)
            autojump_clock.jump(5)  # nobody ran for five seconds
        await trio.sleep(5)
        assert not a.said(PeerDown) and not b.said(PeerDown)


async def test_a_crowd_that_comes_at_once_is_let_in_one_after_the_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """As when a member with many links restarts: nobody is pushed out before its turn."""
    hub, *crowd = mesh_of(2 * PENDING_MAX + 2, MemoryNet(latency_s=0.05))
    async with running(hub, *crowd):
        for peer in crowd:
            peer.target(hub)
        for peer in crowd:
            await peer.until_linked(hub)
            await hub.until_ups(peer, 1)
        assert [hub.downs(peer) for peer in crowd] == [[]] * len(crowd)
        assert "pending_evicted" not in caplog.text


async def test_who_dribbles_makes_room_in_the_end(autojump_clock: MockClock) -> None:
    """Bytes that come slowly keep a place for PENDING_GRACE_S, and not for as long as they come."""
    net = MemoryNet()
    hub, other = mesh_of(2, net)
    async with running(hub, other), trio.open_nursery() as nursery:
        address = Address.parse(hub.transport.listen_addrs()[0])

        async def dribble() -> None:
            conduit = await net.view(9).connect(address)
            for byte in b"\x13/multistream/1.0.0\n" * 50:
                await trio.sleep(0.3)
                await conduit.send_all(bytes([byte]))

        for _ in range(PENDING_MAX):
            nursery.start_soon(dribble)
        await trio.sleep(1)
        began_s = trio.current_time()
        other.target(hub)
        await other.until_linked(hub)
        assert trio.current_time() - began_s < PENDING_GRACE_S
        nursery.cancel_scope.cancel()


class _Patient(_MemoryView):
    """Connecting over a cut succeeds when that is over: the kernel sends its SYN again."""

    async def connect(self, address: Address) -> Conduit:
        number = self._net._listeners[address.port].number
        while frozenset((self._number, number)) in self._net.cut:
            await trio.sleep(0.01)
        return await super().connect(address)


async def test_of_dials_that_connect_at_one_moment_one_shakes_hands(
    autojump_clock: MockClock,
) -> None:
    net = MemoryNet(latency_s=0.1)
    members = Members([1, 2])
    a, b = Peer(1, members, net=_Patient(net, 1)), Peer(2, members, net=net.view(2))
    async with running(a, b):
        net.partition([1], [2])
        a.target(b)
        dialler = a.transport._dialler
        await eventually(lambda: len(dialler.attempts.get(b.id, ())) == 3)
        net.heal()
        await a.until_linked(b)
        await b.until_linked(a)
        await eventually(lambda: a.idle() and b.idle())
        assert sum(conduit.rx_bytes > 0 for conduit in net.conduits) == 2, "both ends of one"
        assert (a.ups(b), b.ups(a)) == (1, 1)
