"""Replica, view, writer and interest of several nodes together, as a shell ties them."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import pytest

from crdt.header import ChainId
from mesh.core.clock import HybridClock
from mesh.core.effects import Alarm, DropPeer
from mesh.core.interest import Interests
from mesh.core.keeping import follow
from mesh.core.ops import MESH_SHARD, Op
from mesh.core.view import View
from mesh.core.writer import Writer
from tests.mesh.core.core_world import asked_of
from tests.mesh.core.test_replica import Wire

WALL_NS = 1_700_000_000_000_000_000


class Nodes(Wire):
    """Nodes of sites s0, s1, …, all linked, that keep what they host."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.views = [View(replica.holdings) for replica in self.replicas]
        self.writers = [self._writer(i) for i in range(count)]
        self.interests = [self._interests(i) for i in range(count)]
        for a in range(count):
            for b in range(a):
                self.link(a, b)
        self.settle()

    def _interests(self, i: int) -> Interests:
        self.views[i].set_members(self.replicas[i].roster.members())
        return Interests(self.nodes[i], f"s{i}", self.views[i], self.replicas[i].writes)

    def restart(self, i: int, damaged: ChainId) -> None:
        """Without that chain, and without links."""
        for other in [b for a, b in self.links if a == i]:
            self.unlink(i, other)
        lattice = self.replicas[i].lattice
        lattice.discard(damaged)
        self.replicas[i] = self.make(i, lattice, lacks=True)
        self.views[i] = View(self.replicas[i].holdings)
        self.views[i].update(self.replicas[i].holdings.everything())
        self.writers[i] = self._writer(i)
        self.interests[i] = self._interests(i)
        self.tick(3)  # it opens
        self.settle()

    def _writer(self, i: int) -> Writer:
        def nonce(size: int) -> bytes:
            return sha256(b"%d %d" % (i, size)).digest()[:size]

        return Writer(self.nodes[i], f"s{i}", self.views[i], HybridClock(), nonce)

    def absorb(self, i: int) -> None:
        self.views[i].update(self.replicas[i].take_touched())
        while follow(self.interests[i], self.replicas[i], self.writers[i]):
            self.views[i].update(self.replicas[i].take_touched())

    def settle(self) -> None:
        """Carry all there is to say, until nothing is left to write down."""
        for _ in range(4):
            for i in range(len(self.nodes)):
                self.absorb(i)
                self.write(i, self.writers[i].housekeeping(WALL_NS))
            self.tick(2)

    def write(self, i: int, ops: Sequence[Op]) -> None:
        if ops:
            self.replicas[i].local(ops, self.now_ns)
        self.absorb(i)

    def do(self, i: int, method: str, /, *args: Any, **fields: Any) -> None:
        """A user at node `i`, and what follows everywhere."""
        self.write(i, asked_of(self.writers[i], method, *args, now_ns=WALL_NS, **fields))
        self.settle()

    def holders(self, vpc: str) -> list[int]:
        """The nodes that hold anything of the VPC's shard that another one wrote."""
        return [
            i
            for i, replica in enumerate(self.replicas)
            if any(id.node != self.nodes[i] for id in replica.lattice.chains(vpc))
        ]

    def agree(self, vpc: str, among: Sequence[int]) -> None:
        lattices = [self.replicas[i].lattice for i in among]
        assert len({lattice.digest(vpc) for lattice in lattices}) == 1
        assert len({tuple(self.views[i].endpoints(vpc)) for i in among}) == 1


def test_a_vpc_reaches_its_homes_and_claimants_and_leaves_who_is_shut_out() -> None:
    nodes = Nodes(4)
    nodes.do(0, "add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
    red = nodes.views[0].vpc("red").id
    nodes.do(0, "add_subnet", "wide", "red", "10.0.1.0/24", ["s0", "s1"])
    nodes.do(0, "add_endpoint", "red", "10.0.1.5")
    assert nodes.holders(red) == [1], "0 wrote it, and 2 and 3 have nothing to do with it"
    nodes.do(2, "add_endpoint", "red", "10.0.1.6")
    assert nodes.holders(red) == [0, 1, 2]
    nodes.agree(red, (0, 1, 2))
    assert {v.catalog.interest(nodes.nodes[2]) == {red} for v in nodes.views} == {True}
    nodes.do(0, "set_vpc", "red", sites=["s0"])
    assert nodes.holders(red) == [0, 1], "s1 is a home, s2 is shut out"
    assert [e.ip for e in nodes.views[2].endpoints(red)] == []
    assert nodes.views[0].catalog.interest(nodes.nodes[2]) == set()
    assert not any(isinstance(effect, DropPeer | Alarm) for _, effect in nodes.effects)


@pytest.mark.parametrize("peers", ["have what it lacks", "lack it, too"])
def test_who_lacks_what_a_vpc_is_kept_by_drops_it_only_when_peers_have_told(peers: str) -> None:
    nodes = Nodes(3)
    nodes.do(2, "add_vpc", "red", 7, ["10.0.0.0/16"], "acme")
    red = nodes.views[2].vpc("red").id
    nodes.do(2, "add_subnet", "wide", "red", "10.0.1.0/24", ["s1", "s2"])
    nodes.do(2, "add_endpoint", "red", "10.0.1.5")
    nodes.unlink(0, 2)
    lost = ChainId(nodes.nodes[2], MESH_SHARD)
    nodes.restart(1, lost)
    assert nodes.interests[1].vpcs == set(), "it knows of no VPC"
    assert nodes.holders(red) == [1]
    if peers == "lack it, too":
        nodes.replicas[0].lattice.discard(lost)
    nodes.link(0, 1)
    nodes.settle()
    assert nodes.holders(red) == ([1] if peers == "have what it lacks" else [])


@pytest.mark.parametrize("ends", ["the peering is removed", "a VPC is removed"])
def test_a_peering_brings_the_other_vpc_and_its_end_takes_it_away(ends: str) -> None:
    nodes = Nodes(3)
    vpcs = []
    for i, (name, cidr) in enumerate((("red", "10.0.0.0/16"), ("blue", "10.1.0.0/16"))):
        nodes.do(i, "add_vpc", name, 7 + i, [cidr], "acme")
        nodes.do(i, "add_subnet", "all", name, cidr.replace("/16", "/24"), [f"s{i}"])
        nodes.do(i, "set_vpc", name, sites=[f"s{i}"])
        nodes.do(i, "add_endpoint", name, cidr.replace("0.0/16", "0.5"))
        vpcs.append(nodes.views[i].vpc(name).id)
    red, blue = vpcs
    assert (nodes.holders(red), nodes.holders(blue)) == ([], [])
    nodes.do(0, "add_peering", "red", "blue")
    assert (nodes.holders(red), nodes.holders(blue)) == ([], []), "a half is nothing"
    nodes.do(1, "add_peering", "blue", "red")
    assert (nodes.holders(red), nodes.holders(blue)) == ([1], [0])
    nodes.agree(red, (0, 1))
    nodes.agree(blue, (0, 1))
    if ends == "the peering is removed":
        nodes.do(1, "remove_peering", "blue", "red")
        assert (nodes.holders(red), nodes.holders(blue)) == ([], [])
    else:
        nodes.do(1, "remove_vpc", "blue", force=True)
        assert (nodes.holders(red), nodes.holders(blue)) == ([], [0]), "what is left of it goes on"
    assert not nodes.interests[0].admits(red, "s1")
    assert not any(isinstance(effect, DropPeer | Alarm) for _, effect in nodes.effects)


def test_a_node_that_knows_nothing_yet_keeps_the_mesh_shard_and_no_other() -> None:
    nodes = Nodes(1)
    replica = nodes.replicas[0]
    assert replica.keeps(MESH_SHARD)
    assert not replica.keeps("ab" * 16)
    assert not nodes.interests[0].update(), "it was said once"
