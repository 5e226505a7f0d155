"""Numbers and names as people read them on a page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sim.core.clock import SECOND_NS

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of time for an axis: `name` after the number, `ns` in it."""

    name: str
    ns: float

    @classmethod
    def for_span(cls, span_ns: int) -> Unit:
        """The one in which a span has two digits or so."""
        span_s = span_ns / SECOND_NS
        if span_s <= 3 * MINUTE_S:
            return cls("s", SECOND_NS)
        if span_s <= 3 * HOUR_S:
            return cls("min", MINUTE_S * SECOND_NS)
        if span_s <= 3 * DAY_S:
            return cls("h", HOUR_S * SECOND_NS)
        return cls("days", DAY_S * SECOND_NS)

    def of(self, time_ns: int) -> float:
        return time_ns / self.ns


def duration(seconds: float | None) -> str:
    """Three digits and a unit; a dash for None."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 2 * MINUTE_S:
        return f"{seconds:.3g} s"
    if seconds < 2 * HOUR_S:
        return f"{seconds / MINUTE_S:.3g} min"
    if seconds < 2 * DAY_S:
        return f"{seconds / HOUR_S:.3g} h"
    return f"{seconds / DAY_S:.3g} days"


def size(count_bytes: float) -> str:
    """Bytes with a decimal prefix."""
    value = float(count_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError("the loop ends at GB")


def count(number: int, one: str, many: str = "") -> str:
    """`1 site`, `3 sites`, `12,000 updates`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def shortened(text: str, length_max: int) -> str:
    """The text, or its two ends."""
    if len(text) <= length_max:
        return text
    tail = (length_max - 1) // 3
    return f"{text[: length_max - 1 - tail]}…{text[len(text) - tail :]}"
