"""Dropped packets that the data plane has told of: the last ones, and a sum by what they have in
common.

Both are bounded: whoever can send packets could fill them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

import trio

from dataplane.drops import DropEvent

EVENTS_MAX: Final = 1000
"""Kept for who follows; one who is slower misses some and is told how many."""
KINDS_MAX: Final = 1000
"""Sums kept; the one whose last packet is longest ago goes first."""
WAIT_S: Final = 20.0
"""How long a call waits for a drop: below what clients and proxies wait for an answer."""

Kind = tuple[object, ...]


class DropLog:
    """One per node."""

    def __init__(self) -> None:
        self._events: deque[DropEvent] = deque(maxlen=EVENTS_MAX)
        self._sums: dict[Kind, DropEvent] = {}
        self._told = trio.Event()
        self.count = 0
        """events so far: the number of the next one"""

    def add(self, events: Iterable[DropEvent]) -> None:
        """Take up events, the oldest first."""
        for event in events:
            self.count += 1
            self._events.append(event)
            kind = (event.reason, event.vni, event.src, event.dst, event.outer, event.ifname)
            before = self._sums.pop(kind, None)
            packets = event.packets + (before.packets if before else 0)
            self._sums[kind] = replace(event, packets=packets)
            if len(self._sums) > KINDS_MAX:
                del self._sums[next(iter(self._sums))]
        self._told.set()
        self._told = trio.Event()

    def sums(self) -> list[DropEvent]:
        """One event a kind, with all its packets and the time of the last, the latest first."""
        return list(reversed(self._sums.values()))

    async def after(self, number: int) -> tuple[list[DropEvent], int]:
        """The events from this number on, once there are any or after WAIT_S, and how many there
        were before them that are not kept any more."""
        number = min(number, self.count)  # a number of before a restart
        with trio.move_on_after(WAIT_S):
            while self.count <= number:
                await self._told.wait()
        kept = list(self._events)
        first = self.count - len(kept)
        return kept[max(0, number - first) :], max(0, first - number)
