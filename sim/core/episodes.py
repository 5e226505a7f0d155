"""What went wrong in a run, from when to when: the log behind the plots of a report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.core.clock import Clock

EPISODES_MAX = 20_000
"""Beyond what can be told apart on a page; the rest is only counted."""
NAMES_SHOWN_MAX = 4


@dataclass(slots=True)
class Episode:
    """Something that was wrong for a while, or happened in a moment (both times equal)."""

    kind: str
    """such as "cut" or "down": what is drawn alike"""
    what: str
    """to whom: the sides of a cut, or a node's name; the same words are drawn in one row"""
    began_ns: int
    ended_ns: int | None = None
    note: str = ""


class Episodes:
    """Those of a run, in the order in which they began."""

    def __init__(self, clock: Clock) -> None:
        self.logged: list[Episode] = []
        self.left_out = 0
        self._clock = clock

    def began(self, kind: str, what: str, note: str = "") -> Episode:
        """Something is wrong from now on, until `ended`."""
        episode = Episode(kind, what, self._clock.now_ns, note=note)
        if len(self.logged) < EPISODES_MAX:
            self.logged.append(episode)
        else:
            self.left_out += 1
        return episode

    def ended(self, episode: Episode) -> None:
        episode.ended_ns = self._clock.now_ns

    def happened(self, kind: str, what: str, note: str = "") -> None:
        """Something that takes no time."""
        self.ended(self.began(kind, what, note))


def sides_text(sides: Sequence[Sequence[str]]) -> str:
    """The sides of a cut in a line; of a long side its first names and how many there are, and of
    the longest only how many, since they are the rest."""
    named = [list(dict.fromkeys(side)) for side in sides if side]
    longest = max(named, key=len, default=[])
    return " | ".join(_names_text(names, names is longest) for names in named)


def _names_text(names: Sequence[str], rest: bool) -> str:
    if len(names) <= NAMES_SHOWN_MAX:
        return ", ".join(names)
    if rest:
        return f"{len(names)} others"
    return f"{', '.join(names[: NAMES_SHOWN_MAX - 1])}, … ({len(names)})"
