"""Virtual time: one heap of events. Nothing in a run waits, and nothing else moves the time.

Events of the same instant happen in the order in which they were scheduled, so a run is a function
of its scenario and its seed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import TypeAlias

SECOND_NS = 1_000_000_000
MS_NS = 1_000_000

Action: TypeAlias = Callable[[], None]


def seconds(ns: int) -> float:
    return ns / SECOND_NS


def ns_of(seconds: float) -> int:
    return round(seconds * SECOND_NS)


class Clock:
    """The time of a run, and what is to happen in it."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.events = 0
        """Events that have happened."""
        self._heap: list[tuple[int, int, Action]] = []
        self._scheduled = 0

    def at(self, when_ns: int, action: Action) -> None:
        """Let `action` happen at `when_ns`, or now if that is past."""
        self._scheduled += 1
        heapq.heappush(self._heap, (max(when_ns, self.now_ns), self._scheduled, action))

    def after(self, delay_ns: int, action: Action) -> None:
        self.at(self.now_ns + delay_ns, action)

    def step(self, until_ns: int) -> bool:
        """Let the next event up to `until_ns` happen. False, and the time is that, without one."""
        if not self._heap or self._heap[0][0] > until_ns:
            self.now_ns = max(self.now_ns, until_ns)
            return False
        self.now_ns, _, action = heapq.heappop(self._heap)
        self.events += 1
        action()
        return True

    def run(self, until_ns: int) -> None:
        """Let everything up to `until_ns` happen."""
        while self.step(until_ns):
            pass
