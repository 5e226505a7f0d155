"""Replicas that keep some shards: what reaches whom, what is dropped, and that it stays dropped."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.header import ChainId
from mesh.core import wire
from mesh.core.effects import Alarm, DropBranches, DropPeer
from tests.mesh.core.test_replica import Wire, put

RED, BLUE = "a" * 32, "b" * 32


class Keeping(Wire):
    """Replicas of which each keeps some VPCs' shards, and may have some."""

    def __init__(self, *kept: str, denied: tuple[tuple[int, str], ...] = ()) -> None:
        super().__init__(len(kept))
        self.denied = set(denied)
        self.kept = [set[str]() for _ in kept]
        for i, names in enumerate(kept):
            self.keep(i, *({"r": RED, "b": BLUE}[name] for name in names))

    def keep(self, i: int, *vpcs: str) -> None:
        self.kept[i] = set(vpcs)
        self.replicas[i].set_interest(self.kept[i], self._entitled)

    def _entitled(self, node: bytes, shard: str) -> bool:
        return (self.nodes.index(node), shard) not in self.denied

    def held(self, i: int, shard: str) -> set[int]:
        """The nodes whose chains of the shard node `i` holds."""
        lattice = self.replicas[i].lattice
        return {self.nodes.index(id.node) for id in lattice.chains(shard)}

    def unharmed(self) -> None:
        assert not any(isinstance(effect, DropPeer | Alarm) for _, effect in self.effects)


def test_a_shard_goes_to_who_keeps_it_by_push_and_by_exchange() -> None:
    mesh = Keeping("r", "r", "b", "")
    put(mesh.replicas[0], b"before", shard=RED)
    put(mesh.replicas[2], b"before", shard=BLUE)
    for i in (1, 2, 3):
        mesh.link(0, i)
    mesh.run()
    put(mesh.replicas[0], b"after", shard=RED)
    put(mesh.replicas[0], b"all")
    mesh.tick()
    assert [mesh.held(i, RED) for i in range(4)] == [{0}, {0}, set(), set()]
    assert [mesh.held(i, BLUE) for i in range(4)] == [set(), set(), {2}, set()]
    assert len(mesh.digests()) == 1
    for i in (1, 2, 3):
        assert mesh.replicas[0].in_sync_ns(mesh.nodes[i]), "what both keep is equal"
    mesh.unharmed()


def test_who_begins_to_keep_a_shard_has_it_at_once_from_a_peer() -> None:
    mesh = Keeping("r", "")
    for i in range(50):
        put(mesh.replicas[0], b"k%d" % i, shard=RED)
        mesh.replicas[0].drain()
    mesh.link(0, 1)
    mesh.tick(3)
    assert mesh.held(1, RED) == set()
    mesh.keep(1, RED)
    mesh.run()
    assert len(mesh.digests(RED)) == 1
    put(mesh.replicas[0], b"more", shard=RED)
    mesh.run()
    assert len(mesh.digests(RED)) == 1, "and is pushed to from then on"
    mesh.unharmed()


def test_who_is_not_entitled_gets_nothing_and_is_not_blamed() -> None:
    mesh = Keeping("r", "r", denied=((1, RED),))
    put(mesh.replicas[0], b"k", shard=RED)
    mesh.link(0, 1)
    put(mesh.replicas[0], b"k2", shard=RED)
    mesh.tick()
    id = ChainId(mesh.nodes[0], RED)
    for frame in (
        wire.Want(1, {id.short(): ()}),
        wire.Heads(RED, wire.FIRST, wire.LAST, {}),
        wire.Heads("", wire.FIRST, wire.FIRST, {id.short(): ()}),
        wire.Probe(bytes(16)),
        wire.Recent(bytes(16), bytes(16), {id.short(): 5}, reply=False),
    ):
        mesh.replicas[0].receive(mesh.nodes[1], wire.encode(frame), mesh.now_ns)
        mesh.run()
    assert mesh.held(1, RED) == set()
    mesh.unharmed()


def test_what_is_kept_no_longer_is_dropped_but_for_what_was_written_here() -> None:
    mesh = Keeping("r", "r")
    mesh.link(0, 1)
    for i in (0, 1):
        put(mesh.replicas[i], b"k%d" % i, shard=RED)
    mesh.tick(3)
    for replica in mesh.replicas:
        replica.take_touched()
    mesh.effects.clear()
    mesh.keep(1)
    mesh.run()
    assert mesh.held(1, RED) == {1}
    (touched,) = mesh.replicas[1].take_touched()
    assert (touched.node, touched.shard, tuple(touched.keys)) == (mesh.nodes[0], RED, (b"k0",))
    assert mesh.replicas[1].holdings.read(mesh.nodes[0], RED, b"k0") is None
    (dropped,) = [e for i, e in mesh.effects if isinstance(e, DropBranches)]
    assert dropped.chain == ChainId(mesh.nodes[0], RED) and len(dropped.epochs) == 1
    put(mesh.replicas[0], b"later", shard=RED)
    mesh.tick()
    assert mesh.held(1, RED) == {1}
    mesh.keep(1, RED)
    mesh.tick(3)
    assert len(mesh.digests(RED)) == 1
    mesh.unharmed()


def test_who_lacks_something_drops_nothing_before_its_peers_have_told() -> None:
    """What it lacks may be why it keeps a shard, whose writer may have lost what is held here."""
    for comes_back in (True, False):
        mesh = Keeping("r", "r")
        mesh.link(0, 1)
        put(mesh.replicas[0], b"k", shard=RED)
        mesh.tick(3)
        mesh.unlink(0, 1)
        mesh.replicas[1] = mesh.make(1, mesh.replicas[1].lattice, lacks=True)
        mesh.keep(1)
        mesh.tick(30)
        assert (mesh.held(1, RED), mesh.replicas[1].drops_late) == ({0}, False)
        mesh.link(0, 1)
        mesh.tick()
        assert (mesh.held(1, RED), mesh.replicas[1].drops_late) == ({0}, True)
        mesh.keep(1, *([RED] if comes_back else []))
        mesh.tick()
        assert mesh.held(1, RED) == ({0} if comes_back else set())
        assert not (mesh.replicas[1].lacks or mesh.replicas[1].drops_late)
        mesh.unharmed()


def kept_again() -> tuple[Keeping, ChainId]:
    """Node 1 has dropped the last that node 0 wrote; node 2 knows only what came before."""
    mesh = Keeping("r", "r", "r")
    put(mesh.replicas[0], b"old", shard=RED)
    mesh.replicas[0].drain()
    mesh.replicas[2].lattice.join(mesh.replicas[0].lattice)
    put(mesh.replicas[0], b"new", shard=RED)
    mesh.link(0, 1)
    mesh.run()
    id = ChainId(mesh.nodes[0], RED)
    mesh.keep(1)
    mesh.tick()
    return mesh, id


def test_a_shard_that_is_kept_again_is_not_older_than_it_was_while_its_writer_is_there() -> None:
    mesh, id = kept_again()
    mesh.link(1, 2)
    mesh.tick()
    mesh.drop = lambda sender, receiver, frame: sender == 0
    mesh.keep(1, RED)
    mesh.tick()
    assert mesh.replicas[1].lattice.latest(id) is None, "only something older comes meanwhile"
    mesh.drop = lambda sender, receiver, frame: False
    mesh.tick()
    assert len(mesh.digests(RED)) == 1
    latest = mesh.replicas[1].lattice.latest(id)
    assert latest is not None
    assert latest.head == 2
    mesh.unharmed()


def test_what_a_lost_node_wrote_last_keeps_nobody_from_agreeing_on_the_rest() -> None:
    mesh, id = kept_again()
    mesh.unlink(0, 1)
    mesh.keep(1, RED)
    mesh.link(1, 2)
    mesh.tick()
    latest = mesh.replicas[1].lattice.latest(id)
    assert latest is not None
    assert latest.head == 1
    mesh.link(0, 2)  # it was not lost after all
    mesh.tick()
    assert len(mesh.digests(RED)) == 1
    latest = mesh.replicas[1].lattice.latest(id)
    assert latest is not None
    assert latest.head == 2
    mesh.unharmed()


def test_deltas_of_a_shard_that_is_not_kept_are_ignored() -> None:
    mesh = Keeping("r", "")
    mesh.link(0, 1)
    mesh.run()
    put(mesh.replicas[0], b"k", shard=RED)
    mesh.replicas[0].drain()
    chain = mesh.replicas[0].lattice.latest(ChainId(mesh.nodes[0], RED))
    assert chain is not None
    frame = wire.encode(wire.Deltas((chain.snapshot(),)))
    mesh.replicas[1].receive(mesh.nodes[0], frame, mesh.now_ns)
    mesh.run()
    assert mesh.held(1, RED) == set()
    mesh.unharmed()


def test_a_node_opens_only_after_it_has_asked_for_the_shards_it_came_to_keep() -> None:
    """It learns from `mesh` what it keeps, and then of its own chain there, before it writes."""
    mesh = Keeping("r", "r")
    mesh.link(0, 1)
    put(mesh.replicas[1], b"mine", shard=RED)
    mesh.run()
    mesh.replicas[0].peer_down(mesh.nodes[1], mesh.now_ns)
    mesh.replicas[1] = mesh.make(1)
    mesh.keep(1)
    mesh.link(0, 1)
    mesh.replicas[1].drain()  # the SYNC without the shard is lost; it is known before an answer
    mesh.keep(1, RED)
    assert not mesh.replicas[1].writable
    mesh.tick(2)
    assert mesh.replicas[1].writable
    put(mesh.replicas[1], b"more", shard=RED)
    mesh.run()
    latest = mesh.replicas[0].lattice.latest(ChainId(mesh.nodes[1], RED))
    assert latest is not None and latest.epoch.counter == 2
    assert set(latest.live) == {b"mine", b"more"}
    assert not mesh.replicas[1].cloned


@settings(max_examples=60)
@given(st.integers(0, 1 << 32))
def test_at_rest_who_keeps_a_shard_agrees_and_nobody_else_has_any_of_it(seed: int) -> None:
    """Interest and entitlement come and go, links break, pushes are lost."""
    rng = random.Random(seed)
    mesh = Keeping("rb", "r", "b", "")
    for a in range(4):
        for b in range(a):
            mesh.link(a, b)
    mesh.tick(2)
    for step in range(40):
        i, shard = rng.randrange(4), rng.choice((RED, BLUE))
        mesh.drop = lambda *_: rng.random() < 0.2
        match rng.randrange(4):
            case 0:
                mesh.keep(i, *mesh.kept[i], shard)
            case 1 if not mesh.replicas[i].writes(shard):
                mesh.keep(i, *mesh.kept[i] - {shard})
            case 2:
                mesh.keep(i, *mesh.kept[i], shard)
                put(mesh.replicas[i], b"k%d" % rng.randrange(5), b"%d" % step, shard)
            case _:
                put(mesh.replicas[i], b"k%d" % rng.randrange(5), b"%d" % step)
        mesh.run()
        for other in range(4):
            for name in (RED, BLUE):
                if name not in mesh.kept[other]:
                    assert mesh.held(other, name) <= {other}
    mesh.drop = lambda *_: False
    mesh.tick(60)
    for name in (RED, BLUE):
        keepers = [i for i in range(4) if name in mesh.kept[i]]
        assert len({mesh.replicas[i].lattice.digest(name) for i in keepers}) <= 1
    assert len(mesh.digests()) == 1
    mesh.unharmed()
