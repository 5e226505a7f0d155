"""A node that sees another process of itself: it writes no more, says where, and goes on when the
other one is gone, or never was."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core.clones import GONE_NS
from mesh.core.effects import Alarm, AlarmOver
from mesh.core.errors import NotReady
from mesh.core.replica import OPENING_NS, SECOND_NS, Replica
from tests.mesh.core.test_replica import SHARD, Wire, put

GONE_S = GONE_NS // SECOND_NS
SHARDS = ("mesh", SHARD)
OTHER = "b" * 32


@dataclass
class Restored:
    """Node 0 came back without its disk behind a cut, wrote, and then met who holds its past."""

    mesh: Wire

    @property
    def node(self) -> Replica:
        return self.mesh.replicas[0]

    def said(self) -> list[Alarm | AlarmOver]:
        """Of clones, in order."""
        return [e for i, e in self.mesh.effects if i == 0 and isinstance(e, Alarm | AlarmOver)]

    def read(self, key: bytes, shard: str) -> set[bytes | None]:
        return {replica.read(self.mesh.nodes[0], shard, key) for replica in self.mesh.replicas}


@pytest.fixture
def restored() -> Restored:
    mesh = Wire(3)
    mesh.link(0, 2)
    for shard in SHARDS:
        put(mesh.replicas[0], b"past", b"1", shard)
    mesh.tick()
    mesh.unlink(0, 2)
    mesh.replicas[0] = mesh.make(0)
    mesh.replicas[0]._own._nonce = lambda size: b"\x77" * size
    mesh.link(0, 1)
    mesh.tick()
    for shard in SHARDS:
        put(mesh.replicas[0], b"since", b"2", shard)
    mesh.tick()
    mesh.link(0, 2)
    mesh.tick(2)
    return Restored(mesh)


def test_people_are_told_of_every_shard_with_two_histories(restored: Restored) -> None:
    with pytest.raises(NotReady, match="another process"):
        put(restored.node, b"k")
    named = [alarm.fields["shards"] for alarm in restored.said() if isinstance(alarm, Alarm)]
    assert len(named) == 2 and named[-1] == f"{SHARD}, mesh"


def test_who_was_restored_goes_on_when_nothing_more_of_itself_comes(restored: Restored) -> None:
    restored.mesh.tick(GONE_S - 10)
    with pytest.raises(NotReady):
        put(restored.node, b"k")
    restored.mesh.tick(15)
    assert restored.said()[-1] == AlarmOver("node.cloned")
    for shard in SHARDS:
        put(restored.node, b"later", b"3", shard)
    restored.mesh.tick()
    for shard in SHARDS:
        assert len(restored.mesh.digests(shard)) == 1
        assert [restored.read(key, shard) for key in (b"past", b"since", b"later")] == [
            {b"1"}, {b"2"}, {b"3"},
        ]  # fmt: skip
        id = ChainId(restored.mesh.nodes[0], shard)
        assert all(len(r.lattice.branches(id)) == 1 for r in restored.mesh.replicas), "covered"


def test_who_has_no_peers_does_not_go_on(restored: Restored) -> None:
    for peer in (1, 2):
        restored.mesh.unlink(0, peer)
    restored.mesh.tick(2 * GONE_S)
    with pytest.raises(NotReady):
        put(restored.node, b"k")
    restored.mesh.link(0, 1)
    restored.mesh.tick(3)
    put(restored.node, b"k")


def test_another_process_that_writes_on_is_waited_for(restored: Restored) -> None:
    """Some of its writes come every half minute, by way of a peer, in a shard of its own."""
    mesh = restored.mesh
    disk = Lattice()
    disk.join(mesh.replicas[2].lattice)
    other = mesh.make(0, disk)
    other._own._nonce = lambda size: b"\x99" * size
    mesh.now_ns += OPENING_NS
    other.timer(mesh.now_ns)
    for number in range(6):
        put(other, b"other%d" % number, shard=OTHER)
        other.drain()
        if (1, 2) in mesh.links:
            mesh.unlink(1, 2)
        for chain in other.lattice.branches(ChainId(mesh.nodes[0], OTHER)):
            mesh.replicas[2].lattice.apply(chain.snapshot())
        mesh.link(1, 2)
        mesh.unlink(0, 2)
        mesh.link(0, 2)
        mesh.tick(GONE_S // 2)
        with pytest.raises(NotReady):
            put(restored.node, b"k")
    mesh.tick(GONE_S)
    put(restored.node, b"k")
    mesh.tick()
    assert restored.read(b"other5", OTHER) == {b"x"} == restored.read(b"k", "mesh")


def test_a_proof_of_a_peer_is_over_a_minute_after_the_last_one() -> None:
    mesh = Wire(2)
    mesh.link(0, 1)
    mesh.tick()
    node = mesh.replicas[0]
    for _ in range(3):
        node.met_clone(mesh.nodes[1])
        mesh.tick(GONE_S - 5)
        with pytest.raises(NotReady):
            put(node, b"k")
    mesh.tick(10)
    put(node, b"k")
    alarms = [e for _, e in mesh.effects if isinstance(e, Alarm | AlarmOver)]
    proved = Alarm("node.cloned", {"node": node.node, "proved_by": mesh.nodes[1]})
    assert alarms == [proved, AlarmOver("node.cloned")]
