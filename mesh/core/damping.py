"""Endpoints that move too often are not moved from here for a while.

Two sites that both hold an endpoint for theirs (an address given out twice, a controller gone
wrong) would move it to and fro for ever, each above the other, and every move is written to every
node. As in RFC 7432 §15.1 (duplicate MAC detection, N = 5 moves within M = 180 s), more moves than
that are taken as a mistake: this node makes none itself until they have become fewer, and says so.
What others write counts as ever: this is about what a node writes, not about what it reads.
"""

from __future__ import annotations

from collections.abc import KeysView
from dataclasses import dataclass
from typing import Final, TypeAlias

from mesh.core import keys
from mesh.core.clock import ns_of_hlc
from mesh.core.view import Endpoint

MOVES_MAX: Final = 5
WINDOW_NS: Final = 180_000_000_000
"""RFC 7432 §15.1: its defaults for N and M."""
TRACKED_MAX: Final = 65_536
"""Addresses whose moves are counted: peers cause the moves, so there is a bound. Beyond it the one
that has not moved for longest is forgotten."""

Place: TypeAlias = tuple[str, str]
"""(VPC id, IP text)."""


@dataclass(frozen=True, slots=True)
class HeldMove:
    """An endpoint that this node does not move before `until_ns` (wall clock)."""

    vpc: str
    ip: str
    until_ns: int


@dataclass(frozen=True, slots=True)
class _Track:
    mobility: int
    """Of the best claim when it was last looked at."""
    moves_ns: tuple[int, ...]
    """When it was seen to rise: the last `MOVES_MAX + 1` times, in order."""


class MoveDamper:
    """Counts the moves of endpoints as this node sees them: each rise of the best claim's mobility,
    however great, is one. A peer's number cannot hold an address, only what it does can."""

    def __init__(self) -> None:
        self._tracks: dict[Place, _Track] = {}
        """In the order of their last moves."""
        self._keys: dict[str, dict[bytes, None]] = {}
        """The same by VPC, as keys of claims."""
        self._often: set[Place] = set()
        """Those with `MOVES_MAX + 1` moves noted."""

    def note(self, place: Place, best: Endpoint | None, now_ns: int) -> None:
        """The best claim for the address, as it is now. Noting it twice counts it once."""
        self._forget_lapsed(now_ns)
        track, mobility = self._tracks.get(place), 0 if best is None else best.mobility
        if track is None:
            # Not looked at lately. A claim made long ago is no news, whatever its mobility is.
            made_ns = now_ns if best is None else ns_of_hlc(best.hlc)
            if mobility and abs(now_ns - made_ns) < WINDOW_NS:
                self._noted(place, _Track(mobility, (now_ns,)))
        elif mobility > track.mobility:
            del self._tracks[place]
            self._noted(place, _Track(mobility, (*track.moves_ns, now_ns)[-MOVES_MAX - 1 :]))
        else:
            self._tracks[place] = _Track(mobility, track.moves_ns)

    def tracked(self, vpc: str) -> KeysView[bytes]:
        """The keys of the VPC's claims whose moves are counted now."""
        return self._keys.get(vpc, {}).keys()

    def held(self, now_ns: int) -> list[HeldMove]:
        """What is not moved from here now, in order."""
        found = []
        for place in sorted(self._often):
            until_ns = self.held_until_ns(place, now_ns)
            if until_ns is not None:
                found.append(HeldMove(*place, until_ns))
        return found

    def held_until_ns(self, place: Place, now_ns: int) -> int | None:
        """Until when the endpoint is not moved from here; None: it may be."""
        if place not in self._often:
            return None
        # A clock that was set back must not hold an endpoint for longer than it ever would.
        first_ns = min(self._tracks[place].moves_ns[0], now_ns)
        until_ns = first_ns + WINDOW_NS
        return until_ns if until_ns > now_ns else None

    def _noted(self, place: Place, track: _Track) -> None:
        if len(self._tracks) >= TRACKED_MAX:
            self._forget(next(iter(self._tracks)))
        self._tracks[place] = track
        self._keys.setdefault(place[0], {})[_key(place)] = None
        if len(track.moves_ns) > MOVES_MAX:
            self._often.add(place)

    def _forget_lapsed(self, now_ns: int) -> None:
        while self._tracks:
            place, track = next(iter(self._tracks.items()))
            if track.moves_ns[-1] + WINDOW_NS > now_ns:
                return
            self._forget(place)

    def _forget(self, place: Place) -> None:
        del self._tracks[place]
        self._often.discard(place)
        known = self._keys[place[0]]
        del known[_key(place)]
        if not known:
            del self._keys[place[0]]


def _key(place: Place) -> bytes:
    return keys.ENDPOINT + keys.addr_of(place[1])
