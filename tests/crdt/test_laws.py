"""The laws of the lattice, as properties over random histories of several writers."""

from __future__ import annotations

from hashlib import sha256
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crdt.chain
from crdt import entry, liveseq
from crdt.chain import Chain, RootMismatch, bytes_of
from crdt.delta import BadDelta, Delta
from crdt.entry import Entry
from crdt.header import ChainId, Cover, Epoch, Header
from crdt.lattice import Applied, Lattice, Rejected
from crdt.root import RootIndex, fitting_bits

MESH = b"m" * 16
KEYS = [bytes([65 + i]) * (1 + i % 3) for i in range(12)]


def sign(message: bytes) -> bytes:
    return sha256(message).digest() * 2


def epoch(counter: int) -> Epoch:
    return Epoch(counter, bytes([counter]) * 8)


def write(chain: Chain, op: tuple[int, int]) -> None:
    key, value = op
    if value == 0:
        chain.delete(KEYS[key])
    else:
        chain.put(KEYS[key], bytes([value]))


ops = st.tuples(st.integers(0, len(KEYS) - 1), st.integers(0, 5))
flushes = st.lists(st.lists(ops, min_size=1, max_size=5), min_size=1, max_size=8)


def history(flushes: list[list[tuple[int, int]]], writer: int = 0) -> list[Chain]:
    """The sealed states a writer went through, oldest first."""
    chain = Chain(ChainId(bytes([writer]) * 16, "mesh"), epoch(1))
    states = []
    for flush in flushes:
        before = chain.head
        for op in flush:
            write(chain, op)
        if chain.head > before:
            chain.seal(MESH, sign, ())
            states.append(chain.copy())
    return states


def lattice_of(*chains: Chain) -> Lattice:
    lattice = Lattice()
    for chain in chains:
        lattice.apply(chain.snapshot())
    return lattice


def content(lattice: Lattice) -> object:
    for id in lattice.chains():
        for chain in lattice.branches(id):
            assert chain.size_bytes == bytes_of(chain.live)
    return [
        (id, [(c.epoch, c.head, c.root, list(c.live.items())) for c in lattice.branches(id)])
        for id in lattice.chains()
    ]


@given(st.lists(st.integers(1, 1 << 40), unique=True))
def test_live_seq_list_round_trips(seqs: list[int]) -> None:
    assert liveseq.decode(liveseq.encode(sorted(seqs))) == sorted(seqs)


@given(st.binary(max_size=40))
def test_live_seq_list_is_canonical_or_refused(data: bytes) -> None:
    try:
        seqs = liveseq.decode(data)
    except ValueError:
        return
    assert liveseq.encode(seqs) == data


@given(flushes, st.data())
def test_join_is_commutative_associative_idempotent(
    flushes: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    pool = history(flushes, 0) + history(flushes[::-1], 1)
    if not pool:
        return
    picks = [
        data.draw(st.lists(st.sampled_from(pool), max_size=3), label=f"state {name}")
        for name in "abc"
    ]

    def joined(*order: int) -> object:
        lattice = Lattice()
        for i in order:
            lattice.join(lattice_of(*picks[i]))
        return content(lattice)

    assert joined(0, 1, 2) == joined(2, 1, 0) == joined(1, 0, 2, 0, 1)
    right = lattice_of(*picks[1])
    right.join(lattice_of(*picks[2]))
    left = lattice_of(*picks[0])
    left.join(right)
    assert content(left) == joined(0, 1, 2)


@pytest.mark.parametrize("ring", [0, 2, 4096])
@given(flushes=flushes, data=st.data())
def test_delta_join_equals_state_join(
    ring: int, flushes: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    """Whatever the ring remembers, from any earlier state, in any split: the same state."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crdt.chain, "RING_MAX", ring)
        states = history(flushes)
        if not states:
            return
        held = data.draw(st.integers(0, len(states)), label="held")
        lattice = lattice_of(*states[max(held - 1, 0) : held])
        source = Lattice()
        for state in states:
            have = source.latest(state.id)
            source.apply(state.since(state.epoch, have.head if have else 0))
            assert source.prove() == []
        for target in data.draw(st.lists(st.sampled_from(states)), label="hops") + states[-1:]:
            have = lattice.latest(target.id)
            head = have.head if have else 0
            lo = data.draw(st.integers(0, head), label="lo")
            if target.head > head:
                result = lattice.apply(target.since(target.epoch, lo))
                assert isinstance(result, Applied)
                if data.draw(st.booleans(), label="proved between"):
                    assert lattice.prove() == []
        assert lattice.prove() == []
        assert content(lattice) == content(source) == content(lattice_of(states[-1]))
        assert lattice.digest("mesh") == source.digest("mesh")
        assert lattice.total == sum(map(lattice.sum_of, lattice.shards()))


@given(flushes)
def test_gap_is_never_applied(flushes: list[list[tuple[int, int]]]) -> None:
    states = history(flushes)
    for early, late in pairwise(states):
        lattice = lattice_of(early)
        before = content(lattice)
        assert late.header is not None
        beyond = Delta(late.header, late.epoch, early.head + 1, {}, {})
        result = None
        if early.head + 1 <= late.head:
            result = lattice.apply(beyond)
            assert result == Rejected("gap", early.epoch, early.head)
        assert content(lattice) == before


@given(flushes, st.data())
def test_truncated_or_altered_delta_changes_nothing(
    flushes: list[list[tuple[int, int]]], data: st.DataObject
) -> None:
    states = history(flushes)
    if len(states) < 2:
        return
    early, late = states[0], states[-1]
    delta = late.since(late.epoch, early.head)
    puts, deletes = dict(delta.puts), dict(delta.deletes)
    on_puts: bool = data.draw(st.booleans(), label="put or delete")
    if puts and on_puts:
        key = data.draw(st.sampled_from(sorted(puts)))
        if data.draw(st.sampled_from([0, 1]), label="drop or alter"):
            del puts[key]
        else:
            puts[key] += b"!"
    elif (live := [key for key in deletes if key in early.live]) != []:
        del deletes[live[0]]
    else:
        return
    lattice = lattice_of(early)
    before = content(lattice)
    forged = Delta(delta.header, delta.base, delta.lo, puts, deletes, delta.keep)
    with pytest.raises((BadDelta, RootMismatch)):
        forged.check()
        lattice.apply(forged)
    assert content(lattice) == before


@given(flushes)
def test_pack_round_trips(flushes: list[list[tuple[int, int]]]) -> None:
    states = history(flushes)
    for early, late in pairwise(states):
        delta = late.since(late.epoch, early.head)
        assert Delta.unpack(delta.pack()) == delta
        assert Header.unpack(delta.header.pack()) == delta.header
        assert Delta.unpack(late.snapshot().pack()) == late.snapshot()


@given(
    st.dictionaries(st.binary(min_size=1, max_size=6), st.binary(max_size=4), max_size=300),
    st.lists(st.binary(min_size=1, max_size=6), max_size=30),
)
def test_root_follows_content_alone(entries: dict[bytes, bytes], extra: list[bytes]) -> None:
    """The same entries reach the same root, however they came to be."""
    live = {key: entry.pack(i + 1, value) for i, (key, value) in enumerate(entries.items())}
    bits = fitting_bits(len(live), 0)
    whole, grown = RootIndex(), RootIndex()
    whole.adopt(whole.plan({}, live, (), bits))
    held: dict[bytes, Entry] = {}
    for key in extra:
        grown.adopt(grown.plan(held, {key: entry.pack(999, b"")}, (), 0))
        held[key] = entry.pack(999, b"")
    for key, there in live.items():
        grown.adopt(grown.plan(held, {key: there}, (), grown.bits))
        held[key] = there
    stray = [key for key in held if key not in live]
    grown.adopt(grown.plan(held, {}, stray, bits))
    assert (grown.root, grown.count) == (whole.root, len(live))


@settings(max_examples=300)
@given(st.data())
def test_epochs_converge_whatever_is_restored(data: st.DataObject) -> None:
    """A writer that is restored from old states and opens epochs from them; readers that meet any
    of its states in any order end with the same branches, and none that another covers."""
    id = ChainId(b"w" * 16, "mesh")
    disks: list[Chain] = []
    current = Chain(id, epoch(1))
    lives = data.draw(
        st.lists(
            st.lists(st.lists(ops, min_size=1, max_size=3), max_size=3), min_size=1, max_size=4
        ),
        label="lives",
    )
    for counter, life in enumerate(lives, 1):
        if disks:
            current = data.draw(st.sampled_from(disks), label="disk").copy()
            parent = Cover(current.epoch, current.head, current.head)
            covers = (*current.covers, parent)
            current.open(epoch(counter))
        else:
            covers = ()
        for flush in [[(0, counter)], *life]:
            for op in flush:
                write(current, op)
            if current.header is None or current.head > current.header.hi:
                current.seal(MESH, sign, covers)
                disks.append(current.copy())
    ends = []
    for reader in range(2):
        lattice = Lattice()
        for chain in data.draw(st.permutations(disks), label=f"order {reader}"):
            held = lattice.branches(id)
            best = max(
                (h for h in held if chain.header and h.head <= chain.header.shared_head(h.epoch)),
                key=lambda h: h.head,
                default=None,
            )
            delta = chain.since(best.epoch, best.head) if best else chain.snapshot()
            if not best or best.head < chain.head:
                lattice.apply(delta)
        ends.append(content(lattice))
    assert ends[0] == ends[1]
