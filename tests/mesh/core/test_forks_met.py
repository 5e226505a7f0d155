"""A node that signs two histories: proven wherever the two meet, and nowhere else."""

from __future__ import annotations

from functools import partial

import pytest

from crdt.chain import Chain
from crdt.delta import Delta
from crdt.header import ChainId, Epoch
from mesh.core import ed25519, wire
from mesh.core.effects import Alarm, DropPeer
from tests.mesh.core.test_replica import SHARD, Wire

FORKER = 2


class Histories:
    """Flushes of the forker's chain, each on top of any earlier state of it."""

    def __init__(self, mesh: Wire, shard: str) -> None:
        self._mesh = mesh
        self.id = ChainId(mesh.nodes[FORKER], shard)
        self._sign = partial(ed25519.sign, mesh.seeds[FORKER])

    def begin(self) -> Chain:
        return Chain(self.id, Epoch(1, b"e" * 8))

    def write(self, chain: Chain, *keys: bytes) -> Delta:
        base = chain.head
        for key in keys:
            chain.put(key, b"v")
        chain.seal(self._mesh.replicas[0].roster.mesh_id, self._sign, ())
        return chain.since(chain.epoch, base)


def tell(mesh: Wire, node: int, *deltas: Delta) -> None:
    """The forker, linked for this moment, pushes to one node."""
    mesh.replicas[node].peer_up(mesh.nodes[FORKER], mesh.now_ns)
    frame = wire.encode(wire.Deltas(deltas))
    mesh.replicas[node].receive(mesh.nodes[FORKER], frame, mesh.now_ns)
    mesh.run()
    mesh.replicas[node].peer_down(mesh.nodes[FORKER], mesh.now_ns)


def forked_at(mesh: Wire) -> list[bool]:
    return [r.roster.members()[mesh.nodes[FORKER]].forked for r in mesh.replicas[:FORKER]]


@pytest.mark.parametrize("shard", ["mesh", SHARD])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ([[b"x"]], [[b"y"]]),  # the same interval
        ([[b"x", b"x2"]], [[b"y"]]),  # one overlaps the other
        ([[b"x"], [b"x2"]], [[b"y"]]),  # the held one begins where the other ends
        ([[b"x"]], [[b"y"], [b"y2"], [b"y3"]]),
    ],
)
def test_two_histories_are_proven_where_they_meet(
    shard: str, left: list[list[bytes]], right: list[list[bytes]]
) -> None:
    mesh = Wire(3)
    histories = Histories(mesh, shard)
    common = histories.begin()
    first = histories.write(common, b"common")
    for node, story in enumerate((left, right)):
        chain = common.copy()
        tell(mesh, node, first, *(histories.write(chain, *keys) for keys in story))
    assert forked_at(mesh) == [False, False], "each has seen one history only"
    mesh.link(0, 1)
    mesh.tick()
    assert len({r.lattice.digest(shard) for r in mesh.replicas[:FORKER]}) == 1
    mesh.tick()
    if [len(left), len(right)] != [1, 3]:  # those in between were not kept to be compared
        assert forked_at(mesh) == [True, True]
        assert len({r.roster.digest() for r in mesh.replicas[:FORKER]}) == 1
        alarms = [e.event for i, e in mesh.effects if i < FORKER and isinstance(e, Alarm)]
        assert alarms.count("chain.forked") == 2
    assert not any(isinstance(effect, DropPeer) for _, effect in mesh.effects), "relays are blamed"


def test_a_flush_pushed_onto_another_root_proves_it_at_once() -> None:
    mesh = Wire(3)
    histories = Histories(mesh, SHARD)
    common = histories.begin()
    first = histories.write(common, b"common")
    other = common.copy()
    histories.write(other, b"unseen")
    tell(mesh, 0, first, histories.write(common, b"seen"))
    tell(mesh, 0, histories.write(other, b"onto unseen"))
    assert forked_at(mesh) == [True, False]


def test_a_forged_header_proves_nothing() -> None:
    mesh = Wire(3)
    histories = Histories(mesh, SHARD)
    common = histories.begin()
    first = histories.write(common, b"common")
    tell(mesh, 0, first)
    chain = histories.begin()
    forged = histories.write(chain, b"forged")
    header = forged.header._replace(signature=bytes(64))
    tell(mesh, 0, Delta(header, forged.base, forged.lo, forged.puts, forged.deletes))
    assert forked_at(mesh) == [False, False]


def test_two_histories_of_a_node_that_says_nothing_new_are_proven_once() -> None:
    mesh = Wire(3)
    histories = Histories(mesh, SHARD)
    stories = [histories.write(histories.begin(), b"%d" % i) for i in range(6)]
    for story in stories:
        tell(mesh, 0, story)
    assert forked_at(mesh)[0]
    mine = [e.event for i, e in mesh.effects if i == 0 and isinstance(e, Alarm)]
    assert mine.count("chain.forked") == 1
