"""Meshes of nodes that keep what their sites host, over links in memory and a virtual clock: what
they say that they keep decides with whom they have links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from crdt.lattice import Lattice
from mesh.core import ed25519
from mesh.core.clock import HybridClock
from mesh.core.effects import Send
from mesh.core.interest import Interests
from mesh.core.keeping import follow
from mesh.core.ops import Op
from mesh.core.replica import Replica
from mesh.core.roster import Roster
from mesh.core.statements import found_mesh
from mesh.core.view import View
from mesh.core.writer import Writer
from mesh.node.p2p.events import Channel, FrameIn, Overflow, PeerDown, PeerUp
from mesh.node.p2p.overlay import LINKS_MIN
from tests.mesh.core.core_world import asked_of
from tests.mesh.node.p2p_peers import EPOCH_NS, Members, MemoryNet, Peer, key_of, running, seed_of

pytestmark = pytest.mark.trio

STEP_S = 0.02
"""How soon a node carries out what its replica wants."""


class Roll(Members):
    """Members by a roster: each is alone at a site of its own, s1, s2, …"""

    def __init__(self, numbers: Sequence[int]) -> None:
        first, *others = numbers
        blobs = found_mesh("m", b"r" * 32, seed_of(first), f"n{first}", f"s{first}")
        roster = Roster.founded_by(blobs)
        for number in others:
            key = key_of(number)
            roster.add([roster.admit(seed_of(first), key, f"n{number}", f"s{number}")])
        self.blobs = roster.statements()
        self.by_key = {key_of(n): ed25519.node_id(key_of(n)) for n in numbers}


def now_ns() -> int:
    return int(trio.current_time() * 1e9)


class HostedPeer(Peer):
    """A transport with a replica, a view and what follows from it, as a node ties them."""

    def __init__(self, number: int, roll: Roll, net: MemoryNet) -> None:
        super().__init__(number, roll, net=net.view(number))
        seed, rng, site = seed_of(number), Random(number), f"s{number}"
        self.replica = Replica(
            self.id,
            Roster.founded_by(roll.blobs),
            Lattice(),
            sign=lambda message: ed25519.sign(seed, message),
            nonce=rng.randbytes,
            jitter=rng.random,
            now_ns=now_ns(),
        )
        self.view = View(self.replica.holdings)
        self.view.set_members(self.replica.roster.members())
        self.writer = Writer(self.id, site, self.view, HybridClock(), rng.randbytes)
        self.interests = Interests(self.id, site, self.view, self.replica.writes)
        self._told_version = -1

    async def _read(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(super()._read)
            nursery.start_soon(self._live)

    async def _live(self) -> None:
        done, house_ns = 0, 0
        while True:
            for event in self.log[done:]:
                self._take(event)
            done = len(self.log)
            self.replica.timer(now_ns())
            if now_ns() >= house_ns and self.replica.writable:
                house_ns = now_ns() + 10**9
                self.write(self.writer.housekeeping(EPOCH_NS + now_ns()))
            self._absorb()
            for effect in self.replica.drain():
                if isinstance(effect, Send):
                    channel: Channel = "push" if effect.push else "sync"
                    self.transport.send(effect.peer, effect.frame, channel)
            await trio.sleep(STEP_S)

    def _take(self, event: object) -> None:
        match event:
            case PeerUp():
                self.replica.peer_up(event.node, now_ns())
            case PeerDown():
                self.replica.peer_down(event.node, now_ns())
            case FrameIn():
                self.replica.receive(event.node, event.frame, now_ns())
            case Overflow():
                self.replica.peer_lagging(event.node, now_ns())

    def _absorb(self) -> None:
        self.view.update(self.replica.take_touched())
        while follow(self.interests, self.replica, self.writer):
            self.view.update(self.replica.take_touched())
        if self.interests.holders_version != self._told_version:
            self._told_version = self.interests.holders_version
            self.transport.set_holders(self.interests.holders)

    def write(self, ops: Sequence[Op]) -> None:
        if ops:
            self.replica.local(ops, now_ns())

    def do(self, method: str, /, *args: Any, **fields: Any) -> None:
        self.write(asked_of(self.writer, method, *args, now_ns=EPOCH_NS + now_ns(), **fields))
        self._absorb()


async def until(holds: Callable[[], bool], within_s: float) -> None:
    """By the virtual clock."""
    with trio.fail_after(within_s):
        while not holds():
            await trio.sleep(STEP_S)


def keepers(peers: Sequence[HostedPeer], vpc: str) -> list[HostedPeer]:
    return [peer for peer in peers if peer.replica.keeps(vpc)]


def served(peers: Sequence[HostedPeer], vpc: str) -> bool:
    """Whether whoever keeps the VPC has as many links as it should with others that do."""
    holders = keepers(peers, vpc)
    return all(
        sum(peer.linked(other) for other in holders if other is not peer)
        >= min(LINKS_MIN, len(holders) - 1)
        for peer in holders
    )


def agree(peers: Sequence[HostedPeer], vpc: str, ips: Sequence[str]) -> bool:
    return all([e.ip for e in peer.view.endpoints(vpc)] == sorted(ips) for peer in peers)


async def test_a_shard_of_few_nodes_has_links_between_them_repaired_at_once(
    autojump_clock: MockClock,
) -> None:
    roll, net = Roll(range(1, 25)), MemoryNet()
    peers = [HostedPeer(n, roll, net) for n in range(1, 25)]
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        first = peers[0]
        await until(lambda: all(p.replica.writable and p.transport.peers() for p in peers), 10)
        for number, name in enumerate(("red", "blue")):
            homes = [f"s{n}" for n in range(2 + number, 25, 4)]  # six of 24, none of the other's
            first.do("add_vpc", name, 7 + number, ["10.0.0.0/16"], "acme")
            first.do("add_subnet", "all", name, "10.0.1.0/24", homes)
        red, blue = (first.view.vpc(name).id for name in ("red", "blue"))
        for vpc in (red, blue):
            await until(lambda vpc=vpc: len(keepers(peers, vpc)) == 7, 5)  # type: ignore[misc]
            await until(lambda vpc=vpc: served(peers, vpc), 5)  # type: ignore[misc]
        links = [len(peer.transport.peers()) for peer in peers]
        assert sum(links) <= 3 * LINKS_MIN * len(peers), "they share their links"

        writer = keepers(peers, red)[3]
        writer.do("add_endpoint", "red", "10.0.1.5")
        await until(lambda: agree(keepers(peers, red), red, ["10.0.1.5"]), 1)
        assert not any(p.view.winner(red, "10.0.1.5") for p in keepers(peers, blue)[1:])

        gone = next(p for p in keepers(peers, red)[1:] if p is not writer)
        await gone.stop()
        left = [peer for peer in peers if peer is not gone]
        for peer in left:
            await peer.until(lambda peer=peer: not peer.linked(gone))  # type: ignore[misc]
        await until(lambda: served(left, red), 2)


async def test_who_comes_to_a_vpc_has_links_and_all_of_it_within_seconds(
    autojump_clock: MockClock,
) -> None:
    roll, net = Roll(range(1, 17)), MemoryNet()
    peers = [HostedPeer(n, roll, net) for n in range(1, 17)]
    async with running(*peers):
        for peer in peers:
            peer.target(*peers)
        first, new = peers[0], peers[9]
        await until(lambda: all(p.replica.writable and p.transport.peers() for p in peers), 10)
        first.do("add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
        first.do("add_subnet", "all", "red", "10.0.1.0/24", ["s1", "s2", "s3", "s4", "s5"])
        red = first.view.vpc("red").id
        first.do("add_endpoint", "red", "10.0.1.5")
        await until(lambda: len(keepers(peers, red)) == 5 and served(peers, red), 8)
        new.do("add_endpoint", "red", "10.0.1.6")
        await until(lambda: agree(keepers(peers, red), red, ["10.0.1.5", "10.0.1.6"]), 5)
        assert new in keepers(peers, red)
        await until(lambda: served(peers, red), 5)
        new.do("remove_endpoint", "red", "10.0.1.6")
        first.do("remove_endpoint", "red", "10.0.1.5")
        await until(lambda: agree(keepers(peers, red), red, []), 5)
        first.do("remove_subnet", "all", "red")
        await until(lambda: keepers(peers, red) == [first, new], 5)
        await until(lambda: [*first.interests.holders.values()] == [{new.id}], 5)
        assert not peers[1].interests.holders, "it keeps none of it any more"
