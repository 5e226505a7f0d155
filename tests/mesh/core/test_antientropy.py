"""What two replicas say to find what differs, and what it costs them."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt.chain import Chain
from crdt.header import ChainId, Epoch
from crdt.lattice import LOG_MAX, Lattice, Rejected
from mesh.core import ed25519, wire
from mesh.core.antientropy import PERIOD_NS, RECENT_MAX
from mesh.core.effects import Alarm, DropPeer, Send
from mesh.core.ops import Delete, Put
from mesh.core.replica import OPENING_NS
from tests.mesh.core.test_replica import Wire, put

SHARDS = tuple(f"{i:032x}" for i in range(40))


class Heard(Wire):
    """Replicas whose frames are noted: who sent which kind."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.said: list[tuple[int, wire.Frame]] = []
        self.cut = False
        self.drop = self._note

    def _note(self, sender: int, _receiver: int, data: bytes) -> bool:
        frame = wire.decode(data)
        assert frame is not None
        self.said.append((sender, frame))
        return self.cut

    def kinds(self) -> list[str]:
        """The kinds of frames since the last call."""
        said, self.said = self.said, []
        return [type(frame).__name__ for _, frame in said]

    def settled(self) -> None:
        """Both are linked, equal, and said so."""
        self.link(0, 1)
        self.tick(3)
        self.kinds()

    def behind_a_cut(self, i: int, *keys: bytes, shard: str = "mesh") -> None:
        """Node `i` writes, one flush a key, and its pushes are lost."""
        self.cut = True
        for key in keys:
            put(self.replicas[i], key, shard=shard)
            self.run()
        self.cut = False
        self.kinds()

    def carry(self, sender: int, receiver: int) -> list[str]:
        """Give one node what another has to say to it now; pushes, and all to others, are lost."""
        kinds = []
        for effect in self.replicas[sender].drain():
            if isinstance(effect, Send) and effect.peer == self.nodes[receiver] and not effect.push:
                kinds.append(type(wire.decode(effect.frame)).__name__)
                self.replicas[receiver].receive(self.nodes[sender], effect.frame, self.now_ns)
        return kinds

    def probe(self, i: int) -> list[str]:
        """Node `i` begins an exchange; the kinds of all frames of it."""
        self.now_ns += 2 * PERIOD_NS
        self.replicas[i].timer(self.now_ns)
        self.run()
        return self.kinds()


def test_at_rest_an_exchange_is_two_short_frames() -> None:
    mesh = Heard(2)
    for shard in SHARDS:
        put(mesh.replicas[0], b"k", shard=shard)
    mesh.settled()
    mesh.now_ns += 2 * PERIOD_NS
    mesh.replicas[0].timer(mesh.now_ns)
    assert mesh.run() < 40
    assert mesh.kinds() == ["Probe", "Same"]
    assert mesh.replicas[0].in_sync_ns(mesh.nodes[1]) == mesh.now_ns


@pytest.mark.parametrize("prober", [0, 1])
def test_a_push_that_was_lost_is_closed_by_the_heads_of_its_chain_alone(prober: int) -> None:
    mesh = Heard(2)
    for shard in SHARDS:
        put(mesh.replicas[0], b"k", shard=shard)
    mesh.settled()
    mesh.behind_a_cut(0, b"lost", shard=SHARDS[7])
    assert mesh.probe(prober) in (
        ["Probe", "Recent", "Heads", "Deltas"],
        ["Probe", "Recent", "Heads", "Want", "Deltas", "Done"],
        ["Probe", "Recent", "Recent", "Heads", "Deltas"],
        ["Probe", "Recent", "Recent", "Heads", "Want", "Deltas", "Done"],
    )
    assert len(mesh.digests(SHARDS[7])) == 1


@pytest.mark.parametrize("shard", ["mesh", SHARDS[9]], ids=["a chain both know", "a new chain"])
def test_changes_on_both_sides_are_named_by_both(shard: str) -> None:
    mesh = Heard(2)
    for replica in mesh.replicas:
        put(replica, b"k")
    mesh.settled()
    mesh.behind_a_cut(0, b"a", shard=shard)
    mesh.behind_a_cut(1, b"b")
    kinds = mesh.probe(0)
    assert "Sync" not in kinds
    assert kinds.count("Recent") == (1 if shard == "mesh" else 2)
    assert [len(mesh.digests(name)) for name in ("mesh", shard)] == [1, 1]


@pytest.mark.parametrize("news", [False, True], ids=["nothing else", "something on its way"])
def test_what_changed_long_ago_is_found_by_the_digests_of_all_shards(news: bool) -> None:
    mesh = Heard(2)
    for shard in SHARDS:
        put(mesh.replicas[0], b"k", shard=shard)
    mesh.settled()
    mesh.behind_a_cut(0, b"lost", shard=SHARDS[0])
    for shard in SHARDS[1 : RECENT_MAX + 2]:
        put(mesh.replicas[0], b"later", shard=shard)
        mesh.run()
    if news:
        mesh.behind_a_cut(1, b"news")
    mesh.kinds()
    kinds = mesh.probe(1)
    assert kinds.count("Recent") == 1 + news and "Sync" in kinds
    assert [len(mesh.digests(name)) for name in ("mesh", SHARDS[0])] == [1, 1]


@pytest.mark.parametrize(("to_first", "to_other"), [(1, 0), (0, 1), (1, 1)])
def test_news_that_come_while_two_compare_do_not_confuse_them(to_first: int, to_other: int) -> None:
    """A new chain reaches who has said RECENT, who has yet to reply, or both."""
    mesh = Heard(3)
    for replica in mesh.replicas:
        put(replica, b"k")
    for a, b in ((0, 1), (1, 2), (0, 2)):
        mesh.link(a, b)
    mesh.tick(3)
    mesh.behind_a_cut(0, b"a")
    mesh.behind_a_cut(1, b"b", shard=SHARDS[1])
    put(mesh.replicas[2], b"news", shard=SHARDS[2])
    news = {e.peer: e.frame for e in mesh.replicas[2].drain() if isinstance(e, Send)}
    mesh.now_ns += 2 * PERIOD_NS
    mesh.replicas[1].timer(mesh.now_ns)
    assert mesh.carry(1, 0) == ["Probe"]  # and its RECENT is as of now
    for receiver, comes in ((0, to_first), (1, to_other)):
        if comes:
            mesh.replicas[receiver].receive(mesh.nodes[2], news[mesh.nodes[receiver]], mesh.now_ns)
    assert mesh.carry(0, 1) == ["Recent"]
    assert mesh.carry(1, 0) == ["Recent"]
    assert mesh.carry(0, 1)[0] == "Heads"


def test_of_two_that_come_up_one_tells_its_heads() -> None:
    mesh = Heard(2)
    for shard in SHARDS:
        mesh.behind_a_cut(0, b"a", shard=shard)
        mesh.behind_a_cut(1, b"b", shard=shard)
    mesh.link(0, 1)
    mesh.run()
    assert all(len(mesh.digests(shard)) == 1 for shard in SHARDS)
    lower = min((0, 1), key=lambda i: mesh.nodes[i])
    assert {i for i, frame in mesh.said if isinstance(frame, wire.Heads)} == {lower}
    kinds = mesh.kinds()
    assert (kinds.count("Told"), kinds.count("Want")) == (2, 1)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_sync_is_made_up_for_soon(lost: int) -> None:
    mesh = Heard(2)
    mesh.behind_a_cut(0, b"a")
    mesh.behind_a_cut(1, b"b")
    mesh.replicas[lost].peer_up(mesh.nodes[1 - lost], mesh.now_ns)
    mesh.replicas[lost].drain()
    mesh.link(0, 1)
    mesh.tick(5)
    assert len(mesh.digests()) == 1
    assert all(mesh.replicas[i].in_sync_ns(mesh.nodes[1 - i]) for i in (0, 1))


def test_clones_whose_epochs_differ_in_the_nonce_alone_are_told_apart() -> None:
    """Heads leave the nonce of a chain's only epoch out."""
    for heads in ((2, 1), (1, 2), (2, 2)):
        mesh = Heard(3)
        clone = mesh.make(0, Lattice())
        clone._own._nonce = lambda size: b"\x77" * size
        mesh.now_ns += OPENING_NS
        clone.timer(mesh.now_ns)
        for i in range(heads[0]):
            put(mesh.replicas[0], b"mine%d" % i)
        for i in range(heads[1]):
            put(clone, b"cloned%d" % i)
        id = ChainId(mesh.nodes[0], "mesh")
        for source, holder in ((mesh.replicas[0], 1), (clone, 2)):
            source.drain()
            mesh.replicas[holder].lattice.join(source.lattice)
        mesh.replicas[0] = mesh.make(0, Lattice())
        mesh.link(1, 2)
        mesh.tick(30)
        branches = [
            [(b.epoch, b.head, b.root) for b in mesh.replicas[i].lattice.branches(id)]
            for i in (1, 2)
        ]
        assert branches[0] == branches[1] and len(branches[0]) == 2, heads
        assert not any(isinstance(effect, DropPeer) for _, effect in mesh.effects)


def test_when_a_link_breaks_in_an_answer_another_peer_is_asked_soon() -> None:
    mesh = Heard(3)
    for i in range(20_000):
        put(mesh.replicas[0], b"k%d" % i, b"r" * 40, SHARDS[0])
    mesh.link(0, 1)
    mesh.tick(3)
    broken: list[int] = []

    def break_it(sender: int, _receiver: int, data: bytes) -> bool:
        if not broken and isinstance(wire.decode(data), wire.Part):
            broken.append(sender)
        return sender in broken

    mesh.link(1, 2)
    mesh.link(0, 2)
    mesh.drop = break_it
    mesh.run()
    mesh.links -= {(broken[0], 2), (2, broken[0])}
    mesh.replicas[2].peer_down(mesh.nodes[broken[0]], mesh.now_ns)
    mesh.tick(2)
    assert len(mesh.digests(SHARDS[0])) == 1


def test_replies_to_what_was_not_asked_are_ignored() -> None:
    mesh = Heard(2)
    put(mesh.replicas[0], b"k")
    mesh.settled()
    peer = mesh.nodes[1]
    nonsense = {b"%08d" % i: (1 << 128) - 1 - i for i in range(wire.NAMED_MAX)}
    for frame in (
        wire.Recent(bytes(16), bytes(16), nonsense, reply=True),
        wire.Recent(bytes(16), bytes(16), nonsense, reply=False),
        wire.Recent(bytes(16), bytes(16), {}, reply=False),
        wire.Heads("", wire.FIRST, wire.LAST, {}),
        wire.Heads("no shard", wire.FIRST, wire.LAST, {}),
        wire.Told(7),
        wire.Same(),
    ):
        mesh.replicas[0].receive(peer, wire.encode(frame), mesh.now_ns)
    assert not any(isinstance(e, DropPeer | Alarm) for e in mesh.replicas[0].drain())
    mesh.tick(20)
    assert mesh.replicas[0].in_sync_ns(peer)


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 3), st.booleans()),
        min_size=1,
        max_size=60,
    ),
    st.booleans(),
)
def test_whatever_was_lost_two_exchanges_find_it(
    script: list[tuple[int, int, int, bool]], third: bool
) -> None:
    """(writer, shard, key, whether the push is lost): nodes agree after an exchange each way."""
    mesh = Heard(3)
    mesh.link(0, 1)
    if third:
        mesh.link(1, 2)
    mesh.tick(3)
    for writer, shard, key, lost in script:
        mesh.cut = lost
        at = SHARDS[shard], b"k%d" % key
        if not mesh.replicas[writer].local([Delete(*at)], mesh.now_ns):
            mesh.replicas[writer].local([Put(*at, b"r")], mesh.now_ns)
        mesh.run()
    mesh.cut = False
    for i in (0, 1, 0, 2, 1):
        mesh.probe(i)
    ends = mesh.replicas if third else mesh.replicas[:2]
    for name in SHARDS[:6]:
        assert len({replica.lattice.digest(name) for replica in ends}) == 1
    assert not any(isinstance(effect, DropPeer | Alarm) for _, effect in mesh.effects)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1)), max_size=30), st.data())
def test_the_lattice_knows_what_weighed_what(
    script: list[tuple[int, int]], data: st.DataObject
) -> None:
    mesh = Wire(2)
    lattice = mesh.replicas[0].lattice
    ids = [ChainId(mesh.nodes[0], shard) for shard in SHARDS[:5]]
    history = [{id: lattice.weight(id) for id in ids}]
    order: list[ChainId] = []
    for chain, key in script:
        put(mesh.replicas[0], b"k%d" % key, shard=SHARDS[chain])
        mesh.replicas[0].drain()
        history.append({id: lattice.weight(id) for id in ids})
        order.append(ids[chain])
    assert lattice.changes == len(script)
    assert list(lattice.recent()) == list(dict.fromkeys(reversed(order)))
    then = data.draw(st.integers(0, len(script)))
    before = lattice.before(then)
    assert before is not None
    assert {id: before.get(id, lattice.weight(id)) for id in ids} == history[then]


def test_the_lattice_remembers_so_many_changes() -> None:
    mesh = Wire(1)
    for i in range(LOG_MAX + 1):
        put(mesh.replicas[0], b"k%d" % (i % 3))
        mesh.replicas[0].drain()
    lattice = mesh.replicas[0].lattice
    assert lattice.before(0) is None
    assert lattice.before(1) is not None


@pytest.mark.parametrize("keep", ["all", "named"])
def test_more_shards_than_a_sync_may_name_part_nobody(
    monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    monkeypatch.setattr(wire, "SHARDS_MAX", 3)
    mesh = Wire(2)
    put(mesh.replicas[1], b"k")
    for i, shard in enumerate(SHARDS[:9]):
        put(mesh.replicas[i % 2], b"k", shard=shard)
    if keep == "named":
        for replica in mesh.replicas:
            replica.set_interest(set(SHARDS[:9]), lambda node, shard: True)
    mesh.link(0, 1)
    mesh.tick(60)
    assert not [e for _, e in mesh.effects if isinstance(e, DropPeer | Alarm)]
    equal = [shard for shard in ("mesh", *SHARDS[:9]) if len(mesh.digests(shard)) == 1]
    assert equal == ["mesh", *SHARDS[: 9 if keep == "all" else 2]]
    put(mesh.replicas[0], b"l")
    mesh.tick(2)
    assert len(mesh.digests()) == 1


@pytest.mark.parametrize("other", [b"b" * 8, b"\xe1" * 8])
def test_clones_that_left_the_same_under_the_same_counter_are_told_apart(other: bytes) -> None:
    """Heads are told without nonces where they can be; empty chains have one root."""
    mesh = Wire(3)
    for i, nonce in ((1, b"a" * 8), (2, other)):
        chain = Chain(ChainId(mesh.nodes[0], "mesh"), Epoch(1, nonce))
        chain.put(b"k", b"x")
        chain.delete(b"k")
        chain.seal(mesh.replicas[0].roster.mesh_id, partial(ed25519.sign, mesh.seeds[0]), ())
        assert not isinstance(mesh.replicas[i].lattice.apply(chain.snapshot()), Rejected)
    assert len({replica.lattice.digest("mesh") for replica in mesh.replicas[1:]}) == 2
    mesh.link(1, 2)
    mesh.tick(30)
    assert len({replica.lattice.digest("mesh") for replica in mesh.replicas[1:]}) == 1
    assert not [e for _, e in mesh.effects if isinstance(e, DropPeer | Alarm)]
