"""Virtual time: one heap of events. Nothing in a run waits, and nothing else moves the time.

Events of the same instant happen in the order in which they were scheduled, so a run is a function
of its scenario and its seed.

Beside events there are ticks: what nodes do at intervals whether or not there is a need, such as
comparing digests. While they would change nothing (`idle` says so) they are not played: the time
leaps to the next event, and all ticks are late by the leap. Days of a quiet mesh take no time so.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final, TypeAlias

SECOND_NS: Final = 1_000_000_000
MS_NS: Final = 1_000_000

Action: TypeAlias = Callable[[], None]


def seconds(ns: int) -> float:
    return ns / SECOND_NS


def ns_of(seconds: float) -> int:
    return round(seconds * SECOND_NS)


def _never() -> bool:
    return False


def _ignored(ns: int) -> None:
    pass


class Clock:
    """The time of a run, and what is to happen in it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.events = 0
        """Events and ticks that have happened."""
        self.leapt_ns = 0
        """How much of the time was leapt over."""
        self.idle: Callable[[], bool] = _never
        """Whether no tick would change anything before the next event."""
        self.leapt: Callable[[int], None] = _ignored
        """Is told of every leap, in ns."""
        self._heap: list[tuple[int, int, Action]] = []
        self._ticks: list[tuple[int, int, Action]] = []
        """at what time minus `leapt_ns`"""
        self._scheduled = 0

    @property
    def active_ns(self) -> int:
        """The time without what was leapt over: that by which ticks come."""
        return self.now_ns - self.leapt_ns

    def at(self, when_ns: int, action: Action) -> None:
        """Let `action` happen at `when_ns`, or now if that is past."""
        self._scheduled += 1
        if when_ns < self.now_ns:
            when_ns = self.now_ns
        heapq.heappush(self._heap, (when_ns, self._scheduled, action))

    def after(self, delay_ns: int, action: Action) -> None:
        self.at(self.now_ns + delay_ns, action)

    def tick_at(self, when_ns: int, action: Action) -> None:
        """Let `action` happen at `when_ns`, or later by what is leapt over until then."""
        self._scheduled += 1
        when_ns = max(when_ns, self.now_ns) - self.leapt_ns
        heapq.heappush(self._ticks, (when_ns, self._scheduled, action))

    def step(self, until_ns: int) -> bool:
        """Let the next event up to `until_ns` happen. False, and the time is that, without one."""
        heap, ticks = self._heap, self._ticks
        next_ns = min(heap[0][0], until_ns) if heap else until_ns
        if ticks:
            tick_ns = ticks[0][0] + self.leapt_ns
            if tick_ns < next_ns:
                if not self.idle():
                    self._happen(tick_ns, ticks)
                    return True
                since_ns, self.now_ns = self.now_ns, next_ns
                self.leapt_ns += next_ns - since_ns
                self.leapt(next_ns - since_ns)
        if not heap or heap[0][0] > until_ns:
            self.now_ns = max(self.now_ns, until_ns)
            return False
        self._happen(next_ns, heap)
        return True

    def _happen(self, at_ns: int, heap: list[tuple[int, int, Action]]) -> None:
        self.now_ns = at_ns
        self.events += 1
        heapq.heappop(heap)[2]()

    def run(self, until_ns: int) -> None:
        """Let everything up to `until_ns` happen."""
        heap, ticks = self._heap, self._ticks
        while True:
            # Most of what happens are events, one after the other; `step` knows what else may come.
            while heap and heap[0][0] <= until_ns:
                if ticks and ticks[0][0] + self.leapt_ns < heap[0][0]:
                    break
                self.now_ns = heap[0][0]
                self.events += 1
                heapq.heappop(heap)[2]()
            if not self.step(until_ns):
                return
