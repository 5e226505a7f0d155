"""A table in arrays, which programs read without a call: few rows, keyed by u32.

Rules of this file (`bpf/tables.h` reads what is written here):
- A row has a slot, for as long as it is there, and the slot two places. It changes by being written
  to the place that it is not at, whole, and then by one byte of its cell in the index: a program
  finds the former row or the new one.
- A key is in one of two cells. Where both are taken, others move to their second ones: they are in
  both until all programs that had looked into the one before have ended.
- What a program may still be reading is not written to: before a place is used again that a cell
  has led to, all programs that were at work then have ended (`Readers`).
- A row says which key it is of, so a cell is never believed alone, and nothing else refers to
  slots: what the kernel holds is all the state, and `adopt` reads it back, whoever has written it
  and wherever that was interrupted.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterator, Sequence

from dataplane.xdp import kernel, layout

Row = tuple[bytes, bytes]

MOVES_LOOKED_AT_MAX = 64
"""Cells in which room is looked for: with half of all free, more are never needed."""
_FIRST = layout.INDEX_FIRST
_U32 = layout.U32
_NOT_ZERO = re.compile(rb"[^\0]")
_U32_MAX = 0xFFFFFFFF


class Readers:
    """Places in arrays that programs may be reading still: (descriptor, place)."""

    def __init__(self) -> None:
        self._left: set[tuple[int, int]] = set()

    def leave(self, fd: int, places: Collection[int]) -> None:
        """No cell leads there any more."""
        self._left.update((fd, place) for place in places)

    def end(self, fd: int, places: Collection[int]) -> None:
        """Return when no program reads at these places."""
        if any((fd, place) in self._left for place in places):
            self.end_all()

    def end_all(self) -> None:
        kernel.await_programs()
        self._left.clear()


class Indexed:
    """The rows in `fd`, their index, and the counters that go with their slots, if any do."""

    def __init__(self, fd: int, index_fd: int, counters_fd: int | None, readers: Readers) -> None:
        self._fd = fd
        self._index_fd = index_fd
        self._counters_fd = counters_fd
        self._readers = readers
        info, index = kernel.map_info(fd), kernel.map_info(index_fd)
        self.capacity = info.max_entries // 2
        self._row_bytes = info.value_bytes
        self._counter_bytes = (
            kernel.map_info(counters_fd).value_bytes * kernel.processors()
            if counters_fd is not None
            else 0
        )
        self._mask = index.max_entries - 2
        self.adopt()

    def __len__(self) -> int:
        return len(self._places)

    def adopt(self) -> None:
        """Take the rows to be what the kernel holds; cells that lead to none are cleared."""
        cells = self._led_to = self._cells()
        """Of each cell, what the kernel holds, if it leads anywhere."""
        self._cell_of = _reached(cells, self._mask, self._at(cells.values()))
        self._key_at = {cell: key for key, cell in self._cell_of.items()}
        self._places = {key: cells[cell] - _FIRST for key, cell in self._cell_of.items()}
        used = {place // 2 for place in self._places.values()}
        self._free = deque(slot for slot in range(self.capacity) if slot not in used)
        self._point([(cell, 0) for cell in sorted(cells.keys() - self._key_at.keys())])
        kernel.update(self._index_fd, _U32.pack(0), _U32.pack(self._mask))
        self._certain = True

    def put(self, rows: Sequence[Row]) -> list[Row]:
        """Write rows; returns those for which there was no room."""
        self._begin()
        refused: list[Row] = []
        written: dict[int, bytes] = {}
        left: list[int] = []
        changed: list[int] = []
        for raw, value in dict(rows).items():
            (key,) = _U32.unpack(raw)
            place = self._places.get(key)
            if place is not None:
                left.append(place)
                place ^= 1
            elif self._free and (cell := self._free_cell(key)) is not None:
                place = 2 * self._free.popleft()
                self._cell_of[key] = cell
                self._key_at[cell] = key
                self._zero(place // 2)
            else:
                refused.append((raw, value))
                continue
            self._places[key] = place
            written[place] = raw + _U32.pack(place // 2) + value
            changed.append(key)
        self._readers.end(self._fd, written.keys())
        kernel.update_rows(self._fd, [(_U32.pack(place), row) for place, row in written.items()])
        self._point([(self._cell_of[key], self._places[key] + _FIRST) for key in changed])
        self._readers.leave(self._fd, left)
        self._certain = True
        return refused

    def delete(self, keys: Sequence[bytes]) -> None:
        """Remove rows; those that are not there do not matter."""
        self._begin()
        gone = [key for (key,) in map(_U32.unpack, keys) if key in self._places]
        cells = [self._cell_of.pop(key) for key in gone]
        self._point([(cell, 0) for cell in cells])
        for cell in cells:
            del self._key_at[cell]
        places = [self._places.pop(key) for key in gone]
        self._free.extend(place // 2 for place in places)
        self._readers.leave(self._fd, places)
        self._certain = True

    def rows(self) -> Iterator[Row]:
        """The rows as a program finds them, without what an array's rows begin with."""
        cells = self._cells()
        rows = self._at(cells.values())
        for key, cell in _reached(cells, self._mask, rows).items():
            yield _U32.pack(key), rows[cells[cell] - _FIRST][layout.PLACED_BYTES :]

    def lookup(self, raw: bytes) -> bytes | None:
        place = self._places.get(_U32.unpack(raw)[0])
        if place is None:
            return None
        found = kernel.lookup(self._fd, _U32.pack(place), self._row_bytes)
        return found[layout.PLACED_BYTES :] if found else None

    # ---- counters -------------------------------------------------------------------------------

    def counted(self, raw: bytes) -> bytes:
        """All processors' copies of a row's counters; nothing for one that is not there."""
        place = self._places.get(_U32.unpack(raw)[0])
        if place is None or self._counters_fd is None:
            return b""
        return kernel.lookup(self._counters_fd, _U32.pack(place // 2), self._counter_bytes) or b""

    def count_anew(self, raw: bytes) -> None:
        """From zero; nothing for a row that is not there."""
        place = self._places.get(_U32.unpack(raw)[0])
        if place is not None:
            self._zero(place // 2)

    def _zero(self, slot: int) -> None:
        if self._counters_fd is not None:
            kernel.update(self._counters_fd, _U32.pack(slot), bytes(self._counter_bytes))

    # ---- arrays ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        """A call that the kernel refuses half-way leaves the next one to look what there is."""
        if not self._certain:
            self.adopt()
        self._certain = False

    def _free_cell(self, key: int) -> int | None:
        """A free one of the key's cells, for which others may have moved; None if they cannot."""
        came_from: dict[int, int | None] = dict.fromkeys(_cells_for(key, self._mask))
        looked_at = deque(came_from)
        while looked_at and len(came_from) < MOVES_LOOKED_AT_MAX:
            cell = looked_at.popleft()
            occupant = self._key_at.get(cell)
            if occupant is None:
                return self._vacated(cell, came_from)
            for other in _cells_for(occupant, self._mask):
                if other not in came_from:
                    came_from[other] = cell
                    looked_at.append(other)
        return None

    def _vacated(self, free: int, came_from: dict[int, int | None]) -> int:
        """Move each key on the way to a free cell one on; returns the cell that is free then."""
        while (cell := came_from[free]) is not None:
            key = self._key_at.pop(cell)
            self._cell_of[key], self._key_at[free] = free, key
            if (to := self._led_to.get(cell, 0)) != 0:
                self._point([(free, to)])
                self._readers.end_all()
                self._point([(cell, 0)])
            free = cell
        return free

    def _point(self, cells: Sequence[tuple[int, int]]) -> None:
        pack = _U32.pack
        kernel.update_rows(self._index_fd, [(pack(cell), pack(to)) for cell, to in cells])
        self._led_to.update(cells)

    def _cells(self) -> dict[int, int]:
        """The index' cells that lead somewhere."""
        raw = kernel.dump_values(self._index_fd, 4, 4)
        cells = sorted({match.start() // 4 for match in _NOT_ZERO.finditer(raw, 4)})
        values = {cell: _U32.unpack_from(raw, 4 * cell)[0] for cell in cells}
        end = _FIRST + 2 * self.capacity
        return {cell: to for cell, to in values.items() if _FIRST <= to < end}

    def _at(self, cells: Collection[int]) -> dict[int, bytes]:
        """By place, the rows that cells with these contents lead to."""
        if not cells:
            return {}
        raw, size = kernel.dump_values(self._fd, 4, self._row_bytes), self._row_bytes
        places = (to - _FIRST for to in cells)
        return {place: raw[place * size : (place + 1) * size] for place in places}


def _cells_for(key: int, mask: int) -> tuple[int, int]:
    """Where programs look for a key, in this order (`cell_hash`)."""
    return 1 + (key & mask), 1 + ((key * 0x9E3779B1 & _U32_MAX) >> 15 & mask)


def _reached(cells: dict[int, int], mask: int, rows: dict[int, bytes]) -> dict[int, int]:
    """The keys that programs find, each with the cell that they find it by. Of the cells that lead
    to a slot only one does, so that it has one row."""
    ids = {place: _U32.unpack_from(row)[0] for place, row in rows.items()}
    found: dict[int, int] = {}
    slots: set[int] = set()
    for key in sorted(set(ids.values())):
        for cell in _cells_for(key, mask):
            place = cells.get(cell, 0) - _FIRST
            if ids.get(place) == key and place // 2 not in slots:
                found[key] = cell
                slots.add(place // 2)
                break
    return found
