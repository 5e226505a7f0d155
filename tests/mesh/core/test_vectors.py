"""Vectors of heads: rows and columns say the same, and no bytes of a peer break what reads them."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt.header import Epoch
from mesh.core.vectors import (
    VECTOR_MAX,
    Held,
    Vector,
    pack_columns,
    pack_heads,
    pack_vector,
    tag_of,
    unpack_columns,
    unpack_heads,
    unpack_vector,
)

numbers = st.integers(0, (1 << 63) - 1)
eight = st.binary(min_size=8, max_size=8)
branches = st.builds(Held, st.builds(Epoch, numbers, eight), numbers, eight)
vectors = st.dictionaries(eight, st.lists(branches, max_size=3).map(tuple), max_size=20)


def through_wire(value: object) -> Any:
    return msgpack.unpackb(msgpack.packb(value))


def as_heads(vector: Vector) -> Vector:
    """What heads tell of the vector: of a chain's only branch not the nonce."""
    told = {}
    for short, held in vector.items():
        if len(held) == 1:
            (branch,) = held
            held = (Held(Epoch(branch.epoch.counter, b""), branch.head, tag_of(branch)),)
        told[short] = held
    return told


@given(vectors)
def test_rows_and_columns_tell_the_same(vector: Vector) -> None:
    told = as_heads(vector)
    assert unpack_columns(through_wire(pack_columns(vector))) == told
    assert unpack_heads(through_wire(pack_heads(vector))) == told
    assert unpack_vector(through_wire(pack_vector(vector))) == vector


def test_columns_take_less_than_rows() -> None:
    vector: Vector = {
        b"%08d" % i: (Held(Epoch(3, b"n" * 8), 70_000 + i, b"r" * 8),) for i in range(1000)
    }
    rows, columns = (len(msgpack.packb(pack(vector))) for pack in (pack_heads, pack_columns))
    assert columns < 0.82 * rows


FULL = [b"c" * 8, [[1, b"e" * 8, 2, b"r" * 8]]]
COLUMNS: dict[str, object] = {
    "no list": b"columns",
    "a column short": [b"c" * 8, b"t" * 8, [1], [2]],
    "a chain more": [b"c" * 16, b"t" * 8, [1], [2], []],
    "a tag more": [b"c" * 8, b"t" * 16, [1], [2], []],
    "a head more": [b"c" * 8, b"t" * 8, [1], [2, 3], []],
    "half a chain": [b"c" * 4, b"t" * 4, [1], [2], []],
    "a negative head": [b"c" * 8, b"t" * 8, [1], [-2], []],
    "a large counter": [b"c" * 8, b"t" * 8, [1 << 63], [2], []],
    "True for a number": [b"c" * 8, b"t" * 8, [True], [2], []],
    "a float": [b"c" * 8, b"t" * 8, [1.0], [2], []],
    "text": ["c" * 8, b"t" * 8, [1], [2], []],
    "a map": [b"c" * 8, b"t" * 8, {1: 1}, [2], []],
    "a nonce short": [b"", b"", [], [], [[b"c" * 8, [[1, b"e", 2, b"r" * 8]]]]],
    "too many chains": [
        b"".join(i.to_bytes(8, "big") for i in range(VECTOR_MAX)), bytes(8 * VECTOR_MAX),
        [1] * VECTOR_MAX, [1] * VECTOR_MAX, [FULL],
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(ValueError):
        unpack_columns(COLUMNS[name])


def test_columns_of_a_later_version_may_be_more() -> None:
    (held,) = unpack_columns([b"c" * 8, b"t" * 8, [1], [2], [], "new"])[b"c" * 8]
    assert held == Held(Epoch(1, b""), 2, b"t" * 8)
