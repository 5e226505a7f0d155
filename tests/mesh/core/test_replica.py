"""Two and three replicas over a perfect or a lossy wire, driven by hand."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256

import pytest

from crdt.chain import Chain
from crdt.delta import RECORD_BYTES_MAX
from crdt.header import ChainId, Epoch
from crdt.lattice import Lattice
from mesh.core import ed25519, model, wire
from mesh.core.bounds import Quotas, bytes_of
from mesh.core.effects import Alarm, DropBranches, DropPeer, Effect, Persist, Send
from mesh.core.errors import NotReady, Refused
from mesh.core.fetching import VERIFY_STEP_NS
from mesh.core.ops import Delete, Put, Touched
from mesh.core.replica import OPENING_NS, SECOND_NS, UNSIGNED_MAX, Replica
from mesh.core.roster import Roster
from mesh.core.statements import found_mesh


class Wire:
    """Replicas joined by links that carry frames in order, `drop` permitting."""

    def __init__(self, count: int, quotas: Quotas | None = None) -> None:
        """`quotas` are those of all nodes but the first."""
        self.seeds = [sha256(b"node%d" % i).digest() for i in range(count)]
        keys = [ed25519.public_key(seed) for seed in self.seeds]
        self.nodes = [ed25519.node_id(key) for key in keys]
        blobs = list(found_mesh("m", b"r" * 32, self.seeds[0], "n0", "s0"))
        founder = Roster.founded_by(blobs)
        for i in range(1, count):
            blob = founder.admit(self.seeds[0], keys[i], f"n{i}", f"s{i}", quotas=quotas)
            founder.add([blob])
        self.blobs = founder.statements()
        self.now_ns = 0
        self.drop: Callable[[int, int, bytes], bool] = lambda sender, receiver, frame: False
        self.replicas = [self.make(i) for i in range(count)]
        self.links: set[tuple[int, int]] = set()
        self.effects: list[tuple[int, Effect]] = []
        self.now_ns = OPENING_NS
        for replica in self.replicas:
            replica.timer(self.now_ns)

    def make(self, i: int, lattice: Lattice | None = None, *, lacks: bool = False) -> Replica:
        rng = random.Random(i)
        return Replica(
            self.nodes[i],
            Roster.founded_by(self.blobs),
            lattice or Lattice(),
            sign=lambda message: ed25519.sign(self.seeds[i], message),
            nonce=lambda size: rng.randbytes(size),
            jitter=rng.random,
            now_ns=self.now_ns,
            lacks=lacks,
        )

    def link(self, a: int, b: int) -> None:
        self.links |= {(a, b), (b, a)}
        self.replicas[a].peer_up(self.nodes[b], self.now_ns)
        self.replicas[b].peer_up(self.nodes[a], self.now_ns)

    def unlink(self, a: int, b: int) -> None:
        self.links -= {(a, b), (b, a)}
        self.replicas[a].peer_down(self.nodes[b], self.now_ns)
        self.replicas[b].peer_down(self.nodes[a], self.now_ns)

    def run(self) -> int:
        """Carry frames until all is quiet; the bytes carried."""
        carried = 0
        queue: deque[tuple[int, int, bytes]] = deque()
        while True:
            for i, replica in enumerate(self.replicas):
                for effect in replica.drain():
                    self.effects.append((i, effect))
                    if isinstance(effect, Send):
                        queue.append((i, self.nodes.index(effect.peer), effect.frame))
            if not queue and self._verified():
                continue
            if not queue:
                return carried
            sender, receiver, frame = queue.popleft()
            if (sender, receiver) in self.links and not self.drop(sender, receiver, frame):
                carried += len(frame)
                self.replicas[receiver].receive(self.nodes[sender], frame, self.now_ns)

    def _verified(self) -> bool:
        """Whether anybody has gone on verifying a large chain."""
        busy = [replica for replica in self.replicas if replica._sync.verifying()]
        self.now_ns += VERIFY_STEP_NS if busy else 0
        for replica in busy:
            replica.timer(self.now_ns)
        return bool(busy)

    def tick(self, seconds: int = 20) -> None:
        for _ in range(seconds):
            self.now_ns += SECOND_NS
            for replica in self.replicas:
                replica.timer(self.now_ns)
            self.run()

    def digests(self, shard: str = "mesh") -> set[bytes]:
        return {replica.lattice.digest(shard) for replica in self.replicas}


SHARD = "a" * 32


def put(replica: Replica, key: bytes, record: bytes = b"x", shard: str = "mesh") -> None:
    replica.local([Put(shard, key, record)], 0)


def test_a_write_reaches_every_node_over_a_line() -> None:
    mesh = Wire(3)
    mesh.link(0, 1)
    mesh.link(1, 2)
    mesh.run()
    put(mesh.replicas[0], b"k")
    mesh.run()
    assert len(mesh.digests()) == 1
    touched = Touched(mesh.nodes[0], "mesh", (b"k",))
    assert all(replica.take_touched() == [touched] for replica in mesh.replicas)
    assert all(replica.read(*touched[:2], b"k") == b"x" for replica in mesh.replicas)


def test_persist_comes_before_the_first_send() -> None:
    mesh = Wire(2)
    mesh.link(0, 1)
    mesh.run()
    put(mesh.replicas[0], b"k")
    kinds = [type(effect) for effect in mesh.replicas[0].drain()]
    assert kinds == [Persist, Send]
    put(mesh.replicas[0], b"k2")
    mesh.replicas[0].receive(mesh.nodes[1], wire.encode(wire.Want(1, {})), 0)
    kinds = [type(effect) for effect in mesh.replicas[0].drain()]
    assert kinds.index(Persist) < kinds.index(Send)


@pytest.mark.parametrize("records", [10, 20_000])
def test_divergence_heals_and_deletes_do_not_come_back(records: int) -> None:
    mesh = Wire(2)
    for i in range(records):
        put(mesh.replicas[0], b"old%d" % i, b"r" * 40, SHARD)
    mesh.link(0, 1)
    mesh.run()
    assert len(mesh.digests(SHARD)) == 1
    mesh.drop = lambda *_: True
    mesh.replicas[0].local([Delete(SHARD, b"old%d" % i) for i in range(records // 2)], 0)
    for i in range(records // 2):
        put(mesh.replicas[1], b"new%d" % i, b"r" * 40, SHARD)
    mesh.run()
    mesh.drop = lambda *_: False
    assert len(mesh.digests(SHARD)) == 2
    mesh.tick()
    assert len(mesh.digests(SHARD)) == 1
    held = mesh.replicas[1].lattice.keys(ChainId(mesh.nodes[0], SHARD))
    assert set(held) == {b"old%d" % i for i in range(records // 2, records)}
    assert not any(isinstance(effect, DropPeer | Alarm) for _, effect in mesh.effects)


def test_in_sync_an_exchange_costs_little() -> None:
    mesh = Wire(2)
    for i in range(100):
        put(mesh.replicas[i % 2], b"k%d" % i)
    mesh.link(0, 1)
    mesh.tick()
    mesh.replicas[0].timer(mesh.now_ns + 60 * SECOND_NS)
    assert mesh.run() < 200


def test_lost_frames_are_healed_by_anti_entropy() -> None:
    mesh = Wire(3)
    rng = random.Random(5)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        mesh.link(a, b)
    mesh.drop = lambda *_: rng.random() < 0.5
    for i in range(200):
        put(mesh.replicas[i % 3], b"k%d" % (i % 17))
        mesh.replicas[i % 3].local([Delete("mesh", b"k%d" % (i % 13))], 0)
        mesh.run()
    mesh.drop = lambda *_: False
    mesh.tick(40)
    assert len(mesh.digests()) == 1


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_restored_disk_loses_nothing_a_peer_has(kept: int) -> None:
    """Node 0 comes back from a disk of before its last writes; even if it first writes alone."""
    mesh = Wire(2)
    mesh.link(0, 1)
    replica = mesh.replicas[0]
    for i in range(3):
        put(replica, b"a%d" % i)
        mesh.run()
        if i == kept:
            disk = Lattice()
            disk.join(replica.lattice)
    mesh.links.clear()
    mesh.replicas[1].peer_down(mesh.nodes[0], mesh.now_ns)
    mesh.replicas[0] = replica = mesh.make(0, disk)
    with pytest.raises(NotReady):
        put(replica, b"early")
    mesh.now_ns += OPENING_NS
    replica.timer(mesh.now_ns)
    put(replica, b"alone")
    mesh.link(0, 1)
    mesh.tick()
    assert len(mesh.digests()) == 1
    id = ChainId(mesh.nodes[0], "mesh")
    for node in mesh.replicas:
        assert set(node.lattice.keys(id)) == {b"a0", b"a1", b"a2", b"alone"}
        assert len(node.lattice.branches(id)) == 1


def test_a_start_adopts_what_peers_hold_before_the_first_write() -> None:
    mesh = Wire(2)
    mesh.link(0, 1)
    for i in range(3):
        put(mesh.replicas[0], b"a%d" % i)
    mesh.run()
    mesh.replicas[1].peer_down(mesh.nodes[0], mesh.now_ns)
    mesh.replicas[0] = mesh.make(0)
    mesh.link(0, 1)
    mesh.run()
    assert mesh.replicas[0].writable
    put(mesh.replicas[0], b"b")
    mesh.run()
    latest = mesh.replicas[1].lattice.latest(ChainId(mesh.nodes[0], "mesh"))
    assert latest is not None
    assert (latest.epoch.counter, latest.head, set(latest.live)) == (
        2,
        4,
        {b"a0", b"a1", b"a2", b"b"},
    )
    assert len(mesh.digests()) == 1


def test_two_processes_of_one_node_are_noticed() -> None:
    mesh = Wire(2)
    clone = mesh.make(0)
    mesh.now_ns += OPENING_NS
    clone.timer(mesh.now_ns)
    put(mesh.replicas[0], b"mine")
    put(clone, b"cloned")
    clone.peer_up(mesh.nodes[1], mesh.now_ns)
    mesh.replicas[1].peer_up(mesh.nodes[0], mesh.now_ns)
    for effect in clone.drain():
        if isinstance(effect, Send):
            mesh.replicas[1].receive(mesh.nodes[0], effect.frame, mesh.now_ns)
    put(clone, b"more")
    for effect in clone.drain():
        if isinstance(effect, Send):
            mesh.replicas[1].receive(mesh.nodes[0], effect.frame, mesh.now_ns)
    mesh.replicas[1].drain()
    mesh.replicas[1].peer_down(mesh.nodes[0], mesh.now_ns)
    mesh.link(0, 1)
    mesh.tick()
    assert mesh.replicas[0].cloned
    assert any(isinstance(e, Alarm) and e.event == "node.cloned" for _, e in mesh.effects)
    with pytest.raises(NotReady):
        put(mesh.replicas[0], b"again")


@pytest.mark.parametrize("unsigned", [False, True])
def test_who_has_met_its_clone_reads_what_everybody_reads(unsigned: bool) -> None:
    """What another process of the node has written counts at the node itself, too."""
    mesh = Wire(3)
    mesh.link(0, 2)
    for key in (b"shared", b"theirs"):
        put(mesh.replicas[0], key, b"1")
    mesh.run()
    mesh.unlink(0, 2)
    mesh.replicas[0] = this = mesh.make(0)  # its disk was lost, and nobody is there who knows
    this._own._nonce = lambda size: b"\x77" * size
    mesh.link(0, 1)
    mesh.tick()
    for key in (b"shared", b"mine"):
        put(this, key, b"2")
    mesh.run()
    this.take_touched()
    mesh.link(0, 2)
    if unsigned:
        put(this, b"unsigned", b"3")
    mesh.tick()
    mesh.link(1, 2)
    mesh.tick()
    assert this.cloned and len(mesh.digests()) == 1
    keys = [b"shared", b"mine", b"theirs", *([b"unsigned"] if unsigned else [])]
    for key in keys:
        read = {replica.read(mesh.nodes[0], "mesh", key) for replica in mesh.replicas}
        assert len(read) == 1 and None not in read, key
    touched = {key for record in this.take_touched() for key in record.keys}
    assert touched >= set(keys) - {b"mine"}


def test_a_process_whose_writes_another_one_went_on_from_writes_no_more() -> None:
    """The other one was started when this one's writes were known: its epoch descends from this
    one's, which must not be taken for this one's own and written on."""
    mesh = Wire(2)
    mesh.link(0, 1)
    put(mesh.replicas[0], b"mine")
    mesh.run()
    mesh.unlink(0, 1)
    other = mesh.make(0)
    mesh.replicas[0], this = other, mesh.replicas[0]
    mesh.link(0, 1)
    mesh.tick()
    put(other, b"theirs")
    mesh.run()
    mesh.unlink(0, 1)
    mesh.replicas[0] = this
    mesh.link(0, 1)
    mesh.tick()
    assert any(isinstance(e, Alarm) and e.event == "node.cloned" for _, e in mesh.effects)
    with pytest.raises(NotReady):
        put(this, b"again")
    assert len(mesh.digests()) == 1
    latest = this.lattice.latest(ChainId(mesh.nodes[0], "mesh"))
    assert latest is not None
    assert set(latest.live) == {b"mine", b"theirs"}


def test_forged_and_garbled_frames_cost_their_sender_only() -> None:
    mesh = Wire(3)
    mesh.link(0, 1)
    put(mesh.replicas[2], b"k")
    (_, *_rest) = mesh.replicas[2].drain()
    chain = mesh.replicas[2].lattice.latest(ChainId(mesh.nodes[2], "mesh"))
    assert chain is not None
    whole = wire.encode(wire.Deltas((chain.since(chain.epoch, 0),)))
    for i in range(len(whole)):
        altered = whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :]
        victim = mesh.make(0)
        victim.peer_up(mesh.nodes[1], 0)
        victim.receive(mesh.nodes[1], altered, 0)
        got = victim.lattice.latest(chain.id)
        # A flip where nothing is signed (the base an interval counts from) may still verify.
        assert got is None or (got.live, got.header) == (chain.live, chain.header), i
        effects = victim.drain()
        assert (
            got is not None
            or victim.peers() == []
            or not any(isinstance(effect, Persist) for effect in effects)
        )
    victim = mesh.make(0)
    victim.peer_up(mesh.nodes[1], 0)
    victim.receive(mesh.nodes[1], whole, 0)
    assert victim.lattice.latest(chain.id) is not None


@pytest.mark.parametrize("fault", ["lost", "doubled"])
def test_a_piece_of_an_answer_that_is_lost_or_doubled_is_nobodys_lie(fault: str) -> None:
    mesh = Wire(2)
    for i in range(20_000):
        put(mesh.replicas[0], b"k%d" % i, b"r" * 40, SHARD)
    mesh.run()
    hit: list[bytes] = []

    def second_part(sender: int, receiver: int, frame: bytes) -> bool:
        part = wire.decode(frame)
        if hit or not isinstance(part, wire.Part) or part.index != 1:
            return False
        hit.append(frame)
        if fault == "doubled":
            mesh.replicas[receiver].receive(mesh.nodes[sender], frame, mesh.now_ns)
        return fault == "lost"

    mesh.drop = second_part
    mesh.link(0, 1)
    mesh.tick()
    assert hit
    assert len(mesh.digests(SHARD)) == 1
    assert not any(isinstance(effect, DropPeer | Alarm) for _, effect in mesh.effects)


def test_a_record_is_taken_here_exactly_if_peers_take_it() -> None:
    mesh = Wire(2)
    mesh.link(0, 1)
    mesh.run()
    put(mesh.replicas[0], b"k", bytes(RECORD_BYTES_MAX))
    with pytest.raises(Refused):
        put(mesh.replicas[0], b"longer", bytes(RECORD_BYTES_MAX + 1))
    mesh.run()
    held = mesh.replicas[1].lattice.keys(ChainId(mesh.nodes[0], "mesh"))
    assert list(held) == [b"k"]
    assert RECORD_BYTES_MAX >= model.RECORD_BYTES_MAX
    assert not any(isinstance(effect, DropPeer | Alarm) for _, effect in mesh.effects)


@pytest.mark.parametrize("shard", ["mesh", SHARD])
def test_a_chain_is_held_to_the_quotas_of_its_nodes_admission(shard: str) -> None:
    quotas = Quotas(mesh=3, vpc=5)
    mesh = Wire(2, quotas)
    mesh.link(0, 1)
    for i in range(quotas.of(shard)):
        put(mesh.replicas[1], b"k%d" % i, shard=shard)
    put(mesh.replicas[1], b"k0", b"anew", shard)
    with pytest.raises(Refused, match=f"more than {quotas.of(shard)} records"):
        put(mesh.replicas[1], b"one more", shard=shard)
    put(mesh.replicas[0], b"others", shard=shard)
    mesh.run()
    assert len(mesh.digests(shard)) == 1

    # One that does not keep to it is refused by the others.
    mesh.replicas[1].roster.quota = lambda node, shard: 100  # type: ignore[method-assign]
    put(mesh.replicas[1], b"one more", shard=shard)
    mesh.run()
    held = mesh.replicas[0].lattice.latest(ChainId(mesh.nodes[1], shard))
    assert held is not None
    assert len(held.live) == quotas.of(shard)
    over = [e for i, e in mesh.effects if i == 0 and isinstance(e, Alarm)]
    assert {alarm.event for alarm in over} == {"chain.over_quota"}


@pytest.mark.parametrize("linked", [True, False])
def test_a_chain_is_held_to_as_many_bytes_as_its_records_may_take_on_average(linked: bool) -> None:
    """Whether its flushes are heard one by one, or the whole of it at once."""
    quotas = Quotas(mesh=30)
    mesh = Wire(2, quotas)
    mesh.link(0, 1)
    mesh.tick()
    most = (bytes_of(quotas.mesh) - 100) // 16_000
    for i in range(most):
        put(mesh.replicas[1], b"k%d" % i, bytes(16_000))
    put(mesh.replicas[1], b"k0", bytes([1]) * 16_000)
    with pytest.raises(Refused, match="bytes of records"):
        put(mesh.replicas[1], b"more", bytes(16_000))
    mesh.tick()
    assert len(mesh.digests()) == 1

    # One that does not keep to it is refused by the others, until it does.
    if not linked:
        mesh.unlink(0, 1)
    mesh.replicas[1].roster.quota = lambda node, shard: 100  # type: ignore[method-assign]
    for key in (b"more", b"and more"):
        put(mesh.replicas[1], key, bytes(16_000))
        mesh.run()
    mesh.link(0, 1)
    mesh.tick()
    held = mesh.replicas[0].lattice.latest(ChainId(mesh.nodes[1], "mesh"))
    assert held is not None
    assert held.size_bytes <= bytes_of(quotas.mesh) and b"more" not in held.live
    said = [e.event for i, e in mesh.effects if i == 0 and isinstance(e, Alarm)]
    assert set(said) <= {"chain.over_quota", "peer.misbehaved"} and said
    for key in (b"more", b"and more"):
        mesh.replicas[1].local([Delete("mesh", key)], mesh.now_ns)
    mesh.run()
    if mesh.replicas[0].peers() == []:
        mesh.unlink(0, 1)
    mesh.link(0, 1)
    mesh.tick()
    assert len(mesh.digests()) == 1


def test_an_author_that_lies_about_its_root_loses_its_chain_everywhere() -> None:
    mesh = Wire(3)
    mesh.link(0, 1)
    mesh.link(1, 2)
    put(mesh.replicas[0], b"honest", shard=SHARD)
    mesh.run()
    id = ChainId(mesh.nodes[0], "mesh")
    liar = Chain(id, Epoch(7, b"e" * 8))
    liar.put(b"k", b"v")
    sign = partial(ed25519.sign, mesh.seeds[0])
    honest = liar.seal(mesh.replicas[0].roster.mesh_id, sign, ())
    header = honest._replace(root=b"?" * 32).signed(mesh.replicas[0].roster.mesh_id, sign)
    delta = replace(liar.since(liar.epoch, 0), header=header)
    mesh.replicas[1].receive(mesh.nodes[0], wire.encode(wire.Deltas((delta,))), mesh.now_ns)
    mesh.run()
    for victim in (mesh.replicas[1], mesh.replicas[2]):
        assert victim.lattice.record(id, b"k") == b"v", "taken on its word, and passed on"
        victim.take_touched()
    mesh.tick()
    for i in (1, 2):
        victim = mesh.replicas[i]
        assert list(victim.lattice.chains()) == [ChainId(mesh.nodes[0], SHARD)]
        assert Touched(mesh.nodes[0], "mesh", (b"k",)) in victim.take_touched()
        assert victim.read(mesh.nodes[0], "mesh", b"k") is None
        mine = [effect for node, effect in mesh.effects if node == i]
        assert DropBranches(id, (liar.epoch,)) in mine
        assert any(isinstance(e, Alarm) and e.event == "chain.disproved" for e in mine)
        assert not any(isinstance(effect, DropPeer) for effect in mine), "no relay is blamed"


def test_when_a_peer_last_agreed_is_known_after_its_link_has_ended() -> None:
    mesh = Wire(2)
    a, b = mesh.replicas[0], mesh.nodes[1]
    assert a.last_sync_ns(b) is None
    mesh.link(0, 1)
    mesh.tick(3)
    synced_ns = a.in_sync_ns(b)
    assert synced_ns is not None and a.last_sync_ns(b) == synced_ns
    a.peer_down(b, mesh.now_ns)
    assert (a.in_sync_ns(b), a.last_sync_ns(b)) == (None, synced_ns)
    a.add_statements([a.roster.retire(mesh.seeds[0], b, compromised=True)], mesh.now_ns)
    assert a.last_sync_ns(b) is None, "of a node that is forgotten nothing is held"


def test_headers_that_no_key_signs_cost_the_link_once_they_are_many() -> None:
    """A few may be of a key that is not known here yet; before the two agree nobody can tell."""
    mesh = Wire(3)
    put(mesh.replicas[2], b"k")
    mesh.replicas[2].drain()
    chain = mesh.replicas[2].lattice.latest(ChainId(mesh.nodes[2], "mesh"))
    assert chain is not None
    delta = chain.since(chain.epoch, 0)
    forged = replace(delta, header=delta.header._replace(signature=bytes(64)))
    frame = wire.encode(wire.Deltas((forged,) * 256))
    victim = mesh.replicas[0]
    victim.peer_up(mesh.nodes[1], mesh.now_ns)
    for _ in range(UNSIGNED_MAX // 256):
        victim.receive(mesh.nodes[1], frame, mesh.now_ns)
    assert victim.peers() == [mesh.nodes[1]]
    victim.receive(mesh.nodes[1], frame, mesh.now_ns)
    assert victim.peers() == []
    assert victim.lattice.latest(chain.id) is None
    victim.peer_up(mesh.nodes[1], mesh.now_ns)
    victim.receive(mesh.nodes[1], frame, mesh.now_ns)
    assert victim.peers() == [mesh.nodes[1]], "a new link begins anew"


def test_a_peer_that_speaks_no_wire_version_of_ours_is_refused_and_told_of() -> None:
    mesh = Wire(2)
    replica = mesh.replicas[0]
    replica.peer_up(mesh.nodes[1], mesh.now_ns, wire.Versions(3, 4))
    alarm, drop = replica.drain()
    assert isinstance(alarm, Alarm)
    assert alarm.event == "peer.incompatible"
    assert alarm.fields["peer"] == mesh.nodes[1]
    assert "3 to 4, this node 1 to 2" in str(alarm.fields["reason"])
    assert drop == DropPeer(mesh.nodes[1], "no wire version in common")
    assert replica.peers() == []
    replica.receive(mesh.nodes[1], wire.encode(wire.Same()), mesh.now_ns)
    replica.peer_down(mesh.nodes[1], mesh.now_ns)
    assert replica.drain() == []
    replica.peer_up(mesh.nodes[1], mesh.now_ns, wire.Versions(1, 3))
    assert replica.peers() == [mesh.nodes[1]]
    assert [wire.decode(e.frame) for e in replica.drain() if isinstance(e, Send)]


def test_a_bulk_of_others_is_told_a_little_at_a_time_and_everything_else_at_once() -> None:
    mesh = Wire(2)
    author, reader = mesh.replicas
    keys = [b"%02d" % i for i in range(10)]
    for shard in (SHARD, "b" * 32, "mesh"):
        author.local([Put(shard, key, b"x") for key in keys], 0)
    mesh.link(0, 1)
    mesh.run()
    reader.local([Put(SHARD, key, b"x") for key in keys], 0)
    told: dict[tuple[bytes, str], list[bytes]] = {}
    turns = []
    while reader.holdings.touched:
        turns.append(reader.take_touched(4))
        for node, shard, some in turns[-1]:
            told.setdefault((node, shard), []).extend(some)
    first = {(touched.node, touched.shard) for touched in turns[0]}
    assert first >= {(mesh.nodes[0], "mesh"), (mesh.nodes[1], SHARD)}
    assert len(turns) == 5, "three for each bulk, and the last of one is told with the first of two"
    for turn in turns:
        bulks = [t.keys for t in turn if t.node == mesh.nodes[0] and t.shard != "mesh"]
        assert 0 < max(map(len, bulks)) <= 4
    for i, shard in ((0, SHARD), (0, "b" * 32), (0, "mesh"), (1, SHARD)):
        assert told[mesh.nodes[i], shard] == keys
    assert reader.take_touched(4) == []
