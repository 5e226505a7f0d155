"""What is held under a key: one `bytes`, 6 bytes of seq (big-endian), then the record.

One object an entry, which the garbage collector never looks at: with a 40-byte record and its key
166 B in a dict, against 858 B for objects. The order of entries as bytes is the order of their
seqs. A delete is written as an entry that is the seq alone.
"""

from __future__ import annotations

from operator import itemgetter
from typing import Final, TypeAlias

Entry: TypeAlias = bytes

SEQ_BYTES: Final = 6
SEQ_MAX: Final = (1 << 48) - 1
"""At a million writes a second a chain ends after eight years."""

seq_bytes_of: Final = itemgetter(slice(0, SEQ_BYTES))
"""The seq of an entry as it is packed, for C-level loops."""


def seq_bytes(seq: int) -> bytes:
    """Raises OverflowError beyond SEQ_MAX."""
    return seq.to_bytes(SEQ_BYTES, "big")


def pack(seq: int, record: bytes) -> Entry:
    """Raises OverflowError for a seq beyond SEQ_MAX."""
    return seq.to_bytes(SEQ_BYTES, "big") + record


def seq_of(entry: Entry) -> int:
    return int.from_bytes(entry[:SEQ_BYTES], "big")


def record_of(entry: Entry) -> bytes:
    return entry[SEQ_BYTES:]
