"""Roots that have been signed: the definition in `crdt/root.py` must never answer others."""

from __future__ import annotations

from hashlib import sha256

import pytest

from crdt.root import Entry, RootIndex, fitting_bits

GOLDEN = {
    0: (0, "d1046e1eec50cc790150da1d8f18cd9461864ffba2013d2895cb5591173cd040"),
    1: (0, "86bdf34be558fe9e99660f29212b4ecba19de5e67b8580ccfd4df267892d3664"),
    64: (0, "c05e66260feaaca9a2150ed6fe56e38772c636b89a6ca1617b8f4c8b71f137b9"),
    65: (1, "970ff06d485911620f7ed280378be0a11b600fba91d889693a37e1a2c9259b42"),
    3000: (6, "93f58a70ab6668be9117dbe431c45bba6c80cccf84782ffc9aa2f3bb958b8845"),
}
AFTER_CHANGES = "40e6722b98743ef631189519b72c03682c80567b23d32463b0806e4b9b21b107"


def entries(count: int) -> dict[bytes, Entry]:
    """Keys of 3 to 11 bytes, records of 0 to 32."""
    return {
        sha256(b"k%d" % i).digest()[: 1 + i % 9] + i.to_bytes(2, "big"): (
            i + 1,
            sha256(b"r%d" % i).digest()[: i % 33],
        )
        for i in range(count)
    }


def index_of(live: dict[bytes, Entry]) -> RootIndex:
    index = RootIndex()
    index.adopt(index.plan({}, live, (), fitting_bits(len(live), 0)))
    return index


@pytest.mark.parametrize("count", GOLDEN)
def test_root_of_entries(count: int) -> None:
    index = index_of(entries(count))
    assert (index.bits, index.root.hex()) == GOLDEN[count]


@pytest.mark.parametrize("bits_between", [6, 3, 8])
def test_root_after_puts_and_drops(bits_between: int) -> None:
    """Overwritten and dropped, whatever the number of buckets was on the way."""
    live = entries(3000)
    index = index_of(live)
    keys = list(live)
    puts = {key: (5000 + i, b"new") for i, key in enumerate(keys[1::11])}
    drops = [key for key in keys[::7] if key not in puts]
    index.adopt(index.plan(live, puts, drops, bits_between))
    assert index.count == 2610
    for key in drops:
        del live[key]
    live.update(puts)
    index.adopt(index.plan(live, {}, (), 6))
    assert (index.count, index.root.hex()) == (2610, AFTER_CHANGES)


def test_an_authors_own_writes_may_be_in_place_already() -> None:
    before, after = index_of(entries(3000)), entries(3000)
    keys = list(after)
    puts = {key: (5000 + i, b"new") for i, key in enumerate(keys[1::11])}
    drops = [key for key in keys[::7] if key not in puts]
    for key in drops:
        del after[key]
    after.update(puts)
    assert before.plan(after, puts, drops, 6).root.hex() == AFTER_CHANGES
