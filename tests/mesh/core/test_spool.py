"""A store that fails, and what it holds once it can be written again."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from mesh.core.effects import Effect, Persist, Send, Stored
from mesh.core.ops import Delete, Op, Put
from mesh.core.persisting import stored_header
from mesh.core.replica import Replica
from mesh.core.spool import RETRY_NS, Spool
from tests.mesh.core.test_replica import SHARD, Wire
from tests.mesh.node.store_model import Model

WRITER, SPOOLED = 0, 1

shards = st.sampled_from(["mesh", SHARD])
keys = st.binary(min_size=1, max_size=1)
op = st.one_of(st.builds(Put, shards, keys, st.binary(max_size=3)), st.builds(Delete, shards, keys))
ops = st.lists(op, min_size=1, max_size=4)
steps = st.lists(
    st.tuples(st.sampled_from([WRITER, SPOOLED]), ops, st.booleans(), st.integers(0, 3)),
    min_size=1,
    max_size=12,
)


class Spooled:
    """A replica in a mesh of two, whose effects go through a spool to a store that may fail."""

    def __init__(self) -> None:
        self.mesh = Wire(2)
        self.replica = self.mesh.replicas[SPOOLED]
        self.spool = Spool(self.mesh.nodes[SPOOLED], self.replica.lattice, self.replica.roster)
        self.model = Model(set(self.mesh.blobs))
        self.now_ns = self.mesh.now_ns
        self.mesh.link(WRITER, SPOOLED)
        self.turn(fails=False)

    def turn(self, *, fails: bool) -> Sequence[Effect]:
        """One round of frames both ways; the effects that were carried out."""
        for effect in self.mesh.replicas[WRITER].drain():
            if isinstance(effect, Send):
                self.replica.receive(self.mesh.nodes[WRITER], effect.frame, self.now_ns)
        batch = self.spool.take(self.replica.drain(), self.now_ns)
        if batch and fails:
            self.spool.failed(self.now_ns)
        elif batch and self._store(batch):
            self.replica.peer_lagging(self.mesh.nodes[WRITER], self.now_ns)
        allowed = self.spool.allowed()
        for effect in allowed:
            if isinstance(effect, Send):
                self.mesh.replicas[WRITER].receive(
                    self.mesh.nodes[SPOOLED], effect.frame, self.now_ns
                )
        return allowed

    def _store(self, batch: Sequence[Stored]) -> bool:
        for effect in batch:
            self.model.apply(effect)
        return self.spool.stored()

    def stored_is_held(self) -> bool:
        lattice = self.replica.lattice
        held = {
            (id, chain.epoch): (stored_header(chain.header), chain.live)
            for id in lattice.chains()
            for chain in lattice.branches(id)
            if chain.header is not None
        }
        return self.model.branches == held and self.model.statements == set(
            self.replica.roster.statements()
        )


def write(replica: Replica, ops: Sequence[Op]) -> None:
    replica.local(ops, 0)


@given(steps)
def test_once_it_recovers_the_store_has_what_the_node_holds(
    steps: list[tuple[int, list[Op], bool, int]],
) -> None:
    world = Spooled()
    for node, written, fails, wait in steps:
        write(world.mesh.replicas[node], written)
        world.turn(fails=fails)
        world.now_ns += wait * RETRY_NS // 2
    for _ in range(4):
        world.now_ns += 20 * RETRY_NS
        for replica in world.mesh.replicas:
            replica.timer(world.now_ns)
        for _ in range(4):
            world.turn(fails=False)
    assert world.spool.retry_ns is None
    assert world.stored_is_held()
    assert len({replica.lattice.digest(SHARD) for replica in world.mesh.replicas}) == 1
    assert len({replica.lattice.digest("mesh") for replica in world.mesh.replicas}) == 1


def test_what_this_node_wrote_is_not_sent_before_it_is_stored() -> None:
    world = Spooled()
    write(world.replica, [Put("mesh", b"own", b"1")])
    assert not any(isinstance(effect, Send) for effect in world.turn(fails=True))
    write(world.mesh.replicas[WRITER], [Put(SHARD, b"theirs", b"1")])
    allowed = world.turn(fails=True)
    assert any(isinstance(effect, Persist) for effect in allowed), "what others wrote goes on"
    assert world.mesh.replicas[WRITER].read(world.mesh.nodes[SPOOLED], "mesh", b"own") is None
    world.now_ns += RETRY_NS
    world.turn(fails=False)
    world.now_ns += 20 * RETRY_NS
    for _ in range(6):
        world.replica.timer(world.now_ns)
        world.turn(fails=False)
    assert world.mesh.replicas[WRITER].read(world.mesh.nodes[SPOOLED], "mesh", b"own") == b"1"


def test_a_failing_store_is_left_alone_for_a_while() -> None:
    world = Spooled()
    write(world.replica, [Put("mesh", b"k", b"1")])
    world.turn(fails=True)
    write(world.replica, [Put("mesh", b"k", b"2")])
    assert world.spool.take(world.replica.drain(), world.now_ns + RETRY_NS - 1) == []
    (whole,) = world.spool.take(world.replica.drain(), world.now_ns + RETRY_NS)
    world.model.apply(whole)
    assert world.stored_is_held()
