"""The root of a chain: a two-level hash over buckets of entries.

Entries fall into 2^bits buckets by crc32(key). A bucket's hash is SHA-256 over its entries in key
order, packed as a msgpack list of key, entry, key, entry, …; 64 bucket hashes make a middle;
root = SHA-256(count, bits, middles). One changed entry costs one bucket, one middle and the top.
No XOR and no sums of hashes: a set of entries for a given XOR can be forged in milliseconds
(Bellare and Micciancio 1997).

The epoch is not hashed here: the signature binds it beside the root, so that opening an epoch over
an unchanged base costs nothing.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from hashlib import sha256
from itertools import islice
from typing import Final
from zlib import crc32

from crdt.entry import Entry
from crdt.packed import pack

BITS_MAX: Final = 20
"""2^20 buckets hold 64 million entries at 64 each: far beyond any quota."""
BUCKET_ENTRIES_MAX: Final = 1024
"""A bucket beyond this is refused: an author could otherwise choose keys that collide."""
ENTRIES_LOW, ENTRIES_HIGH = 16, 64
"""Average entries a bucket between which the author leaves `bits` alone (hysteresis)."""
MIDDLE_BUCKETS: Final = 64

_TOP: Final = struct.Struct("<QB")  # entry count, bits
_EMPTY_BUCKET: Final = sha256(b"").digest()
_EMPTY_MIDDLE: Final = sha256(_EMPTY_BUCKET).digest()

Keys = tuple[bytes, ...]
"""The keys of a bucket in order: 8 B a key, a third of what a set takes, and never sorted anew."""
Puts = Mapping[bytes, Entry] | Collection[bytes]
"""What is put: key -> entry, or the keys alone"""


class BucketOverflow(ValueError):
    """More than BUCKET_ENTRIES_MAX entries in one bucket."""


def fitting_bits(count: int, bits: int) -> int:
    """The `bits` an author uses for `count` entries, coming from `bits`."""
    while bits < BITS_MAX and count > ENTRIES_HIGH << bits:
        bits += 1
    while bits and count < ENTRIES_LOW << bits:
        bits -= 1
    return bits


def _bucket_hash(keys: Keys, live: Mapping[bytes, Entry], puts: Mapping[bytes, Entry]) -> bytes:
    """The hash of a bucket of these sorted keys, `puts` laid over `live`."""
    if not keys:
        return _EMPTY_BUCKET
    # All loops are C's where they can be: this is what joining spends most of its time in.
    flat = [b""] * (2 * len(keys))
    flat[::2] = keys
    if puts:
        flat[1::2] = [puts[key] if key in puts else live[key] for key in keys]
    else:
        flat[1::2] = map(live.__getitem__, keys)
    return sha256(pack(flat)).digest()


def _merged(held: Keys, puts: list[bytes], drops: list[bytes]) -> Keys:
    """Sorted keys without `drops` and with `puts`; `held` itself when that changes nothing."""
    if drops:
        gone = set(drops)
        held = tuple(key for key in held if key not in gone)
    fresh = []
    for key in puts:
        i = bisect_left(held, key)
        if i == len(held) or held[i] != key:
            fresh.append(key)
    # Two sorted runs, of which sorting is a merge.
    return tuple(sorted((*held, *sorted(fresh)))) if fresh else held


class RootIndex:
    """Bucket membership and hashes of one chain's entries, kept as the entries change.

    Usage: `plan` computes the index after a change without changing anything; `adopt` takes a plan.
    """

    __slots__ = ("bits", "buckets", "count", "hashes", "middles", "root")

    def __init__(self) -> None:
        self.bits = 0
        self.count = 0
        self.buckets: list[Keys] = [()]
        self.hashes: list[bytes] = [_EMPTY_BUCKET]
        self.middles: list[bytes] = [_EMPTY_MIDDLE]
        self.root = _EMPTY_ROOT

    def copy(self) -> RootIndex:
        twin = RootIndex()
        twin.bits, twin.count, twin.root = self.bits, self.count, self.root
        twin.buckets = list(self.buckets)
        twin.hashes, twin.middles = list(self.hashes), list(self.middles)
        return twin

    def buckets_of(self, keys: Iterable[bytes]) -> list[Keys]:
        """The buckets in which these keys are, or would be."""
        mask = (1 << self.bits) - 1
        return [self.buckets[slot] for slot in {crc32(key) & mask for key in keys}]

    def plan(
        self, live: Mapping[bytes, Entry], puts: Puts, drops: Iterable[bytes], bits: int
    ) -> Plan:
        """The index of `live` with `puts` laid over it and `drops` taken away, at `bits`.

        `puts` that are keys alone say that `live` holds the change already. Changes nothing.
        Raises BucketOverflow.
        """
        over = puts if isinstance(puts, Mapping) else {}
        if bits != self.bits:
            return self._replan(live, over, drops, bits)
        mask = (1 << bits) - 1
        put, dropped = _by_slot(puts, mask), _by_slot(drops, mask)
        touched: dict[int, Keys] = {}
        hashes: dict[int, bytes] = {}
        entries = self.count
        for slot in put.keys() | dropped.keys():
            held = self.buckets[slot]
            keys = _merged(held, put.get(slot, []), dropped.get(slot, []))
            _check(len(keys), slot, bits)
            entries += len(keys) - len(held)
            touched[slot] = keys
            hashes[slot] = _bucket_hash(keys, live, over)
        tops = list(self.middles)
        for middle in {slot // MIDDLE_BUCKETS for slot in touched}:
            first = middle * MIDDLE_BUCKETS
            below = self.hashes[first : first + MIDDLE_BUCKETS]
            for i in range(len(below)):
                if first + i in hashes:
                    below[i] = hashes[first + i]
            tops[middle] = sha256(b"".join(below)).digest()
        return Plan(bits, entries, touched, hashes, tops, _top(entries, bits, tops), whole=False)

    def _replan(
        self,
        live: Mapping[bytes, Entry],
        over: Mapping[bytes, Entry],
        drops: Iterable[bytes],
        bits: int,
    ) -> Plan:
        gone = set(drops)
        keys = {key: None for key in live if key not in gone}
        keys.update(dict.fromkeys(over))
        plan = Building(keys, live, over, bits).step(2 * len(keys) + (2 << bits))
        assert plan is not None
        return plan

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
        buckets: dict[int, Keys],
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


class Building:
    """The index of all of some entries, made in steps of a few milliseconds each.

    The entries must stay as they are until it is done.
    """

    def __init__(
        self,
        keys: Mapping[bytes, object],
        live: Mapping[bytes, Entry],
        over: Mapping[bytes, Entry],
        bits: int,
    ) -> None:
        """Of `keys`, with the entries of `over` laid over those of `live`, at `bits`. Raises
        BucketOverflow."""
        if bits and len(keys) < ENTRIES_LOW << bits:
            # No author does that, and a hostile one could ask for a million buckets of nothing.
            raise BucketOverflow(f"2^{bits} buckets for {len(keys)} entries")
        self._live, self._over, self._bits = live, over, bits
        self._count = len(keys)
        self._unsorted = iter(keys)
        self._members: defaultdict[int, list[bytes]] = defaultdict(list)
        self._buckets: dict[int, Keys] = {}
        self._hashes: dict[int, bytes] = {}

    def step(self, keys_max: int) -> Plan | None:
        """Go on with about so many keys; the whole index once it is done. Raises BucketOverflow."""
        mask, members = (1 << self._bits) - 1, self._members
        some = list(islice(self._unsorted, keys_max))
        for key, crc in zip(some, map(crc32, some), strict=True):
            members[crc & mask].append(key)
        keys_max -= len(some)
        while keys_max > 0 and len(self._buckets) <= mask:
            slot = len(self._buckets)
            found = members.pop(slot, [])
            _check(len(found), slot, self._bits)
            self._buckets[slot] = keys = tuple(sorted(found))
            self._hashes[slot] = _bucket_hash(keys, self._live, self._over)
            keys_max -= len(found) + 1
        return self._plan() if len(self._buckets) > mask else None

    def _plan(self) -> Plan:
        bits, count = self._bits, self._count
        ordered = list(self._hashes.values())
        tops = [
            sha256(b"".join(ordered[first : first + MIDDLE_BUCKETS])).digest()
            for first in range(0, 1 << bits, MIDDLE_BUCKETS)
        ]
        return Plan(
            bits, count, self._buckets, self._hashes, tops, _top(count, bits, tops), whole=True
        )


def _by_slot(keys: Iterable[bytes], mask: int) -> dict[int, list[bytes]]:
    found: defaultdict[int, list[bytes]] = defaultdict(list)
    for key in keys:
        found[crc32(key) & mask].append(key)
    return found


def _check(count: int, slot: int, bits: int) -> None:
    if count > BUCKET_ENTRIES_MAX:
        raise BucketOverflow(f"{count} entries in bucket {slot} of 2^{bits}")


def _top(entries: int, bits: int, middles: list[bytes]) -> bytes:
    return sha256(_TOP.pack(entries, bits) + b"".join(middles)).digest()


_EMPTY_ROOT: Final = _top(0, 0, [_EMPTY_MIDDLE])
