"""The ring buffer that the programs tell drops in, read through mmap(2) by one process.

The kernel maps the reader's position (writable), the writer's position, and the data twice in a
row, so no record is broken by the end (kernel/bpf/ringbuf.c). A record is a head of 8 bytes, whose
first u32 holds its length and two flags, and data padded to 8 bytes. Positions only grow.
"""

from __future__ import annotations

import mmap
import struct

_BUSY = 1 << 31
_DISCARDED = 1 << 30
_HEAD_BYTES = 8
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")


class Ring:
    """`size` is the map's capacity in bytes. The reader's position outlives the process."""

    def __init__(self, fd: int, size: int) -> None:
        self._size = size
        self._own = mmap.mmap(fd, mmap.PAGESIZE)
        self._written = mmap.mmap(
            fd, mmap.PAGESIZE + 2 * size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE
        )

    def close(self) -> None:
        self._own.close()
        self._written.close()

    def take(self, records_max: int) -> list[bytes]:
        """The oldest records, as many as that, which are out of the ring then."""
        records: list[bytes] = []
        (at,) = _U64.unpack_from(self._own)
        (end,) = _U64.unpack_from(self._written)
        while at < end and len(records) < records_max:
            start = mmap.PAGESIZE + at % self._size
            (head,) = _U32.unpack_from(self._written, start)
            if head & _BUSY:
                break
            size = head & ~_DISCARDED
            data = start + _HEAD_BYTES
            if not head & _DISCARDED:
                records.append(self._written[data : data + size])
            at += (_HEAD_BYTES + size + 7) // 8 * 8
        _U64.pack_into(self._own, 0, at)
        return records
