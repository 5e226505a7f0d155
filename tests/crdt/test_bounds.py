"""What is refused before anything is hashed or kept: deltas and buckets out of bounds."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from crdt import root
from crdt.chain import Chain
from crdt.delta import KEY_BYTES_MAX, RECORD_BYTES_MAX, BadDelta, Delta, Puts
from crdt.header import ChainId, Epoch
from crdt.root import BucketOverflow, RootIndex


def delta(puts: Puts, lo: int = 1) -> Delta:
    """Not verbatim, so that nothing but its bounds is checked. It ends at seq 4."""
    chain = Chain(ChainId(b"w" * 16, "mesh"), Epoch(1, b"e" * 8))
    for key in (b"a", b"b", b"c", b"d"):
        chain.put(key, b"")
    header = chain.seal(b"m" * 16, lambda text: sha256(text).digest() * 2, ())
    return Delta(header, header.epoch, lo, puts, ())


def test_bounds_themselves_are_within() -> None:
    longest = (b"k" * KEY_BYTES_MAX, 4, bytes(RECORD_BYTES_MAX))
    delta(((b"a", 2, b""), longest)).check()
    delta(()).check()


@pytest.mark.parametrize(
    "puts",
    [
        ((b"a", 1, b""),),
        ((b"a", 2, b""), (b"b", 2, b"")),
        ((b"a", 3, b""), (b"b", 2, b"")),
        ((b"a", 2, b""), (b"b", 5, b"")),
        ((b"a", 2, b""), (b"", 3, b"")),
        ((b"k" * (KEY_BYTES_MAX + 1), 2, b""),),
        ((b"a", 2, bytes(RECORD_BYTES_MAX + 1)),),
    ],
)
def test_puts_out_of_bounds_are_refused(puts: Puts) -> None:
    with pytest.raises(BadDelta):
        delta(puts).check()


@pytest.mark.parametrize(
    "flat",
    [["a", 3, b""], [b"a", 3, "r"], [b"a", "3", b""], [b"a", 3.0, b""], [b"a", True, b""], [b"a"]],
)
def test_puts_of_other_types_are_refused(flat: list[Any]) -> None:
    raw = delta(()).pack()
    raw[4] = [b"z", 2, b"", *flat]
    with pytest.raises(ValueError, match="delta: put"):
        Delta.unpack(raw)


@pytest.mark.parametrize("bits", [0, 1])
def test_a_bucket_beyond_its_bound_is_refused(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With buckets as they are, and when their number changes."""
    monkeypatch.setattr(root, "BUCKET_ENTRIES_MAX", 4)
    index = RootIndex()
    within = {bytes([i]): (i + 1, b"") for i in range(4)}
    index.adopt(index.plan({}, within, (), 0))
    too_many = {bytes([i]): (i + 1, b"") for i in range(20)}
    with pytest.raises(BucketOverflow):
        index.plan(within, too_many, (), bits)
    assert index.count == 4
