"""Links inside other members' links: over a network in memory and a virtual clock."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from mesh.node.p2p import overlay, traversal
from mesh.node.p2p.circuit import CircuitAddress
from mesh.node.p2p.events import PeerUp
from mesh.node.p2p.framing import FRAME_BYTES_MAX
from mesh.node.p2p.relay import RATE_BYTES_PER_S
from mesh.node.p2p.tcp import Address
from tests.mesh.node.p2p_peers import Members, MemoryNet, Peer, eventually, key_of, running

pytestmark = pytest.mark.trio


def three(net: MemoryNet) -> list[Peer]:
    """A, B and R: A and B do not reach each other, both reach R."""
    net.cut = {frozenset((1, 2))}
    members = Members([1, 2, 3])
    return [Peer(n, members, net=net.view(n)) for n in (1, 2, 3)]


async def all_meet(peers: Sequence[Peer], within_s: float = 10) -> None:
    for peer in peers:
        peer.target(*peers)
    for peer in peers:
        for other in peers:
            if peer is not other:
                await peer.until_linked(other, within_s)


async def test_two_that_do_not_reach_each_other_are_linked_through_a_third(
    autojump_clock: MockClock,
) -> None:
    a, b, r = peers = three(MemoryNet())
    async with running(*peers):
        began_s = trio.current_time()
        await all_meet(peers)
        assert trio.current_time() - began_s < 3
        assert (a.path_to(b), b.path_to(a)) == ("relayed", "relayed")
        assert (a.path_to(r), r.path_to(b)) == ("direct", "direct")
        frames = [bytes([n]) * 50_000 for n in range(40)]
        for frame in frames:
            a.transport.send(b.id, frame)
            b.transport.send(a.id, frame, "sync")
        await b.until_frames(a, 40)
        await a.until_frames(b, 40, "sync")
        assert b.frames(a) == a.frames(b, "sync") == frames
        # The relay has carried it and seen none of it.
        relay = r.transport.traversal.relay
        assert relay.circuits == 1 and relay.carried_bytes > 4_000_000
        assert not r.frames(a) and not r.frames(b)
        ups = [up for up in a.said(PeerUp) if up.node == b.id]
        assert [up.path for up in ups] == ["relayed"]
        assert ups[0].addr.endswith("/p2p-circuit")


async def test_nobody_takes_a_detour_while_the_direct_way_works(autojump_clock: MockClock) -> None:
    net = MemoryNet(latency_s=0.05)
    _, _, r = peers = three(net)
    net.cut = set()
    async with running(*peers):
        await all_meet(peers)
        await trio.sleep(60)
        assert all(info.path == "direct" for p in peers for info in p.transport.peers())
        assert r.transport.traversal.relay.carried_bytes == 0


async def test_a_direct_way_that_opens_takes_the_place_of_the_detour(
    autojump_clock: MockClock,
) -> None:
    net = MemoryNet()
    a, b, r = peers = three(net)
    async with running(*peers):
        await all_meet(peers)
        await trio.sleep(20)
        net.heal()
        healed_s = trio.current_time()
        await a.until(lambda: a.path_to(b) == "direct", 400)
        await b.until(lambda: b.path_to(a) == "direct", 400)
        # Tried less and less often: after 1, 3, 9, 27, 81 s and so on.
        assert trio.current_time() - healed_s < 60
        assert a.downs(b) in (["replaced"], ["peer: replaced"], ["closed by the peer"])
        a.transport.send(b.id, b"direct now")
        await b.until_frames(a, 1)
        await eventually(lambda: r.transport.traversal.relay.circuits == 0)
        await trio.sleep(600)
        assert a.path_to(b) == "direct" and len(a.downs(b)) == 1


async def test_a_relay_that_dies_is_seen_at_once_and_another_one_is_found(
    autojump_clock: MockClock,
) -> None:
    net = MemoryNet()
    net.cut = {frozenset((1, 2))}
    members = Members([1, 2, 3, 4])
    a, b, *relays = peers = [Peer(n, members, net=net.view(n)) for n in (1, 2, 3, 4)]
    async with running(*peers):
        await all_meet(peers)
        await eventually(lambda: sum(r.transport.traversal.relay.circuits for r in relays) == 1)
        used = next(r for r in relays if r.transport.traversal.relay.circuits)
        died_s = trio.current_time()
        await used.stop()
        assert await a.until_downs(b) - died_s < 1
        assert await b.until_downs(a) - died_s < 1
        for peer, other in ((a, b), (b, a)):
            assert await peer.until_ups(other, 2) - died_s < 3
        assert a.path_to(b) == "relayed"


@pytest.mark.parametrize("cut_s", [5, 40, 200])
async def test_a_silent_cut_is_seen_in_three_seconds_and_undone_in_two_relayed_too(
    autojump_clock: MockClock, cut_s: float
) -> None:
    """The one end loses everybody: the relay, and through it the other end."""
    net = MemoryNet()
    a, b, r = peers = three(net)
    async with running(*peers):
        await all_meet(peers)
        net.partition([1], [2, 3])
        began_s = trio.current_time()
        for peer, other in ((a, b), (b, a), (a, r), (r, a)):
            assert await peer.until_downs(other) - began_s < 3
        await trio.sleep(cut_s - (trio.current_time() - began_s))
        net.cut = {frozenset((1, 2))}
        healed_s = trio.current_time()
        await a.until_linked(r)
        assert trio.current_time() - healed_s < 2
        await a.until_linked(b)
        await b.until_linked(a)
        assert trio.current_time() - healed_s < 4
        assert a.path_to(b) == "relayed"


async def test_a_node_that_stops_says_so_through_the_relay(autojump_clock: MockClock) -> None:
    a, b, r = peers = three(MemoryNet())
    async with running(*peers):
        await all_meet(peers)
        stopped_s = trio.current_time()
        await b.stop()
        assert await a.until_downs(b) - stopped_s < 1
        await eventually(lambda: r.transport.traversal.relay.circuits == 0)


async def test_what_one_member_sends_through_a_relay_has_a_rate(autojump_clock: MockClock) -> None:
    a, b, r = peers = three(MemoryNet(latency_s=0.001))
    async with running(*peers):
        await all_meet(peers)
        began_s = trio.current_time()
        for _ in range(6):
            a.transport.send(b.id, b"x" * FRAME_BYTES_MAX, "sync")
        a.transport.send(b.id, b"push")
        await b.until_frames(a, 1)
        await b.until_frames(a, 6, "sync")
        took_s = trio.current_time() - began_s
        assert 4 <= took_s <= 30
        assert 6 * FRAME_BYTES_MAX / took_s <= 1.3 * RATE_BYTES_PER_S
        assert not a.downs(b) and not a.downs(r) and not b.downs(r)


async def test_a_circuit_that_is_not_read_ends_nothing_else(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traversal, "IMPROVE_FIRST_S", 10_000)
    a, b, r = peers = three(MemoryNet())
    async with running(*peers):
        await all_meet(peers)
        b.pause_reading()
        for _ in range(60):
            a.transport.send(b.id, b"x" * (1 << 19))
        await trio.sleep(14)
        assert a.linked(b) and not a.downs(r) and not r.downs(b)
        for frames in range(5):
            r.transport.send(a.id, b"r")
            await a.until_frames(r, frames + 1)
        b.resume_reading()
        b.transport.send(a.id, b"well")
        await a.until_frames(b, 1)


async def test_a_node_that_does_not_relay_is_nobodys_detour(autojump_clock: MockClock) -> None:
    a, b, r = peers = three(MemoryNet())
    r.transport.traversal.relay.willing = False
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        await a.until_linked(r)
        await b.until_linked(r)
        await trio.sleep(60)
        assert not a.linked(b) and not b.linked(a)
        assert a.linked(r) and not a.downs(r)


async def test_half_a_mesh_that_is_gone_does_not_wear_the_other_half_out(
    autojump_clock: MockClock,
) -> None:
    """Every lost member is dialled every second, and through every neighbour that is left."""
    net = MemoryNet()
    members = Members(range(1, 7))
    peers = [Peer(n, members, net=net.view(n)) for n in range(1, 7)]
    async with running(*peers):
        await all_meet(peers)
        net.partition(range(1, 4), range(4, 7))
        await trio.sleep(40)
        for side in (peers[:3], peers[3:]):
            for peer in side:
                assert all(peer.linked(other) for other in side if other is not peer)
                assert all(not peer.downs(other) for other in side)
        net.heal()
        healed_s = trio.current_time()
        for peer in peers:
            for other in peers:
                if peer is not other:
                    await peer.until_linked(other)
        assert trio.current_time() - healed_s < 12
        await trio.sleep(20)
        assert all(info.path == "direct" for p in peers for info in p.transport.peers())


async def test_a_relay_that_is_named_is_linked_with_for_that(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a large mesh one's own neighbours need not have links to whoever is looked for."""
    monkeypatch.setattr(overlay, "FULL_MESH_MAX", 1)
    monkeypatch.setattr(overlay, "LINKS_MIN", 1)
    net = MemoryNet()
    net.cut = {frozenset((1, 2))}
    members = Members([1, 2, 3, 4])
    a, b, r, c = peers = [Peer(n, members, net=net.view(n)) for n in (1, 2, 3, 4)]
    async with running(*peers):
        b.transport.set_targets({r.id: r.transport.listen_addrs()})
        c.transport.set_targets({a.id: a.transport.listen_addrs()})
        await b.until_linked(r)
        await a.until_linked(c)
        through_r = CircuitAddress(Address.parse(r.transport.listen_addrs()[0]), key_of(3))
        a.transport.set_holders({"shard of a and b": {b.id}})
        a.transport.set_targets(
            {
                b.id: [*b.transport.listen_addrs(), str(through_r)],
                r.id: r.transport.listen_addrs(),
                c.id: c.transport.listen_addrs(),
            }
        )
        await a.until_linked(b, 10)
        await b.until_linked(a)
        await a.until_linked(r)
        assert (a.path_to(b), a.path_to(r)) == ("relayed", "direct")
        # What carries a link is not let go of, however little else needs it.
        for peer in (a, b, r):
            assert peer.transport.traversal.in_use() == {
                other.id
                for other in (a, b, r)
                if other is not peer and peer.path_to(other) == "direct"
            }


async def test_who_has_no_address_at_all_is_reached_through_whom_it_names(
    autojump_clock: MockClock,
) -> None:
    net = MemoryNet()
    a, b, r = peers = three(net)
    async with running(*peers):
        r.target(a, b)
        await r.until_linked(a)
        await r.until_linked(b)
        through_r = CircuitAddress(Address.parse(r.transport.listen_addrs()[0]), key_of(3))
        began_s = trio.current_time()
        a.transport.set_targets({b.id: [str(through_r)], r.id: r.transport.listen_addrs()})
        await a.until_linked(b)
        assert trio.current_time() - began_s < 1
        await b.until_linked(a)
