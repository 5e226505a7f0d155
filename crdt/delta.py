"""Deltas: an interval of one chain, the unit that travels.

`(base, lo, header.hi]` holds the keys put and deleted after `lo`; `lo` counts in the epoch `base`,
which is the header's or one that it shares its history with. Where the sender has forgotten which
keys were deleted since `lo`, `keep` lists the seqs at or below `lo` that still stand.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from operator import lt

import msgpack

from crdt import liveseq
from crdt.header import NONCE_BYTES, Epoch, Header

KEY_BYTES_MAX = 255
RECORD_BYTES_MAX = 16_384
"""An endpoint's record is about 40 bytes, a VPC's a few hundred, and 10 kB with all its sites. A
chain with a longer one is refused by everybody: its writer must not get that far."""

Puts = tuple[tuple[bytes, int, bytes], ...]
"""(key, seq, record), ascending by seq"""
Deletes = tuple[tuple[int, bytes], ...]
"""(seq, key), ascending by seq"""


class BadDelta(ValueError):
    """A delta that no honest author or relay can have made."""


@dataclass(frozen=True, slots=True)
class Delta:
    """An interval that ends at the state `header` signs."""

    header: Header
    base: Epoch
    lo: int
    puts: Puts
    deletes: Deletes
    keep: bytes | None = None

    @property
    def verbatim(self) -> bool:
        """Whether this claims to be the flush as its author first sent it.

        The first flush of an epoch over an earlier one is signed for its whole base, and sent as an
        interval of the earlier epoch: it is not.
        """
        header = self.header
        return (
            self.keep is None
            and self.lo == header.lo
            and self.base == header.epoch
            and not (self.lo == 0 and header.covers)
        )

    def check(self) -> None:
        """Raise BadDelta unless seqs ascend within (lo, hi] and keys and records are in bounds."""
        if self.puts:
            keys, seqs, records = zip(*self.puts, strict=True)
            if not all(map(lt, (self.lo, *seqs), seqs)) or seqs[-1] > self.header.hi:
                raise BadDelta("puts do not ascend within the interval")
            key_bytes = set(map(len, keys))
            if not 0 < min(key_bytes) <= max(key_bytes) <= KEY_BYTES_MAX:
                raise BadDelta("key out of bounds")
            if max(map(len, records)) > RECORD_BYTES_MAX:
                raise BadDelta("record out of bounds")
        last = self.lo
        for seq, key in self.deletes:
            if not last < seq <= self.header.hi or not 0 < len(key) <= KEY_BYTES_MAX:
                raise BadDelta("deletes do not ascend within the interval")
            last = seq
        if self.verbatim and payload_hash(self.puts, self.deletes) != self.header.payload_hash:
            raise BadDelta("payload is not what was signed")

    def pack(self) -> list[object]:
        """Plain msgpack values: header, base, lo, flat puts, flat deletes, keep."""
        flat = [list(chain.from_iterable(fields)) for fields in (self.puts, self.deletes)]
        return [self.header.pack(), *self.base, self.lo, *flat, self.keep]

    @classmethod
    def unpack(cls, raw: object, *, piece: bool = False) -> Delta:
        """The reverse of `pack`, checked. Raises ValueError on anything malformed.

        A piece of a larger delta holds some of its puts: its payload is checked with the whole.
        """
        if not isinstance(raw, list) or len(raw) < 7:
            raise ValueError("delta: not a list of 7")
        header, counter, nonce, lo, puts, deletes, keep = raw[:7]
        if type(counter) is not int or type(lo) is not int or lo < 0:
            raise ValueError("delta: base or lo")
        if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
            raise ValueError("delta: nonce")
        if keep is not None and not isinstance(keep, bytes):
            raise ValueError("delta: keep")
        delta = cls(
            Header.unpack(header),
            Epoch(counter, nonce),
            lo,
            _unpack_puts(puts),
            _unpack_deletes(deletes),
            keep,
        )
        if not piece:
            delta.check()
        return delta


def _unpack_puts(raw: object) -> Puts:
    if not isinstance(raw, list) or len(raw) % 3:
        raise ValueError("delta: puts")
    keys, seqs, records = raw[::3], raw[1::3], raw[2::3]
    # Sets of types and not a loop over puts: this is done to every record that comes.
    if not ({*map(type, keys), *map(type, records)} <= {bytes} and {*map(type, seqs)} <= {int}):
        raise ValueError("delta: put")
    return tuple(zip(keys, seqs, records, strict=True))


def _unpack_deletes(raw: object) -> Deletes:
    if not isinstance(raw, list) or len(raw) % 2:
        raise ValueError("delta: deletes")
    deletes = tuple(zip(raw[::2], raw[1::2], strict=True))
    for seq, key in deletes:
        if type(seq) is not int or type(key) is not bytes:
            raise ValueError("delta: delete")
    return deletes


def payload_hash(puts: Puts, deletes: Deletes) -> bytes:
    """SHA-256 over the canonical form of a flush's content."""
    flat = [list(chain.from_iterable(fields)) for fields in (puts, deletes)]
    return sha256(msgpack.packb(flat)).digest()


def kept(delta: Delta) -> set[int] | None:
    """The seqs a receiver below the sender's floor keeps; None when deletes are listed in full.

    Raises BadDelta when the list is malformed.
    """
    if delta.keep is None:
        return None
    try:
        seqs = set(liveseq.decode(delta.keep))
    except ValueError as error:
        raise BadDelta(f"live-seq list: {error}") from None
    seqs.update(seq for _, seq, _ in delta.puts)
    return seqs
