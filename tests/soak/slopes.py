"""What a process holds over time, and whether it grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MIB = 1 << 20
HOUR_S = 3600.0


@dataclass(frozen=True)
class Limit:
    """What may be gained in an hour, and how much of it is noise however short the run."""

    unit: str
    scale: float
    per_hour: float
    noise: float


LIMITS = {
    "resident": Limit("MiB", MIB, 8.0, 24.0),
    "files": Limit("", 1, 2.0, 8.0),
    "threads": Limit("", 1, 1.0, 4.0),
    "tasks": Limit("", 1, 4.0, 30.0),
    "store": Limit("MiB", MIB, 4.0, 8.0),
    "log": Limit("MiB", MIB, 24.0, 1.0),
}
"""A node is to run for a year. What it holds is bounded by what the mesh holds, which the soak
keeps the same: its true slope is 0. A leak of one object a request or a link shows as tens of MiB
or hundreds of files an hour under the soak's load, so these limits are far below any leak and above
what a least-squares fit makes of noise: an allocator's steps (24 MiB), links that come and go
(four files and ten tasks each), the journal of SQLite until its next checkpoint (4 MiB and a
copy). Logs grow by what happens: a few lines for each kill, and never with what peers send."""


def slope_per_hour(samples: Sequence[tuple[float, float]]) -> float:
    """The least-squares slope of (seconds, value), an hour; 0 for fewer than two samples."""
    count = len(samples)
    if count < 2:
        return 0.0
    mean_s = sum(at_s for at_s, _ in samples) / count
    mean = sum(value for _, value in samples) / count
    spread = sum((at_s - mean_s) ** 2 for at_s, _ in samples)
    if not spread:
        return 0.0
    return HOUR_S * sum((at_s - mean_s) * (v - mean) for at_s, v in samples) / spread


def grows(samples: Sequence[tuple[float, float]], limit: Limit) -> bool:
    """Whether the fitted line climbs faster than the limit, and by more than noise in all."""
    slope = slope_per_hour(samples) / limit.scale
    span_h = (samples[-1][0] - samples[0][0]) / HOUR_S if samples else 0.0
    return slope > limit.per_hour and slope * span_h > limit.noise
