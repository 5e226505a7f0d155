"""Deltas: an interval of one chain, the unit that travels.

`(base, lo, header.hi]` holds the keys put and deleted after `lo`; `lo` counts in the epoch `base`,
which is the header's or one that it shares its history with. Where the sender has forgotten which
keys were deleted since `lo`, `keep` lists the seqs at or below `lo` that still stand.

What is put and deleted travels as one blob, the **payload**: the author signs its hash, and relays
pass the very bytes on. All loops over its records are C's; the objects that come out of unpacking
are those that the chain keeps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from operator import lt
from typing import Final, TypeAlias

from crdt import liveseq
from crdt.entry import SEQ_BYTES, Entry, seq_bytes, seq_bytes_of
from crdt.header import NONCE_BYTES, Epoch, Header
from crdt.packed import pack, unpack

KEY_BYTES_MAX: Final = 255
RECORD_BYTES_MAX: Final = 16_384
"""An endpoint's record is about 40 bytes, a VPC's a few hundred, and 10 kB with all its sites. A
chain with a longer one is refused by everybody: its writer must not get that far."""

Puts: TypeAlias = dict[bytes, Entry]
"""key -> entry, ascending by seq"""
Deletes: TypeAlias = dict[bytes, Entry]
"""key -> entry without a record, ascending by seq"""


class BadDelta(ValueError):
    """A delta that no honest author or relay can have made."""


@dataclass(frozen=True, slots=True)
class Delta:
    """An interval that ends at the state `header` signs. `payload` is packed when it is needed."""

    header: Header
    base: Epoch
    lo: int
    puts: Puts
    deletes: Deletes
    keep: bytes | None = None
    payload: bytes = field(default=b"", compare=False, repr=False)

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
        """Raise BadDelta unless seqs ascend within (lo, hi], keys and records are in bounds, and
        the payload is what was signed."""
        self.check_entries()
        if self.verbatim and sha256(self.packed_payload()).digest() != self.header.payload_hash:
            raise BadDelta("payload is not what was signed")

    def check_entries(self) -> None:
        """As `check`, but for the payload: a piece has not all of it."""
        puts, deletes = self.puts, self.deletes
        if puts:
            entry_bytes = set(map(len, puts.values()))
            if not SEQ_BYTES <= min(entry_bytes) <= max(entry_bytes) <= _ENTRY_BYTES_MAX:
                raise BadDelta("record out of bounds")
            self._check_interval(puts, "puts")
        if deletes:
            if set(map(len, deletes.values())) != {SEQ_BYTES}:
                raise BadDelta("a delete with a record")
            self._check_interval(deletes, "deletes")
            if puts.keys() & deletes.keys():
                raise BadDelta("a key both put and deleted")

    def _check_interval(self, entries: dict[bytes, Entry], what: str) -> None:
        key_bytes = set(map(len, entries))
        if not 0 < min(key_bytes) <= max(key_bytes) <= KEY_BYTES_MAX:
            raise BadDelta("key out of bounds")
        seqs = [*map(seq_bytes_of, entries.values())]
        if (
            not seq_bytes(self.lo) < seqs[0]
            or not all(map(lt, seqs, seqs[1:]))
            or seqs[-1] > seq_bytes(self.header.hi)
        ):
            raise BadDelta(f"{what} do not ascend within the interval")

    def packed_payload(self) -> bytes:
        """The payload's bytes: msgpack [[key, entry, …] of the puts, the same of the deletes]."""
        if not self.payload:
            object.__setattr__(self, "payload", pack_payload(self.puts, self.deletes))
        return self.payload

    def pack(self) -> list[object]:
        """Plain msgpack values: header, base, lo, payload, keep."""
        return [self.header.pack(), *self.base, self.lo, self.packed_payload(), self.keep]

    @classmethod
    def unpack(cls, raw: object, *, piece: bool = False) -> Delta:
        """The reverse of `pack`, checked. Raises ValueError on anything malformed.

        A piece of a larger delta holds some of its puts: its payload is checked with the whole.
        """
        if not isinstance(raw, list) or len(raw) < 6:
            raise ValueError("delta: not a list of 6")
        header, counter, nonce, lo, payload, keep = raw[:6]
        if type(counter) is not int or type(lo) is not int:
            raise ValueError("delta: base or lo")
        if not isinstance(nonce, bytes) or len(nonce) != NONCE_BYTES:
            raise ValueError("delta: nonce")
        if not isinstance(payload, bytes) or not (keep is None or isinstance(keep, bytes)):
            raise ValueError("delta: payload or keep")
        whole = Header.unpack(header)
        if not 0 <= lo < whole.hi:
            raise ValueError("delta: empty interval")
        puts, deletes = _unpack_payload(payload)
        delta = cls(whole, Epoch(counter, nonce), lo, puts, deletes, keep, payload)
        if not piece:
            delta.check()
        return delta


_ENTRY_BYTES_MAX: Final = SEQ_BYTES + RECORD_BYTES_MAX


def pack_payload(puts: Puts, deletes: Deletes) -> bytes:
    """The canonical form of a flush's content: what `Header.payload_hash` is the SHA-256 of."""
    return pack([_flat(puts), _flat(deletes)])


def _flat(entries: dict[bytes, Entry]) -> list[bytes]:
    flat = [b""] * (2 * len(entries))
    flat[::2] = entries
    flat[1::2] = entries.values()
    return flat


def _unpack_payload(payload: bytes) -> tuple[Puts, Deletes]:
    try:
        flat = unpack(payload, 3)
    except ValueError as error:
        raise ValueError(f"payload: {error}") from None
    if not isinstance(flat, list) or len(flat) != 2:
        raise ValueError("payload: not two lists")
    return _unflat(flat[0]), _unflat(flat[1])


def _unflat(flat: object) -> dict[bytes, Entry]:
    if not isinstance(flat, list) or len(flat) % 2 or not {*map(type, flat)} <= {bytes}:
        raise ValueError("payload: not pairs of bytes")
    entries = dict(zip(flat[::2], flat[1::2], strict=True))
    if 2 * len(entries) != len(flat):
        raise ValueError("payload: a key twice")
    return entries


def kept(delta: Delta) -> set[bytes] | None:
    """The seqs (packed) that a receiver below the sender's floor keeps; None when deletes are
    listed in full.

    Raises BadDelta when the list is malformed.
    """
    if delta.keep is None:
        return None
    try:
        seqs = {*map(seq_bytes, liveseq.decode(delta.keep))}
    except ValueError as error:
        raise BadDelta(f"live-seq list: {error}") from None
    seqs.update(map(seq_bytes_of, delta.puts.values()))
    return seqs
