"""Flushes that are taken on their author's word: proved later, or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

import crdt.root
from crdt.chain import Chain, Disproved, RootMismatch
from crdt.delta import Delta
from crdt.header import ChainId, Epoch, Header
from crdt.lattice import Applied, Disproof, Lattice, Rejected
from crdt.root import Keys

Entries = Mapping[bytes, bytes]

MESH = b"m" * 16
ID = ChainId(b"w" * 16, "mesh")
KEYS = [b"%d" % i for i in range(9)]

ops = st.tuples(st.sampled_from(KEYS), st.integers(0, 3))
flushes = st.lists(st.lists(ops, min_size=1, max_size=6), min_size=1, max_size=9)


def sign(message: bytes) -> bytes:
    return sha256(message).digest() * 2


def flush(chain: Chain, *ops: tuple[bytes, int]) -> Delta:
    """Write, sign, and what goes to the peers. A value of 0 is a delete."""
    base = chain.head
    for key, value in ops:
        if value:
            chain.put(key, bytes([value]))
        else:
            chain.delete(key)
    if chain.head == base:
        chain.touch()
    chain.seal(MESH, sign, ())
    return Delta.unpack(chain.since(chain.epoch, base).pack())


def lying(delta: Delta) -> Delta:
    """The same flush, signed over a root that it does not lead to."""
    header = delta.header._replace(root=b"?" * 32).signed(MESH, sign)
    return Delta(header, delta.base, delta.lo, delta.puts, delta.deletes)


def content(lattice: Lattice) -> object:
    return [(c.epoch, c.head, c.root, list(c.live.items())) for c in lattice.branches(ID)]


@given(flushes, st.data())
def test_lazy_and_proved_at_once_are_the_same(
    flushes: list[list[tuple[bytes, int]]], data: st.DataObject
) -> None:
    author, lazy, prompt = Chain(ID, Epoch(1, b"e" * 8)), Lattice(), Lattice()
    for written in flushes:
        delta = flush(author, *written)
        applied = [lattice.apply(delta) for lattice in (lazy, prompt)]
        assert isinstance(applied[0], Applied)
        assert prompt.prove() == []
        assert lazy.prove(data.draw(st.integers(0, 4), label="keys proved")) == []
        assert content(lazy) == content(prompt)
        assert lazy.digest("mesh") == prompt.digest("mesh")
    assert lazy.prove() == []
    served = lazy.branches(ID)[0]
    assert served.snapshot() == author.snapshot()
    head = data.draw(st.integers(0, author.head - 1), label="since")
    assert served.since(author.epoch, head) == author.since(author.epoch, head)


def test_a_proof_in_steps_hashes_no_more_buckets_than_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed: list[Keys] = []
    bucket_hash = crdt.root._bucket_hash

    def counting(keys: Keys, live: Entries, puts: Entries) -> bytes:
        hashed.append(keys)
        return bucket_hash(keys, live, puts)

    monkeypatch.setattr(crdt.root, "_bucket_hash", counting)
    author, lattice = Chain(ID, Epoch(1, b"e" * 8)), Lattice()
    for start in range(0, 3000, 100):
        lattice.apply(flush(author, *((b"%d" % key, 1) for key in range(start, start + 100))))
        lattice.prove()
    gone = [(b"%d" % key, 0) for key in range(2000, 2003)]
    again = flush(author, *((b"%d" % key, 2) for key in range(300)), *gone, (b"new", 1))
    for made, steps in ((again, range(4, 12)), (lying(flush(author, (b"7", 3))), range(1, 2))):
        lattice.apply(made)
        taken = 0
        found: list[Disproof] = []
        while lattice.unproved:
            hashed.clear()
            found = lattice.prove(12)
            taken += 1
            assert len(hashed) <= 12
        assert taken in steps
        assert bool(found) == (made is not again)


def test_nothing_is_read_for_others_before_it_is_proved() -> None:
    author, lattice = Chain(ID, Epoch(1, b"e" * 8)), Lattice()
    lattice.apply(flush(author, (b"a", 1)))
    (held,) = lattice.branches(ID)
    with pytest.raises(AssertionError):
        held.snapshot()
    with pytest.raises(AssertionError):
        held.since(held.epoch, 0)
    lattice.prove()
    assert held.snapshot() == author.snapshot()


def test_a_root_that_flushes_do_not_lead_to_costs_its_author_the_branch() -> None:
    author, other, lattice = Chain(ID, Epoch(1, b"e" * 8)), ChainId(b"o" * 16, "mesh"), Lattice()
    lattice.apply(flush(Chain(other, Epoch(1, b"o" * 8)), (b"k", 1)))
    empty_digest = lattice.digest("mesh")
    lattice.apply(flush(author, (b"a", 1), (b"b", 2)))
    applied = lattice.apply(lying(flush(author, (b"c", 3))))
    assert isinstance(applied, Applied)
    assert lattice.prove() == [Disproof(ID, Epoch(1, b"e" * 8), (b"a", b"b", b"c"))]
    assert lattice.prove() == []
    assert list(lattice.chains()) == [other]
    assert {*lattice.writers()} == {other.node}
    assert lattice.digest("mesh") == empty_digest
    assert lattice.total == lattice.sum_of("mesh") == int.from_bytes(empty_digest, "big")
    again = lattice.apply(author.snapshot())
    assert isinstance(again, Applied), "the honest state of the chain is taken up again"


def test_a_lie_is_found_before_anything_is_laid_on_it() -> None:
    author, lattice = Chain(ID, Epoch(1, b"e" * 8)), Lattice()
    lattice.apply(lying(flush(author, (b"a", 1))))
    flush(author, (b"b", 1))
    flush(author, (b"c", 1))
    before = content(lattice)
    with pytest.raises(Disproved):
        lattice.apply(author.since(author.epoch, 1))
    assert content(lattice) == before
    assert [disproof.id for disproof in lattice.prove()] == [ID]


def test_a_flush_from_another_root_or_of_another_size_is_not_taken_on_a_word() -> None:
    author, lattice = Chain(ID, Epoch(1, b"e" * 8)), Lattice()
    lattice.apply(flush(author, (b"a", 1)))
    before = content(lattice)
    honest = flush(author, (b"b", 1))
    for wrong in ({"prev_root": b"?" * 32}, {"entries": 3}, {"entries": 1}):
        header: Header = honest.header._replace(**wrong).signed(MESH, sign)
        with pytest.raises(RootMismatch):
            lattice.apply(Delta(header, honest.base, honest.lo, honest.puts, honest.deletes))
        assert content(lattice) == before
    assert lattice.apply(honest) != Rejected("known")
    assert lattice.prove() == []


def test_many_buckets_of_nothing_are_refused() -> None:
    author, lattice = Chain(ID, Epoch(1, b"e" * 8)), Lattice()
    delta = flush(author, (b"a", 1))
    header = delta.header._replace(bits=20).signed(MESH, sign)
    lattice.apply(Delta(header, delta.base, delta.lo, delta.puts, delta.deletes))
    assert [disproof.id for disproof in lattice.prove()] == [ID]
