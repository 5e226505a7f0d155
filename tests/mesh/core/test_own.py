"""A node's own chains after its disk was restored: tails met, in pieces, by a later process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.chain import Chain, bytes_of
from crdt.header import ChainId
from crdt.lattice import Applied, Lattice
from mesh.core import own
from mesh.core.ops import MESH_SHARD, Delete, Put
from mesh.core.own import OwnChains
from mesh.core.persisting import load_header

NODE = b"n" * 16
ID = ChainId(NODE, MESH_SHARD)


class Owner:
    """One node's lattice and the process that writes it."""

    nonces = count(1)

    def __init__(self, disk: Lattice | None = None) -> None:
        self.lattice = disk or Lattice()
        self.own = OwnChains(NODE, b"m" * 16, self.lattice, lambda _: bytes(64), self._nonce)

    def _nonce(self, size: int) -> bytes:
        return next(self.nonces).to_bytes(size, "big")

    def put(self, key: bytes, record: bytes) -> None:
        self.own.write(Put(MESH_SHARD, key, record))
        self.seal()

    def delete(self, key: bytes) -> None:
        self.own.write(Delete(MESH_SHARD, key))
        self.seal()

    def seal(self) -> None:
        for sealed in self.own.seal():
            assert load_header(sealed.persist.header)

    def disk(self) -> Lattice:
        """What a copy of the disk, or a peer in sync, holds now."""
        copy = Lattice()
        copy.join(self.lattice)
        return copy

    def meet(self, peer: Lattice) -> None:
        """Take what a peer holds, as the replica does."""
        for chain in reversed(peer.branches(ID)):
            result = self.lattice.apply(chain.snapshot())
            if isinstance(result, Applied):
                assert self.own.meet(result.chain)
        self.seal()

    def read(self) -> dict[bytes, bytes]:
        return read(self.lattice)


def read(lattice: Lattice) -> dict[bytes, bytes]:
    read = {key: record for key, _, _, record in lattice.entries(ID)}
    for key in (b"a", b"b", b"c"):
        found = lattice.get(ID, key)
        assert (found[2] if found else None) == lattice.record(ID, key) == read.get(key)
    return read


def restored(tail: Callable[[Owner], None]) -> tuple[Owner, Lattice]:
    """An owner whose disk is of before `tail`, and a peer that has met the tail."""
    owner = Owner()
    owner.put(b"a", b"1")
    owner.put(b"b", b"1")
    disk = owner.disk()
    tail(owner)
    return Owner(disk), owner.lattice


def test_a_tail_without_news_leaves_a_header_that_can_be_loaded() -> None:
    owner, peer = restored(lambda former: former.delete(b"a"))
    owner.delete(b"a")
    owner.put(b"c", b"2")
    owner.put(b"c", b"3")
    owner.meet(peer)
    assert owner.read() == {b"b": b"1", b"c": b"3"}
    assert len(owner.lattice.branches(ID)) == 1


def test_what_a_restored_owner_deleted_is_not_read_from_its_tail() -> None:
    owner, peer = restored(lambda former: former.put(b"c", b"2"))
    owner.delete(b"a")
    later = Owner(owner.disk())
    later.meet(peer)
    assert later.read() == {b"b": b"1", b"c": b"2"}
    peer.join(owner.lattice)
    assert read(peer) == {b"b": b"1", b"c": b"2"}
    later.put(b"b", b"2")
    assert later.read() == {b"b": b"2", b"c": b"2"}


def test_the_view_is_told_of_every_key_of_a_tail() -> None:
    owner, peer = restored(lambda former: former.put(b"c", b"2"))
    owner.delete(b"a")
    owner.own.take_touched()
    later = Owner(owner.disk())
    later.meet(peer)
    later.put(b"b", b"2")
    assert [key for _, keys in later.own.take_touched() for key in keys] == [b"a", b"b", b"c"]


def test_what_a_restored_owner_wrote_stands_after_its_next_start() -> None:
    owner, peer = restored(lambda former: former.put(b"a", b"tail"))
    owner.put(b"a", b"restored")
    later = Owner(owner.disk())
    later.put(b"b", b"2")
    later.meet(peer)
    assert later.read() == {b"a": b"restored", b"b": b"2"}


def test_a_tail_that_is_met_in_pieces_counts_whole() -> None:
    pieces: list[Lattice] = []

    def tail(former: Owner) -> None:
        former.put(b"a", b"2")
        former.put(b"b", b"2")
        pieces.append(former.disk())
        former.put(b"a", b"3")
        former.delete(b"b")

    owner, peer = restored(tail)
    owner.put(b"c", b"1")
    owner.meet(pieces[0])
    assert owner.read() == {b"a": b"2", b"b": b"2", b"c": b"1"}
    owner.meet(peer)
    assert owner.read() == {b"a": b"3", b"c": b"1"}


def test_the_common_history_of_two_clones_is_not_news() -> None:
    owner = Owner()
    owner.put(b"a", b"1")
    owner.put(b"b", b"1")
    disk = owner.disk()
    clone = Owner(disk)
    clone.put(b"c", b"clone")
    owner = Owner(owner.disk())
    owner.put(b"a", b"2")
    owner.delete(b"b")
    both = owner.disk()
    both.join(clone.lattice)
    later = Owner(both)
    later.put(b"d", b"1")
    assert later.read() == {b"a": b"2", b"c": b"clone", b"d": b"1"}


def test_a_branch_in_two_epochs_says_what_may_read_differently() -> None:
    owner, peer = restored(lambda former: former.put(b"c", b"2"))
    former: Chain | None = peer.latest(ID)
    assert former is not None
    owner.delete(b"a")
    latest = owner.lattice.latest(ID)
    assert latest is not None
    result = peer.apply(latest.snapshot())
    assert isinstance(result, Applied)
    assert set(result.changed) == {b"a", b"b", b"c"}


def test_what_a_tail_deleted_is_not_read_from_the_later_epoch() -> None:
    owner, peer = restored(lambda former: former.delete(b"a"))
    owner.put(b"c", b"2")
    later = Owner(owner.disk())
    later.meet(peer)
    assert later.read() == {b"b": b"1", b"c": b"2"}
    peer.join(owner.lattice)
    assert read(peer) == later.read()
    later.put(b"b", b"2")
    assert later.read() == {b"b": b"2", b"c": b"2"}


def test_what_a_tail_wrote_anew_is_read_before_the_later_epochs_older_entry() -> None:
    owner, peer = restored(lambda former: former.put(b"a", b"tail"))
    owner.put(b"c", b"2")
    peer.join(owner.lattice)
    assert read(peer) == {b"a": b"tail", b"b": b"1", b"c": b"2"}
    owner.meet(peer)
    assert owner.read() == read(peer)


@given(st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=2)), max_size=12))
def test_records_put_together_are_as_if_put_singly(
    writes: list[tuple[int, bytes]],
) -> None:
    """Over one that is there, one that was deleted, and some that are new."""
    records = {b"%d" % key: record for key, record in writes}
    together, single = Owner(Lattice()), Owner(Lattice())
    for owner in (together, single):
        owner.put(b"0", b"first")
        owner.put(b"1", b"second")
        owner.delete(b"1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own, "PUTS_TOGETHER", 1)
        wrote = together.own.write_all([Put(ID.shard, *item) for item in records.items()])
    one_by_one = [single.own.write(Put(ID.shard, *item)) for item in records.items()]
    assert wrote == any(one_by_one)
    assert together.own.take_touched() == single.own.take_touched()
    held, expected = together.own.live(ID.shard), single.own.live(ID.shard)
    assert held is not None and expected is not None
    assert list(held.items()) == list(expected.items())
    sizes_bytes = {owner.own.size_bytes(ID.shard) for owner in (together, single)}
    assert sizes_bytes == {bytes_of(held)}
    sealed, sealed_singly = (
        [(s.persist.puts, s.persist.deletes) for s in owner.own.seal()]
        for owner in (together, single)
    )
    assert sealed == sealed_singly
