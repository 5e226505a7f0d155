"""When what a node passes on leaves: at once in a quiet mesh, many together in a busy one.

A token bucket: some batches go at once, one after the other; beyond that one every `TICK_NS`. All
that comes in between goes together, in one transaction and one frame a neighbour, so that a busy
node's cost follows what is new and not how often something is.
"""

from __future__ import annotations

from typing import Final

TICK_NS: Final = 100_000_000
"""10 batches a second, half of what a mesh with 20 updates a second would make of them otherwise.
An update that comes to a busy node waits half of this on average: with four copies of each and
100 ms between sites it reaches a thousand nodes in well under a second (three or four hops)."""
BURST: Final = 10
"""Batches that go at once after a second of quiet."""


class Pace:
    """Ask `wait_ns` before a batch, say `spend` with it."""

    def __init__(self) -> None:
        self._tokens_ns = BURST * TICK_NS
        """what is saved up, in time: a batch costs TICK_NS"""
        self._at_ns: int | None = None

    def wait_ns(self, now_ns: int) -> int:
        """How long the next batch is to wait, from now: 0 to TICK_NS."""
        self._refill(now_ns)
        return min(TICK_NS, max(0, TICK_NS - self._tokens_ns))

    def spend(self, now_ns: int) -> None:
        """A batch goes now, whether it waited or not."""
        self._refill(now_ns)
        self._tokens_ns = max(0, self._tokens_ns - TICK_NS)

    def _refill(self, now_ns: int) -> None:
        if self._at_ns is not None:
            self._tokens_ns = min(BURST * TICK_NS, self._tokens_ns + now_ns - self._at_ns)
        self._at_ns = now_ns
