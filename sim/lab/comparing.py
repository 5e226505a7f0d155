"""The figures of real nodes beside those of the simulator."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from sim.core.simulation import Result
from sim.lab.playing import Live

APART: Final = 2.0
"""Figures that differ by more say that the simulator's model is wrong, or this machine too busy."""

FLOORS: Final = {
    "heal_s": 0.5,
    "push_p50_s": 0.03,
    "push_p99_s": 0.1,
    "bytes_per_site": 10_000.0,
}
"""Figure -> what is not told apart below it: how exactly it is measured live (nodes are asked what
they hold; watches and their threads take turns on this machine's cores), and what a quiet node
sends anyway."""
PUSHES_MIN: Final = 300
"""Timed writes: of fewer, a 99th percentile is two or three of them, and tells nothing."""
SAME: Final = ("converged", "lost", "resurrected")
"""Figures that must be equal."""
SHOWN: Final = (*SAME, *FLOORS, "writes", "refused")


def compare(simulated: Result, live: Live) -> list[dict[str, Any]]:
    """A row for each figure: `ratio` is live by simulated, None where neither says anything;
    `differs`: they are too far apart; `unjudged`: why that is not said of this figure, or None."""
    ours, theirs = simulated.json() | _more(simulated), asdict(live)
    rows = []
    for figure in SHOWN:
        a, b = ours[figure], theirs[figure]
        ratio = _ratio(a, b, FLOORS[figure]) if figure in FLOORS else None
        unjudged = _unjudged(figure, live)
        differs = a != b if figure in SAME else False
        if figure in FLOORS and unjudged is None:
            one_missing = (a is None) != (b is None)
            differs = one_missing or (ratio is not None and not 1 / APART <= ratio <= APART)
        row = {"figure": figure, "simulated": a, "live": b, "ratio": ratio, "differs": differs}
        rows.append({**row, "unjudged": unjudged})
    return rows


def _unjudged(figure: str, live: Live) -> str | None:
    if figure == "push_p99_s" and live.pushes < PUSHES_MIN:
        return f"no verdict: {live.pushes} timed writes, fewer than {PUSHES_MIN}"
    return None


def _more(simulated: Result) -> dict[str, object]:
    return {"writes": simulated.writes, "refused": simulated.refused}


def _ratio(a: Any, b: Any, floor: float) -> float | None:
    """Of b to a, where what is below the floor counts as the floor."""
    if a is None or b is None:
        return None
    return float(round(max(b, floor) / max(a, floor), 2))
