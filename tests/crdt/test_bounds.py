"""What is refused before anything is hashed or kept: deltas and buckets out of bounds."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import Any

import msgpack
import pytest

from crdt import root
from crdt.chain import Chain
from crdt.delta import KEY_BYTES_MAX, RECORD_BYTES_MAX, BadDelta, Deletes, Delta, Puts
from crdt.entry import pack, seq_bytes
from crdt.header import ChainId, Epoch
from crdt.root import BucketOverflow, RootIndex


def delta(puts: Puts, lo: int = 1) -> Delta:
    """Not verbatim, so that nothing but its bounds is checked. It ends at seq 4."""
    chain = Chain(ChainId(b"w" * 16, "mesh"), Epoch(1, b"e" * 8))
    for key in (b"a", b"b", b"c", b"d"):
        chain.put(key, b"")
    header = chain.seal(b"m" * 16, lambda text: sha256(text).digest() * 2, ())
    return Delta(header, header.epoch, lo, puts, {})


def test_bounds_themselves_are_within() -> None:
    longest = pack(4, bytes(RECORD_BYTES_MAX))
    delta({b"a": pack(2, b""), b"k" * KEY_BYTES_MAX: longest}).check()
    delta({}).check()


@pytest.mark.parametrize(
    "puts",
    [
        {b"a": pack(1, b"")},
        {b"a": pack(2, b"1"), b"b": pack(2, b"2")},
        {b"a": pack(3, b""), b"b": pack(2, b"")},
        {b"a": pack(2, b""), b"b": pack(5, b"")},
        {b"a": pack(2, b""), b"": pack(3, b"")},
        {b"a": b"12345"},
        {b"k" * (KEY_BYTES_MAX + 1): pack(2, b"")},
        {b"a": pack(2, bytes(RECORD_BYTES_MAX + 1))},
    ],
)
def test_puts_out_of_bounds_are_refused(puts: Puts) -> None:
    with pytest.raises(BadDelta):
        delta(puts).check()


@pytest.mark.parametrize(
    "deletes",
    [
        {b"a": seq_bytes(1)},
        {b"a": seq_bytes(5)},
        {b"a": seq_bytes(3), b"b": seq_bytes(3)},
        {b"a": pack(3, b"record")},
        {b"": seq_bytes(3)},
        {b"put": seq_bytes(3)},
    ],
)
def test_deletes_out_of_bounds_are_refused(deletes: Deletes) -> None:
    within = delta({b"put": pack(2, b"")})
    replace(within, deletes={b"a": seq_bytes(3)}).check()
    with pytest.raises(BadDelta):
        replace(within, deletes=deletes).check()


@pytest.mark.parametrize(
    "payload",
    [
        [["a", pack(3, b"")], []],
        [[b"a", "123456"], []],
        [[b"a", 3], []],
        [[b"a"], []],
        [[b"a", pack(2, b""), b"a", pack(3, b"")], []],
        [[], {}],
        [[]],
        [[], [], []],
        {},
    ],
)
def test_payloads_of_other_shapes_are_refused(payload: Any) -> None:
    raw = delta({}).pack()
    wrong: list[Any] = [msgpack.packb(payload), msgpack.packb([[], []])[:-1], b"", [[], []]]
    for packed in wrong:
        raw[4] = packed
        with pytest.raises(ValueError, match="payload"):
            Delta.unpack(raw)


@pytest.mark.parametrize("bits", [0, 1])
def test_a_bucket_beyond_its_bound_is_refused(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With buckets as they are, and when their number changes."""
    monkeypatch.setattr(root, "BUCKET_ENTRIES_MAX", 4)
    index = RootIndex()
    within = {bytes([i]): pack(i + 1, b"") for i in range(4)}
    index.adopt(index.plan({}, within, (), 0))
    too_many = {bytes([i]): pack(i + 1, b"") for i in range(40)}
    with pytest.raises(BucketOverflow):
        index.plan(within, too_many, (), bits)
    assert index.count == 4
