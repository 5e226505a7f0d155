"""The hybrid logical clock (Kulkarni et al. 2014), used for nothing but ties.

A stamp is 64 bits: milliseconds since the Unix epoch, shifted left by 16, and a counter. Stamps of
one clock strictly rise, also when the machine's clock goes back. A stamp seen in another node's
record moves the clock past it, so that what is written after reading is stamped later; a stamp
more than `AHEAD_MAX_MS` ahead of the machine's clock does not, or one bad clock would drag all
others along.
"""

from __future__ import annotations

from typing import Final

COUNTER_BITS: Final = 16
HLC_MAX: Final = (1 << 64) - 1

AHEAD_MAX_MS: Final = 10_000
"""Well above the skew of machines that run NTP at all, well below what confuses a person."""

_NS_PER_MS: Final = 1_000_000


def hlc_of_ns(time_ns: int) -> int:
    """The first stamp of the millisecond in which `time_ns` lies."""
    return (time_ns // _NS_PER_MS) << COUNTER_BITS


def ns_of_hlc(hlc: int) -> int:
    """The start of the stamp's millisecond, in ns since the Unix epoch."""
    return (hlc >> COUNTER_BITS) * _NS_PER_MS


def span_text(span_s: float) -> str:
    """A span of time in the unit that people think of it in, such as `0.02s`, `5m`, `365d`."""
    for limit, unit_s, unit in ((100, 1, "s"), (100 * 60, 60, "m"), (100 * 3600, 3600, "h")):
        if abs(span_s) < limit:
            return f"{span_s:.2f}s" if unit == "s" else f"{span_s / unit_s:.0f}{unit}"
    return f"{span_s / 86_400:.0f}d"


class HybridClock:
    """One node's clock. `last` is the greatest stamp given or taken over so far."""

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def now(self, now_ns: int) -> int:
        """A stamp later than every one before it, and not before `now_ns` (wall clock)."""
        self.last = max(hlc_of_ns(now_ns), self.last + 1)
        return self.last

    def observe(self, hlc: int, now_ns: int) -> bool:
        """Take over a stamp read in a record. False, and no effect, if it is too far ahead."""
        if hlc >> COUNTER_BITS > now_ns // _NS_PER_MS + AHEAD_MAX_MS:
            return False
        self.last = max(self.last, hlc)
        return True
