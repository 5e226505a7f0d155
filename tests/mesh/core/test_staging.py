"""Large answers that break off: what has come is gone on with, and cannot be poisoned for long."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crdt.chain
from crdt.chain import Chain, RootMismatch
from crdt.delta import Delta
from crdt.entry import pack, seq_of
from crdt.header import ChainId, Cover, Epoch, Header
from crdt.lattice import Applied, Lattice
from crdt.root import Plan
from mesh.core import fetching, staging, wire
from mesh.core.effects import Alarm, DropPeer, Effect, Send
from mesh.core.errors import PeerError
from mesh.core.fetching import VERIFY_KEYS, VERIFY_STEP_NS, Fetching, Host
from mesh.core.ops import Delete, Put
from mesh.core.staging import STAGE_NS, STAGES_MAX, Stage, Stages
from mesh.core.sync import WINDOW, Serving, vector_of
from tests.mesh.core.test_replica import Wire, put

ID = ChainId(b"n" * 16, "a" * 32)
PEERS = tuple(b"%016d" % i for i in range(4))
SHARD = ID.shard
RECORDS = 50_000
Ops: TypeAlias = list[tuple[int, bool]]


class Author:
    """A chain, and the lattice that serves it."""

    def __init__(self) -> None:
        self.chain = Chain(ID, Epoch(1, b"e" * 8))
        self.lattice = Lattice()

    def write(self, ops: Ops) -> None:
        """(key, whether to put it), and one flush."""
        head = self.chain.head
        for key, puts in ops:
            if puts:
                self.chain.put(b"key%d" % key, b"%d" % self.chain.head)
            else:
                self.chain.delete(b"key%d" % key)
        before = self.chain.epoch
        if self.chain.head > head:
            covers = self.chain.covers
            self.chain.seal(b"m" * 16, lambda _text: bytes(64), covers)
            self.lattice.reseal(self.chain, before)

    def open_epoch(self) -> None:
        """A restart, and its first flush."""
        before = self.chain.epoch
        cover = Cover(before, self.chain.head, self.chain.head)
        self.chain.open(Epoch(before.counter + 1, b"f" * 8))
        self.chain.put(b"opened", b"%d" % before.counter)
        self.chain.seal(b"m" * 16, lambda _text: bytes(64), (*self.chain.covers, cover))
        self.lattice.reseal(self.chain, before)


class Receiver:
    """A lattice that asks one peer after the other, `Fetching` in between."""

    def __init__(self, lattice: Lattice) -> None:
        self.lattice = lattice
        self.sent: list[wire.Frame] = []
        self.alone: list[bool] = []
        self.now_ns = 0
        host = Host(lambda _peer, frame: self.sent.append(frame), self._take)
        self.fetching = Fetching(lattice, Wire(1).replicas[0].roster, host)
        self.wants: list[wire.Want] = []

    def _take(
        self, _peer: bytes, delta: Delta, alone: bool, _now_ns: int, made: Plan | None
    ) -> bool:
        self.alone.append(alone)
        try:
            assert isinstance(self.lattice.apply(delta, made), Applied)
        except RootMismatch:
            return False
        return True

    def ask(self, peer: bytes, source: Lattice, pieces: int | None) -> bool:
        """Take so many pieces of the peer's answer (None: all of it); whether it came whole."""
        self.fetching.up(peer)
        self.fetching.enqueue(peer, ID.short())
        self.fetching.pump(peer, 0)
        want = wire.decode(wire.encode(self.sent.pop()))
        assert isinstance(want, wire.Want)
        self.wants.append(want)
        serving = Serving(want, source, None)
        serving.credit = 1 << 30
        taken = len(self.alone)
        for frame in serving.frames():
            if isinstance(frame, wire.Answer):
                for delta in frame.deltas:
                    self._take(peer, delta, True, 0, None)
            elif isinstance(frame, wire.Part):
                if frame.index == pieces:
                    break
                part = wire.decode(wire.encode(frame))
                assert isinstance(part, wire.Part)
                assert self.fetching.part(peer, part, 0)
                while self.fetching.verifying():
                    self.now_ns += VERIFY_STEP_NS
                    assert not self.fetching.verify(peer, self.now_ns)
        self.fetching.down(peer, 0)
        self.sent.clear()
        return len(self.alone) > taken


@settings(max_examples=400)
@given(st.integers(0, 1 << 32))
def test_pieces_of_ever_newer_states_make_the_newest(seed: int) -> None:
    """Whatever is put, deleted, overwritten or restarted between the pieces, and below the ring."""
    rng = random.Random(seed)

    def some(count_max: int) -> Ops:
        keys = rng.choices(range(12), k=rng.randint(0, count_max))
        return [(key, rng.random() < 0.5) for key in keys]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crdt.chain, "RING_MAX", rng.choice((1, 2, 4, 100)))
        patch.setattr(wire, "CHUNK_BYTES", 60)
        patch.setattr(fetching, "VERIFY_KEYS", rng.choice((1, 3, 4096)))
        author = Author()
        author.write([(key, True) for key in range(rng.choice((0, 6, 12)))])
        receiver = Receiver(Lattice())
        if author.chain.header is not None:
            receiver.lattice.apply(author.chain.snapshot())
        author.write([*((20 + i, True) for i in range(4)), *some(20)])
        for number in range(rng.randint(0, 4)):
            receiver.ask(PEERS[number % 3], author.lattice, rng.randint(0, 5))
            author.write(some(12))
            if rng.random() < 0.2:
                author.open_epoch()
        author.write([(30, True), (20, False)])
        assert receiver.ask(PEERS[3], author.lattice, None)
        ours = receiver.lattice.latest(ID)
        assert ours is not None and ours.header == author.chain.header
        assert list(ours.live.items()) == list(author.chain.live.items())


def test_the_next_peer_goes_on_where_the_last_one_broke_off() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "CHUNK_BYTES", 60)
        author = Author()
        author.write([(key, True) for key in range(30)])
        receiver = Receiver(Lattice())
        assert not receiver.ask(PEERS[0], author.lattice, 3)
        author.write([(3, False), (4, True)])
        assert receiver.ask(PEERS[1], author.lattice, None)
        first, second = receiver.wants
        assert first.staged == {}
        cursor = second.staged[ID.short()]
        assert cursor.epoch == author.chain.epoch and 3 <= cursor.seq < 30
        assert receiver.alone == [False]


def test_a_peer_that_is_just_there_or_behind_answers_as_if_nothing_were_staged() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "CHUNK_BYTES", 60)
        author = Author()
        older: list[Lattice] = []
        for key in range(30):
            author.write([(key, True)])
            older.append(Lattice())
            older[-1].join(author.lattice)
        receiver = Receiver(Lattice())
        receiver.ask(PEERS[0], author.lattice, 3)
        receiver.ask(PEERS[1], author.lattice, 0)
        cursor = receiver.wants[-1].staged[ID.short()]
        assert receiver.ask(PEERS[1], older[cursor.seq - 1], None)
        ours = receiver.lattice.latest(ID)
        assert ours is not None and ours.head == cursor.seq
        assert receiver.ask(PEERS[1], author.lattice, None)


def test_a_stage_is_dropped_when_the_chain_has_advanced_otherwise_or_it_is_old() -> None:
    stages = Stages()
    author = Author()
    author.write([(1, True)])
    held = vector_of(author.lattice, [ID])[ID.short()]
    delta = author.chain.snapshot()
    stages.keep(b"short", None, Stage.of(delta, held), 0)
    assert stages.take(b"short", None, (), 1) is None
    assert len(stages) == 0
    stages.keep(b"short", None, Stage.of(delta, held), 0)
    assert stages.take(b"short", None, held, STAGE_NS - 1) is not None
    stages.keep(b"short", None, Stage.of(delta, held), 0)
    assert stages.take(b"short", None, held, STAGE_NS) is None


def test_stages_are_bounded_in_number_and_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "STAGED_RECORDS_MAX", 10)
    author = Author()
    author.write([(key, True) for key in range(6)])
    stages = Stages()
    for i in range(3):
        stage = Stage.of(author.chain.snapshot(), ())
        stage.add(author.chain.snapshot(), PEERS[0], 100, 1 << 20)
        stages.keep(b"%08d" % i, None, stage, i)
    assert len(stages) == 1
    for i in range(STAGES_MAX + 5):
        stages.keep(b"e%07d" % i, PEERS[i % 2], Stage.of(author.chain.snapshot(), ()), i)
    assert len(stages) == STAGES_MAX
    with pytest.raises(PeerError):
        Stage.of(author.chain.snapshot(), ()).add(author.chain.snapshot(), PEERS[0], 5, 1 << 20)
    held_bytes = author.chain.size_bytes
    Stage.of(author.chain.snapshot(), ()).add(author.chain.snapshot(), PEERS[0], 100, held_bytes)
    with pytest.raises(PeerError, match="bytes of records"):
        Stage.of(author.chain.snapshot(), ()).add(
            author.chain.snapshot(), PEERS[0], 100, held_bytes - 1
        )
    monkeypatch.setattr(staging, "STAGED_BYTES_MAX", 2 * held_bytes)
    monkeypatch.setattr(staging, "STAGED_RECORDS_MAX", 1000)
    stages = Stages()
    for i in range(3):
        stage = Stage.of(author.chain.snapshot(), ())
        stage.add(author.chain.snapshot(), PEERS[0], 100, held_bytes)
        stages.keep(b"%08d" % i, None, stage, i)
    assert len(stages) == 2


# ---- between nodes ----


class Mesh(Wire):
    """Node 0 wrote a large chain, 1 and 2 hold it, 3 wants it; links break after some pieces."""

    def __init__(self, records: int = RECORDS) -> None:
        super().__init__(4)
        for start in range(0, records, 1000):
            ops = [Put(SHARD, b"k%06d" % i, b"r" * 40) for i in range(start, start + 1000)]
            self.replicas[0].local(ops, 0)
            self.replicas[0].drain()
        for i in (1, 2):
            self.replicas[i].lattice.join(self.replicas[0].lattice)
        self.breaks_after: int | None = None
        self.pieces: list[int] = []
        self.drop = self._break

    def _break(self, sender: int, receiver: int, data: bytes) -> bool:
        if receiver == 3 and isinstance(wire.decode(data), wire.Part):
            if self.breaks_after is not None and len(self.pieces) >= self.breaks_after:
                self.links -= {(sender, 3), (3, sender)}
                return True
            self.pieces.append(len(data))
        return False

    def visit(self, peer: int, pieces: int | None) -> int:
        """Link node 3 with a peer until so many pieces have come; the bytes carried."""
        self.breaks_after, self.pieces = pieces, []
        self.link(3, peer)
        carried = self.run()
        self.links -= {(peer, 3), (3, peer)}
        self.replicas[3].peer_down(self.nodes[peer], self.now_ns)
        self.replicas[peer].peer_down(self.nodes[3], self.now_ns)
        self.run()
        return carried

    def whole(self) -> bool:
        """Whether node 3 holds the chain as its author does."""
        id = ChainId(self.nodes[0], SHARD)
        ours, theirs = (self.replicas[i].lattice.latest(id) for i in (3, 0))
        return bool(ours and theirs and ours.header == theirs.header)


def test_a_relay_that_dies_again_and_again_costs_hardly_more_than_one_snapshot() -> None:
    mesh = Mesh()
    snapshot_bytes = mesh.visit(1, None)
    assert mesh.whole()
    mesh = Mesh()
    carried = 0
    for turn in range(8):
        carried += mesh.visit(1 + turn % 2, 2)
        assert not mesh.whole()
        # The author goes on meanwhile, and one relay hears of it.
        ops = [Delete(SHARD, b"k%06d" % i) for i in range(turn * 100, turn * 100 + 50)]
        mesh.replicas[0].local([*ops, Put(SHARD, b"k%06d" % (turn * 7), b"again")], 0)
        mesh.replicas[0].drain()
        mesh.replicas[1 + turn % 2].lattice.join(mesh.replicas[0].lattice)
    mesh.replicas[2].lattice.join(mesh.replicas[0].lattice)
    carried += mesh.visit(2, None)
    assert mesh.whole()
    assert carried <= 1.2 * snapshot_bytes
    assert not any(isinstance(effect, DropPeer | Alarm) for _, effect in mesh.effects)


def test_a_large_chain_is_verified_in_steps_between_which_others_are_served() -> None:
    mesh = Mesh()
    timer, turns = mesh.replicas[3].timer, 0

    def between(now_ns: int) -> None:
        nonlocal turns
        assert not mesh.whole()
        turns += 1
        put(mesh.replicas[3], b"own %d" % turns)
        timer(now_ns)

    mesh.replicas[3].timer = between  # type: ignore[method-assign]
    mesh.visit(1, None)
    assert mesh.whole()
    # Each key is looked at twice: for its bucket, and with its bucket.
    assert turns >= 2 * RECORDS / VERIFY_KEYS
    assert len(mesh.digests()) == 2, "what 3 wrote meanwhile is its own"
    assert mesh.digests(SHARD) == {mesh.replicas[0].lattice.digest(SHARD)}


def test_a_link_that_ends_while_its_chain_is_verified_costs_nothing_but_time() -> None:
    mesh = Mesh()
    relay, asker = mesh.nodes[1], mesh.replicas[3]
    mesh._verified = lambda: False  # type: ignore[method-assign]
    mesh.visit(1, None)
    assert not mesh.whole() and not asker._sync.verifying()
    mesh.link(3, 2)
    mesh.run()
    assert asker._sync.verifying() == [mesh.nodes[2]]
    del mesh._verified
    mesh.run()
    assert mesh.whole()
    assert not any(isinstance(e, DropPeer) and e.peer == relay for _, e in mesh.effects)


def test_who_sends_more_than_it_was_asked_for_while_a_chain_is_verified_is_dropped() -> None:
    mesh = Mesh()
    mesh._verified = lambda: False  # type: ignore[method-assign]
    mesh.link(3, 1)
    mesh.run()
    asker, relay = mesh.replicas[3], mesh.nodes[1]
    assert asker._sync.verifying() == [relay]
    done = wire.encode(wire.Done(1))
    for _ in range(WINDOW + 1):
        asker.receive(relay, done, mesh.now_ns)
    drops = [effect.peer for effect in asker.drain() if isinstance(effect, DropPeer)]
    assert drops == [relay]
    assert not asker._sync.verifying()


def test_what_a_peer_writes_while_it_answers_does_not_make_it_go_further_ahead() -> None:
    """Pushes of a chain that is being asked for are no part of the answer: who takes them for one
    has it go on before what has come is verified, and drops it for that."""
    mesh = Wire(3)
    asker, *authors = mesh.replicas
    # Of the two that are asked for in one go the later one waits while the other is verified.
    other, author = sorted(authors, key=lambda replica: ChainId(replica.node, SHARD).short())
    for replica, records in ((other, 2 * VERIFY_KEYS), (author, 5 * VERIFY_KEYS)):
        for start in range(0, records, VERIFY_KEYS):
            keys = [b"k%06d" % i for i in range(start, start + VERIFY_KEYS)]
            replica.local([Put(SHARD, key, b"r" * 100) for key in keys], 0)
            replica.drain()
    author.lattice.join(other.lattice)
    verified = mesh._verified
    written = 0

    def writing() -> bool:
        nonlocal written
        if written < 2 * WINDOW and asker._sync.verifying():
            written += 1
            put(author, b"meanwhile %d" % written, shard=SHARD)
            return True
        return verified()

    mesh._verified = writing  # type: ignore[method-assign]
    mesh.link(0, mesh.replicas.index(author))
    mesh.run()
    assert written == 2 * WINDOW
    assert not [effect for _, effect in mesh.effects if isinstance(effect, DropPeer)]
    assert asker.lattice.digest(SHARD) == author.lattice.digest(SHARD)


def test_an_answer_of_many_small_chains_does_not_wait_for_anything() -> None:
    mesh = Wire(2)
    for i in range(1, 1501):  # 2 MB: twice what may be in flight
        put(mesh.replicas[1], b"key", b"r" * 1200, f"{i:032x}")
    mesh.run()
    mesh.link(0, 1)
    mesh.run()
    held = mesh.replicas[0].lattice
    assert len(list(held.chains())) == 1500


class Poisoner:
    """Alters what node `liar` sends: a record in each piece."""

    def __init__(self, mesh: Mesh, liar: int) -> None:
        self.mesh = mesh
        self.liar = liar
        self.real = mesh.replicas[liar].drain
        mesh.replicas[liar].drain = self.drain  # type: ignore[method-assign]

    def drain(self) -> list[Effect]:
        return [self._alter(effect) for effect in self.real()]

    @staticmethod
    def _alter(effect: Effect) -> Effect:
        if not isinstance(effect, Send):
            return effect
        part = wire.decode(effect.frame)
        if not isinstance(part, wire.Part) or not part.delta.puts:
            return effect
        key, entry = next(iter(part.delta.puts.items()))
        puts = {**part.delta.puts, key: pack(seq_of(entry), b"poison")}
        poisoned = replace(part, delta=replace(part.delta, puts=puts, payload=b""))
        return effect._replace(frame=wire.encode(poisoned))


def test_who_poisons_a_stage_costs_one_retry() -> None:
    mesh = Mesh(20_000)
    Poisoner(mesh, 1)
    mesh.visit(1, 2)
    mesh.visit(2, None)
    assert mesh.whole()
    drops = [e.peer for i, e in mesh.effects if i == 3 and isinstance(e, DropPeer)]
    assert drops == [], "nobody can be blamed"


def test_who_poisons_again_and_again_does_not_hold_a_chain_up() -> None:
    """An honest relay that is cut off each time gets further each time all the same."""
    mesh = Mesh(20_000)
    Poisoner(mesh, 1)
    visits = 0
    while not mesh.whole() and visits < 8:
        mesh.visit(1, 1)
        mesh.visit(2, 3)
        visits += 1
    assert 2 < visits < 8
    assert not any(
        isinstance(e, DropPeer) and e.peer == mesh.nodes[2] for i, e in mesh.effects if i == 3
    )


def test_who_poisons_the_end_is_asked_for_it_whole_and_found_out() -> None:
    mesh = Mesh(20_000)
    Poisoner(mesh, 1)
    mesh.visit(2, 2)
    mesh.visit(1, None)
    assert not mesh.whole()
    drops = [e.peer for i, e in mesh.effects if i == 3 and isinstance(e, DropPeer)]
    assert drops == [mesh.nodes[1]]
    mesh.visit(2, None)
    assert mesh.whole()


def altered(part: wire.Part, **fields: Any) -> wire.Part:
    return replace(part, delta=replace(part.delta, **fields))


def signed(header: Header, **fields: Any) -> Header:
    return header._replace(**fields).signed(b"", lambda _text: bytes(64))


@pytest.mark.parametrize("fault", ["crumb", "other", "unasked", "deletes later"])
def test_crumbs_and_pieces_that_do_not_belong_together_cost_the_link(fault: str) -> None:
    mesh = Mesh(20_000)
    seen: list[wire.Part] = []

    def note(_sender: int, _receiver: int, data: bytes) -> bool:
        part = wire.decode(data)
        if isinstance(part, wire.Part):
            seen.append(part)
            return True
        return False

    mesh.drop = note
    mesh.link(3, 1)
    mesh.run()
    first, second = seen[:2]
    header = first.delta.header
    few = dict(list(first.delta.puts.items())[:10])
    pieces = {
        "crumb": [altered(first, puts=few, payload=b"")],
        "other": [first, altered(second, header=signed(header, hi=header.hi + 1))],
        "unasked": [altered(first, header=signed(header, chain=ChainId(b"x" * 16, SHARD)))],
        "deletes later": [first, altered(second, keep=b"")],
    }[fault]
    for piece in pieces:
        mesh.replicas[3].receive(mesh.nodes[1], wire.encode(piece), mesh.now_ns)
    effects = mesh.replicas[3].drain()
    assert [e.peer for e in effects if isinstance(e, DropPeer)] == [mesh.nodes[1]]


def test_what_does_not_lead_on_is_asked_for_afresh_at_once() -> None:
    """A holder of something that is no prefix gets the whole within the same link."""
    mesh = Wire(2)
    mesh.drop = lambda *_: True
    put(mesh.replicas[0], b"k", shard=SHARD)
    mesh.run()
    id = ChainId(mesh.nodes[0], SHARD)
    held = mesh.replicas[0].lattice.latest(id)
    assert held is not None and held.header is not None
    for i in range(20_000):
        put(mesh.replicas[0], b"k%d" % i, b"r" * 40, SHARD)
    mesh.run()
    other = Chain(id, held.epoch)
    other.put(b"k", b"not what was written")
    header = held.header
    other.seal(b"m" * 16, lambda _text: header.signature, ())
    mesh.replicas[1].lattice.add(other)
    mesh.drop = lambda *_: False
    mesh.link(0, 1)
    mesh.run()
    assert len(mesh.digests(SHARD)) == 1
