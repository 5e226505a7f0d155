"""The root of a chain: a two-level hash over buckets of entries.

Entries fall into 2^bits buckets by crc32(key). A bucket's hash is SHA-256 over its entries in key
order, each length-prefixed; 64 bucket hashes make a middle; root = SHA-256(count, bits, middles).
One changed entry costs one bucket, one middle and the top. No XOR and no sums of hashes: a set of
entries for a given XOR can be forged in milliseconds (Bellare and Micciancio 1997).

The epoch is not hashed here: the signature binds it beside the root, so that opening an epoch over
an unchanged base costs nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from hashlib import sha256
from zlib import crc32

BITS_MAX = 20
"""2^20 buckets hold 64 million entries at 64 each: far beyond any quota."""
BUCKET_ENTRIES_MAX = 1024
"""A bucket beyond this is refused: an author could otherwise choose keys that collide."""
ENTRIES_LOW, ENTRIES_HIGH = 16, 64
"""Average entries a bucket between which the author leaves `bits` alone (hysteresis)."""
MIDDLE_BUCKETS = 64

_PREFIX = struct.Struct("<IQI")  # key bytes, seq, record bytes
_TOP = struct.Struct("<QB")  # entry count, bits
_EMPTY_BUCKET = sha256(b"").digest()

Entry = tuple[int, bytes]
"""(seq, record)"""


class BucketOverflow(ValueError):
    """More than BUCKET_ENTRIES_MAX entries in one bucket."""


def fitting_bits(count: int, bits: int) -> int:
    """The `bits` an author uses for `count` entries, coming from `bits`."""
    while bits < BITS_MAX and count > ENTRIES_HIGH << bits:
        bits += 1
    while bits and count < ENTRIES_LOW << bits:
        bits -= 1
    return bits


def _bucket_hash(keys: Iterable[bytes], entry: Mapping[bytes, Entry]) -> bytes:
    parts: list[bytes] = []
    for key in sorted(keys):
        seq, record = entry[key]
        parts += (_PREFIX.pack(len(key), seq, len(record)), key, record)
    return sha256(b"".join(parts)).digest()


class RootIndex:
    """Bucket membership and hashes of one chain's entries, kept as the entries change.

    Usage: `plan` computes the index after a change without changing anything; `adopt` takes a plan.
    """

    __slots__ = ("bits", "buckets", "count", "hashes", "middles", "root")

    def __init__(self) -> None:
        self.bits = 0
        self.count = 0
        self.buckets: list[set[bytes]] = [set()]
        self.hashes: list[bytes] = [_EMPTY_BUCKET]
        self.middles: list[bytes] = [sha256(_EMPTY_BUCKET).digest()]
        self.root = _top(0, 0, self.middles)

    def copy(self) -> RootIndex:
        twin = RootIndex()
        twin.bits, twin.count, twin.root = self.bits, self.count, self.root
        twin.buckets = [set(keys) for keys in self.buckets]
        twin.hashes, twin.middles = list(self.hashes), list(self.middles)
        return twin

    def plan(
        self,
        live: Mapping[bytes, Entry],
        puts: Mapping[bytes, Entry],
        drops: Iterable[bytes],
        bits: int,
    ) -> Plan:
        """The index of `live` with `puts` laid over it and `drops` taken away, at `bits`.

        `live` may hold the change already (an author's own writes). Changes nothing.
        Raises BucketOverflow.
        """
        if bits != self.bits:
            return self._replan(live, puts, drops, bits)
        mask = (1 << bits) - 1
        touched: dict[int, set[bytes]] = {}
        for key in drops:
            self._bucket(crc32(key) & mask, touched).discard(key)
        for key in puts:
            self._bucket(crc32(key) & mask, touched).add(key)
        overlay = _Overlay(live, puts)
        hashes: dict[int, bytes] = {}
        for slot, keys in touched.items():
            if len(keys) > BUCKET_ENTRIES_MAX:
                raise BucketOverflow(f"{len(keys)} entries in bucket {slot} of 2^{bits}")
            hashes[slot] = _bucket_hash(keys, overlay)
        entries = self.count + sum(
            len(keys) - len(self.buckets[slot]) for slot, keys in touched.items()
        )
        middles: dict[int, bytes] = {}
        for middle in {slot // MIDDLE_BUCKETS for slot in touched}:
            first = middle * MIDDLE_BUCKETS
            span = range(first, min(first + MIDDLE_BUCKETS, 1 << bits))
            middles[middle] = sha256(
                b"".join(hashes.get(slot) or self.hashes[slot] for slot in span)
            ).digest()
        tops = list(self.middles)
        for middle, value in middles.items():
            tops[middle] = value
        return Plan(bits, entries, touched, hashes, tops, _top(entries, bits, tops), whole=False)

    def _bucket(self, slot: int, touched: dict[int, set[bytes]]) -> set[bytes]:
        keys = touched.get(slot)
        if keys is None:
            keys = touched[slot] = set(self.buckets[slot])
        return keys

    def _replan(
        self,
        live: Mapping[bytes, Entry],
        puts: Mapping[bytes, Entry],
        drops: Iterable[bytes],
        bits: int,
    ) -> Plan:
        if not 0 <= bits <= BITS_MAX:
            raise BucketOverflow(f"2^{bits} buckets")
        mask = (1 << bits) - 1
        buckets: dict[int, set[bytes]] = {slot: set() for slot in range(1 << bits)}
        gone = set(drops)
        for key in live:
            if key not in gone:
                buckets[crc32(key) & mask].add(key)
        for key in puts:
            buckets[crc32(key) & mask].add(key)
        overlay = _Overlay(live, puts)
        for slot, keys in buckets.items():
            if len(keys) > BUCKET_ENTRIES_MAX:
                raise BucketOverflow(f"{len(keys)} entries in bucket {slot} of 2^{bits}")
        hashes = {slot: _bucket_hash(keys, overlay) for slot, keys in buckets.items()}
        entries = sum(map(len, buckets.values()))
        ordered = [hashes[slot] for slot in range(1 << bits)]
        tops = [
            sha256(b"".join(ordered[first : first + MIDDLE_BUCKETS])).digest()
            for first in range(0, 1 << bits, MIDDLE_BUCKETS)
        ]
        return Plan(bits, entries, buckets, hashes, tops, _top(entries, bits, tops), whole=True)

    def adopt(self, plan: Plan) -> None:
        """Make `plan` the index. It must come from this index, unchanged since."""
        if plan.whole:
            self.bits = plan.bits
            self.buckets = [plan.buckets[slot] for slot in range(1 << plan.bits)]
            self.hashes = [plan.hashes[slot] for slot in range(1 << plan.bits)]
        else:
            for slot, keys in plan.buckets.items():
                self.buckets[slot] = keys
                self.hashes[slot] = plan.hashes[slot]
        self.count = plan.entries
        self.middles = plan.middles
        self.root = plan.root


class Plan:
    """What `RootIndex.plan` computed: the changed buckets and the root that follows."""

    __slots__ = ("bits", "buckets", "entries", "hashes", "middles", "root", "whole")

    def __init__(
        self,
        bits: int,
        entries: int,
        buckets: dict[int, set[bytes]],
        hashes: dict[int, bytes],
        middles: list[bytes],
        root: bytes,
        *,
        whole: bool,
    ) -> None:
        self.bits = bits
        self.entries = entries
        self.buckets = buckets
        self.hashes = hashes
        self.middles = middles
        self.root = root
        self.whole = whole


class _Overlay(dict[bytes, Entry]):
    """`puts` over `live`, without copying `live`."""

    __slots__ = ("_under",)

    def __init__(self, under: Mapping[bytes, Entry], over: Mapping[bytes, Entry]) -> None:
        super().__init__(over)
        self._under = under

    def __missing__(self, key: bytes) -> Entry:
        return self._under[key]


def _top(entries: int, bits: int, middles: list[bytes]) -> bytes:
    return sha256(_TOP.pack(entries, bits) + b"".join(middles)).digest()
