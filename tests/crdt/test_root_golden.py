"""Roots that have been signed: the definition in `crdt/root.py` must never answer others."""

from __future__ import annotations

from hashlib import sha256
from zlib import crc32

import msgpack
import pytest

from crdt import entry
from crdt.entry import Entry
from crdt.root import RootIndex, fitting_bits

GOLDEN = {
    0: (0, "d1046e1eec50cc790150da1d8f18cd9461864ffba2013d2895cb5591173cd040"),
    1: (0, "dad9c0e4e241e8757d065c06784b12c30bb01d761583f0d2500434354720c508"),
    64: (0, "f603cdb36f2ec5a66224a536248fd00812e831336825a72d9e4a3e272337857f"),
    65: (1, "55a7593ee55d58fad677b660762585671b31b536995ee49179d244d1e5fef9ec"),
    3000: (6, "af10b037f502d332ba0c77d68de011f9695798ac5e544e793abaccc71fa74bb9"),
}
AFTER_CHANGES = "64f48c3e257c9a6b9b668dfe7246477f2a6d07d524947d8884d1fbbe0e31dfb3"


def entries(count: int) -> dict[bytes, Entry]:
    """Keys of 3 to 11 bytes, records of 0 to 32."""
    return {
        sha256(b"k%d" % i).digest()[: 1 + i % 9] + i.to_bytes(2, "big"): entry.pack(
            i + 1, sha256(b"r%d" % i).digest()[: i % 33]
        )
        for i in range(count)
    }


def by_definition(live: dict[bytes, Entry], bits: int) -> bytes:
    """The head of `crdt/root.py`, word by word."""
    buckets: list[list[bytes]] = [[] for _ in range(1 << bits)]
    for key in sorted(live):
        buckets[crc32(key) % (1 << bits)] += [key, live[key]]
    hashes = [sha256(msgpack.packb(b) if b else b"").digest() for b in buckets]
    middles = [sha256(b"".join(hashes[i : i + 64])).digest() for i in range(0, len(hashes), 64)]
    top = len(live).to_bytes(8, "little") + bytes([bits])
    return sha256(top + b"".join(middles)).digest()


def index_of(live: dict[bytes, Entry]) -> RootIndex:
    index = RootIndex()
    index.adopt(index.plan({}, live, (), fitting_bits(len(live), 0)))
    return index


@pytest.mark.parametrize("count", GOLDEN)
def test_root_of_entries(count: int) -> None:
    index = index_of(entries(count))
    assert (index.bits, index.root.hex()) == GOLDEN[count]
    assert index.root == by_definition(entries(count), index.bits)


@pytest.mark.parametrize("bits_between", [6, 3, 7])
def test_root_after_puts_and_drops(bits_between: int) -> None:
    """Overwritten and dropped, whatever the number of buckets was on the way."""
    live = entries(3000)
    index = index_of(live)
    keys = list(live)
    puts = {key: entry.pack(5000 + i, b"new") for i, key in enumerate(keys[1::11])}
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
    puts = {key: entry.pack(5000 + i, b"new") for i, key in enumerate(keys[1::11])}
    drops = [key for key in keys[::7] if key not in puts]
    for key in drops:
        del after[key]
    after.update(puts)
    assert before.plan(after, puts.keys(), drops, 6).root.hex() == AFTER_CHANGES
