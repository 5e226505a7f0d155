"""What links cost beside the frames that they carry: making them, heartbeats, and asking others for
a way to whom is not reached. In bytes that TCP carries, as `weft lab run` counts them live.

It is counted from times, since an event for each heartbeat would be most of a run: a link that is
kept for days costs one addition when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from typing import TypeAlias

from sim.core.clock import MS_NS, SECOND_NS, Clock

Pair: TypeAlias = tuple[int, int]

FRAME_BYTES = 34
"""Around a frame: its length, the header of Yamux, length and tag of Noise."""
ESTABLISH_BYTES = 1120
"""What either end sends until both have a link: measured, as the figures below."""
BEAT_NS = 800 * MS_NS
BEAT_BYTES = 75
"""A heartbeat with all around it: 69, and 88 when it tells a new digest."""
DETOUR_NS = 10 * SECOND_NS
DETOURS_MAX = 4
DETOUR_BYTES = 400
"""So often a node asks so many of its peers for a way to a member that it does not reach, which
costs the one who asks and the one who answers so much."""


class Upkeep:
    """Of all links of a run."""

    def __init__(
        self,
        clock: Clock,
        links: Mapping[int, Set[int]],
        sent: Callable[[int, int, int], None],
    ) -> None:
        """`links`: of each node, with whom it has one; `sent(node, size_bytes, since_ns)` is told
        what a node has sent since then."""
        self._clock = clock
        self._links = links
        self._sent = sent
        self._beats_ns: dict[Pair, int] = {}
        """(node, peer) of a link -> until when the node's heartbeats are counted"""
        self._detours_ns: dict[Pair, int] = {}
        """pair that does not reach each other -> until when its questions are counted"""

    def made(self, node: int, peer: int, dials: int) -> None:
        """The node has a link to the peer, after so many connections: of dials that cross all but
        one are found to be too many when they stand."""
        self._beats_ns.setdefault((node, peer), self._clock.now_ns)
        self._sent(node, dials * ESTABLISH_BYTES, self._clock.now_ns)

    def ended(self, node: int, peer: int) -> None:
        """The node gives it up."""
        self._count_beats(node, peer)
        del self._beats_ns[node, peer]

    def lost(self, pair: Pair) -> None:
        """The two do not reach each other."""
        self._detours_ns[pair] = self._clock.now_ns

    def found(self, pair: Pair) -> None:
        """They may again; or one of them ends."""
        if pair in self._detours_ns:
            self._count_detours(pair)
            del self._detours_ns[pair]

    def count(self) -> None:
        """Tell all that was sent until now."""
        for node, peer in self._beats_ns:
            self._count_beats(node, peer)
        for pair in self._detours_ns:
            self._count_detours(pair)

    def _count_beats(self, node: int, peer: int) -> None:
        since_ns = self._beats_ns[node, peer]
        beats = (self._clock.now_ns - since_ns) // BEAT_NS
        if beats:
            self._beats_ns[node, peer] = since_ns + beats * BEAT_NS
            self._sent(node, beats * BEAT_BYTES, since_ns)

    def _count_detours(self, pair: Pair) -> None:
        since_ns = self._detours_ns[pair]
        times = (self._clock.now_ns - since_ns) // DETOUR_NS
        if not times:
            return
        self._detours_ns[pair] = since_ns + times * DETOUR_NS
        for node in pair:
            for peer in sorted(self._links.get(node, ()))[:DETOURS_MAX]:
                self._sent(node, times * DETOUR_BYTES, since_ns)
                self._sent(peer, times * DETOUR_BYTES, since_ns)
