"""Behind real NATs: two nodes that only a third one connects."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
import trio

from mesh.core.ops import NodeId
from mesh.node.p2p import traversal
from mesh.node.p2p.circuit import CircuitAddress
from mesh.node.p2p.overlay import FULL_MESH_MAX
from mesh.node.p2p.tcp import Address
from tests.mesh.node import nat_world
from tests.mesh.node.nat_world import (
    INSIDE,
    OUTSIDE,
    PUBLIC,
    PUBLIC6,
    SIX_A,
    NamespaceNet,
    NatWorld,
)
from tests.mesh.node.p2p_peers import (
    Members,
    Peer,
    eventually,
    key_of,
    link_up,
    running,
)
from tests.own_time import OWN_TIME

pytestmark = OWN_TIME

_numbers = itertools.count()


@pytest.fixture
def nats() -> Iterator[NatWorld]:
    lacking = nat_world.missing()
    if lacking:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI lacks {lacking}")
        pytest.skip(f"needs {lacking}")
    with nat_world.world(next(_numbers)) as world:
        yield world


def peers_in(nats: NatWorld) -> list[Peer]:
    members = Members([1, 2, 3])
    hosts = {1: ("a", INSIDE["a"]), 2: ("b", INSIDE["b"]), 3: ("inet", PUBLIC)}
    return [
        Peer(n, members, listen=[f"/ip4/{host}/tcp/7400"], net=NamespaceNet(nats.name(part)))
        for n, (part, host) in hosts.items()
    ]


async def all_meet(a: Peer, b: Peer, r: Peer) -> None:
    assert len([a, b, r]) <= FULL_MESH_MAX
    for peer in (a, b, r):
        peer.target(a, b, r)
    for peer, other in itertools.permutations((a, b, r), 2):
        await peer.until_linked(other)


def count_direct_dials(peer: Peer) -> list[NodeId]:
    """Grows with every try for a direct connection, when it begins."""
    begun: list[NodeId] = []
    dial = peer.transport._dialler.dial_direct

    async def counted(node: NodeId) -> bool:
        begun.append(node)
        return await dial(node)

    peer.transport._dialler.dial_direct = counted  # type: ignore[method-assign]
    return begun


async def test_nats_that_keep_ports_are_punched(nats: NatWorld) -> None:
    a, b, r = peers_in(nats)
    async with running(a, b, r):
        await all_meet(a, b, r)
        for peer, other in ((a, b), (b, a)):
            await peer.until(lambda p=peer, o=other: p.path_to(o) == "direct")  # type: ignore[misc]
        (to_b,) = [info for info in a.transport.peers() if info.node == b.id]
        (to_a,) = [info for info in b.transport.peers() if info.node == a.id]
        # Each sees the other's router: that is where the hole is.
        assert Address.parse(to_b.addr).host == OUTSIDE["b"]
        assert Address.parse(to_a.addr).host == OUTSIDE["a"]
        assert sorted([to_a.inbound, to_b.inbound]) == [False, True]
        carried = r.transport.traversal.relay.carried_bytes
        a.transport.send(b.id, b"x" * 100_000)
        b.transport.send(a.id, b"y" * 100_000, "sync")
        await b.until_frames(a, 1)
        await a.until_frames(b, 1, "sync")
        assert r.transport.traversal.relay.carried_bytes - carried < 100_000
        await eventually(lambda: r.transport.traversal.relay.circuits == 0)
        assert a.linked(r) and b.linked(r) and not a.downs(r) and not b.downs(r)


@pytest.mark.parametrize(("kind_a", "kind_b"), [("fully-random", ""), ("random", "random")])
async def test_nats_that_change_ports_stay_relayed(
    nats: NatWorld, kind_a: nat_world.Nat, kind_b: nat_world.Nat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traversal, "IMPROVE_FIRST_S", 0.1)
    nats.set_nat("a", kind_a)
    nats.set_nat("b", kind_b)
    a, b, r = peers_in(nats)
    async with running(a, b, r):
        await all_meet(a, b, r)
        assert (a.path_to(b), b.path_to(a)) == ("relayed", "relayed")
        through_r = CircuitAddress(Address("ip4", PUBLIC, 7400), key_of(3))
        assert a.transport.circuit_addrs() == b.transport.circuit_addrs() == [str(through_r)]
        assert r.transport.circuit_addrs() == []
        tries = count_direct_dials(a), count_direct_dials(b)
        await eventually(lambda: all(len(begun) >= 3 for begun in tries))  # two are over
        assert (a.path_to(b), b.path_to(a)) == ("relayed", "relayed")
        # Of two circuits that crossed, one took the other's place.
        assert all("replaced" in reason for reason in (*a.downs(b), *b.downs(a)))
        a.transport.send(b.id, b"around")
        await b.until_frames(a, 1)


async def test_a_relayed_link_is_seen_to_end_and_won_back_as_fast_as_any(nats: NatWorld) -> None:
    nats.set_nat("a", "fully-random")
    nats.set_nat("b", "fully-random")
    a, b, r = peers_in(nats)
    async with running(a, b, r):
        await all_meet(a, b, r)
        await eventually(lambda: all(peer.idle() for peer in (a, b, r)))  # dials crossed, perhaps
        pairs = ((a, r), (a, b), (r, a), (b, a))
        before = [len(peer.downs(other)) for peer, other in pairs]
        nats.cut("a")
        cut_s = trio.current_time()
        for (peer, other), count in zip(pairs, before, strict=True):
            assert await peer.until_downs(other, count + 1) - cut_s < 4  # 3 if nothing is busy
        await trio.sleep(3)
        nats.heal("a")
        healed_s = trio.current_time()
        assert await a.until_linked(r) - healed_s < 3
        await a.until_linked(b)
        assert await b.until_linked(a) - healed_s < 5
        lost, stopped_s = len(a.downs(b)), trio.current_time()
        await b.stop()
        assert await a.until_downs(b, lost + 1) - stopped_s < 1


async def test_the_public_side_of_a_nat_is_dialled_from_within(nats: NatWorld) -> None:
    """One NAT only: the node behind it dials, and nobody relays anything."""
    a, _, r = peers_in(nats)
    async with running(a, r):
        a.target(r)
        r.target(a)
        await a.until_linked(r)
        await r.until_linked(a)
        assert a.path_to(r) == r.path_to(a) == "direct"
        (info,) = r.transport.peers()
        assert info.inbound and Address.parse(info.addr).host == OUTSIDE["a"]


async def test_two_machines_with_nothing_but_ipv6_between_them(nats: NatWorld) -> None:
    members = Members([1, 2])
    a = Peer(1, members, listen=["/ip6/::/tcp/7406"], net=NamespaceNet(nats.name("nat_a")))
    r = Peer(2, members, listen=[f"/ip6/{PUBLIC6}/tcp/7406"], net=NamespaceNet(nats.name("inet")))
    async with running(a, r):
        await link_up(a, r)
        assert a.transport.peers()[0].addr == f"/ip6/{PUBLIC6}/tcp/7406"
        assert Address.parse(r.transport.peers()[0].addr).host == SIX_A
        link = a.transport._links[r.id]
        assert link.observed is not None and link.observed.host == SIX_A
