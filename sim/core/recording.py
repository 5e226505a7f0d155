"""What a report of a run is drawn from, taken down as the run goes, in bounded memory.

A run that is recorded is, frame by frame, the run that is not: nothing here is put on the clock or
draws chance. What is kept does not grow with the length of a run: times are counted in bins of
equal ratio, series are thinned when they are full, and of the updates every so many is followed.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from crdt.header import ChainId, Epoch
from mesh.core import wire
from mesh.core.effects import Effect, Persist
from mesh.core.ops import NodeId
from mesh.core.persisting import load_header
from sim.core.clock import MS_NS, SECOND_NS, Clock
from sim.core.episodes import Episodes
from sim.core.node import Machine

BINS_PER_OCTAVE = 8
"""Delays are known to 9 %."""
BINS = 1 + 36 * BINS_PER_OCTAVE
"""From 1 ms up to two years."""
FOLLOWED_MAX = 512
"""Updates of which each has a histogram of its own: 600 B each."""
UPDATES_MAX = 1 << 20
"""Updates whose way is taken down at all, 24 B each; a longer run is recorded in its beginning."""
POINTS_MAX = 4096
"""Of a series; a page is about 1,000 pixels wide."""
SLOTS_MAX = 600
SLOT_NS = 50 * MS_NS
"""The shortest slot; slots double when a run outlasts `SLOTS_MAX` of them."""
OBSERVERS_MAX = 8
"""Nodes whose views are asked for conflicts: reading all of a thousand would cost the run."""
DIGESTS_NS = SECOND_NS // 10
CONFLICTS_NS = SECOND_NS
"""How often is looked, at most: reading conflicts costs more than comparing digests."""
LOOK_NS_PER_NODE = MS_NS

FRAME_GROUPS = {
    "updates": (wire.DELTAS,),
    "comparing": (wire.SYNC, wire.SAME, wire.HEADS),
    "catching up": (wire.WANT, wire.PART, wire.MORE, wire.DONE),
    "roster": (wire.HAVE, wire.ASK, wire.STATEMENTS),
}
"""What frames are for: the kinds of `mesh.core.wire`, put together."""
GROUPS = (*FRAME_GROUPS, "other")
_GROUP_OF = {kind: i for i, kinds in enumerate(FRAME_GROUPS.values()) for kind in kinds}
_OTHER = len(FRAME_GROUPS)

_load_header = lru_cache(maxsize=4096)(load_header)
"""A flush is stored by every node: the same bytes come again and again."""


def bin_of(delay_ns: int) -> int:
    if delay_ns <= MS_NS:
        return 0
    return min(1 + int(BINS_PER_OCTAVE * math.log2(delay_ns / MS_NS)), BINS - 1)


def bin_end_s(i: int) -> float:
    """The upper end of a bin: what falls into it took at most so long."""
    return float(2 ** (i / BINS_PER_OCTAVE)) / 1000


@dataclass(slots=True)
class Update:
    """A flush of a node on its way to the others."""

    made_ns: int
    writer: int
    shard: str
    delays: array[int]
    """by bin: how many other nodes had it so long after it was made"""
    rough: bool = False
    """something was wrong, or began or ended, while it was on its way"""


class Series:
    """Whole numbers over time, as steps: each row holds from its time to the next one's."""

    def __init__(self) -> None:
        self.at_ns: list[int] = []
        self.rows: list[tuple[int, ...]] = []

    def add(self, at_ns: int, row: tuple[int, ...]) -> bool:
        """Of a stretch in which nothing changes the ends are kept. False: full, and thinned."""
        if len(self.rows) > 1 and self.rows[-1] == row == self.rows[-2]:
            self.at_ns[-1] = at_ns
            return True
        self.at_ns.append(at_ns)
        self.rows.append(row)
        if len(self.rows) < POINTS_MAX:
            return True
        self.at_ns, self.rows = self.at_ns[::2], self.rows[::2]
        return False


class _Track:
    """The flushes of one chain in one epoch, and how far each node is."""

    __slots__ = ("heads", "made_ns", "number", "passed", "weather")

    def __init__(self, nodes: int) -> None:
        self.heads: array[int] = array("Q")
        self.made_ns: array[int] = array("Q")
        self.weather: array[int] = array("I")
        self.number: array[int] = array("I")
        """of the update, counted over the run"""
        self.passed: array[int] = array("I", bytes(4 * nodes))
        """by node: how many of the flushes it has"""


class Travels:
    """How long updates take to the other nodes, of all and of each that is followed."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.calm: array[int] = array("Q", bytes(8 * BINS))
        """by bin: arrivals of updates while nothing was wrong"""
        self.rough: array[int] = array("Q", bytes(8 * BINS))
        """by bin: the other arrivals"""
        self.followed: dict[int, Update] = {}
        self.made = 0
        self.made_in: dict[str, int] = {}
        """by shard"""
        self.stride = 1
        """one update of so many is followed"""
        self.holders: dict[str, int] = {}
        """at the end: how many nodes hold a shard"""
        self._machines = machines
        self._tracks: dict[ChainId, dict[Epoch, _Track]] = {}

    def drained(self, node: int, owner: NodeId, effect: Persist, now_ns: int, weather: int) -> None:
        header = _load_header(effect.header)
        tracks = self._tracks.setdefault(effect.chain, {})
        track = tracks.get(header.epoch)
        if track is None:
            track = tracks[header.epoch] = _Track(len(self._machines))
        if effect.chain.node == owner:
            if self.made < UPDATES_MAX and (not track.heads or header.hi > track.heads[-1]):
                self._make(track, node, effect.chain.shard, header.hi, now_ns, weather)
        else:
            self._advance(track, node, header.hi, now_ns, weather)
        if len(tracks) > 1 and header.covers:
            for cover in header.covers:
                older = tracks.get(cover.epoch)
                if older is not None and older.passed[node] < len(older.heads):
                    self._advance(older, node, cover.head, now_ns, weather)

    def _make(
        self, track: _Track, node: int, shard: str, head: int, now_ns: int, weather: int
    ) -> None:
        track.heads.append(head)
        track.made_ns.append(now_ns)
        track.weather.append(weather)
        track.number.append(self.made)
        track.passed[node] = len(track.heads)
        if self.made % self.stride == 0:
            self.followed[self.made] = Update(now_ns, node, shard, array("I", bytes(4 * BINS)))
        self.made += 1
        self.made_in[shard] = self.made_in.get(shard, 0) + 1
        if len(self.followed) > FOLLOWED_MAX:
            self.stride *= 2
            self.followed = {n: u for n, u in self.followed.items() if n % self.stride == 0}

    def _advance(self, track: _Track, node: int, head: int, now_ns: int, weather: int) -> None:
        i = track.passed[node]
        heads = track.heads
        while i < len(heads) and heads[i] <= head:
            at = bin_of(now_ns - track.made_ns[i])
            calm = track.weather[i] == weather
            (self.calm if calm else self.rough)[at] += 1
            update = self.followed.get(track.number[i])
            if update is not None:
                update.delays[at] += 1
                update.rough = update.rough or not calm
            i += 1
        track.passed[node] = i

    def end(self) -> None:
        for machine in self._machines:
            if machine.process is not None:
                for shard in machine.process.replica.lattice.shards():
                    self.holders[shard] = self.holders.get(shard, 0) + 1


class Traffic:
    """Bytes sent, by node and over time, by what the frames are for."""

    def __init__(self, nodes: int) -> None:
        self.by_node = [array("Q", bytes(8 * nodes)) for _ in GROUPS]
        """group -> bytes by node"""
        self.frames = [0] * len(GROUPS)
        self.slot_ns = SLOT_NS
        self.by_slot = [array("Q", bytes(8 * SLOTS_MAX)) for _ in GROUPS]
        """group -> bytes in each slot of `slot_ns` from the start"""

    def sent(self, node: int, frame: bytes, now_ns: int) -> None:
        group = _GROUP_OF.get(frame[2], _OTHER) if len(frame) > 2 else _OTHER
        self.by_node[group][node] += len(frame)
        self.frames[group] += 1
        slot = now_ns // self.slot_ns
        while slot >= SLOTS_MAX:
            self._widen()
            slot = now_ns // self.slot_ns
        self.by_slot[group][slot] += len(frame)

    def _widen(self) -> None:
        self.slot_ns *= 2
        for series in self.by_slot:
            for i in range(SLOTS_MAX // 2):
                series[i] = series[2 * i] + series[2 * i + 1]
            for i in range(SLOTS_MAX // 2, SLOTS_MAX):
                series[i] = 0


class Agreement:
    """How many nodes run, and how many of them agree. Looked at every so often."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.series = Series()
        """(nodes that run, those of them that hold what most hold of every shard of theirs)"""
        self.next_ns = 0
        self._every_ns = max(DIGESTS_NS, LOOK_NS_PER_NODE * len(machines))
        self._machines = machines
        self._digests: list[dict[str, bytes]] = [{} for _ in machines]
        self._changed: dict[int, None] = {}

    def changed(self, nodes: Iterable[int]) -> None:
        """What these nodes hold may be something else since the last look."""
        self._changed.update(dict.fromkeys(nodes))

    def look(self, now_ns: int) -> None:
        self.next_ns = now_ns + self._every_ns
        for node in self._changed:
            process = self._machines[node].process
            if process is not None:
                lattice = process.replica.lattice
                self._digests[node] = {shard: lattice.digest(shard) for shard in lattice.shards()}
        self._changed.clear()
        if not self.series.add(now_ns, self._counted()):
            self._every_ns *= 2

    def _counted(self) -> tuple[int, int]:
        running = [
            digests
            for machine, digests in zip(self._machines, self._digests, strict=True)
            if machine.process is not None
        ]
        counts: dict[str, dict[bytes, int]] = {}
        for digests in running:
            for shard, digest in digests.items():
                of_shard = counts.setdefault(shard, {})
                of_shard[digest] = of_shard.get(digest, 0) + 1
        # `max` takes the first of equals: nodes are gone through in order.
        common = {
            shard: max(of_shard, key=of_shard.__getitem__) for shard, of_shard in counts.items()
        }
        agreeing = sum(
            all(common[shard] == digest for shard, digest in digests.items()) for digests in running
        )
        return len(running), agreeing


class Conflicts:
    """Conflicts in the views of some of the nodes. Looked at every so often."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.series = Series()
        """(conflicts that an observer sees, those that came up so far, those that went)"""
        step = max(1, -(-len(machines) // OBSERVERS_MAX))
        self.observers = frozenset(range(0, len(machines), step))
        self.next_ns = 0
        self._every_ns = max(CONFLICTS_NS, LOOK_NS_PER_NODE * len(machines))
        self._machines = machines
        self._changed: dict[int, None] = {}
        self._seen: dict[int, frozenset[str]] = {}
        self._open: frozenset[str] = frozenset()
        self._opened = self._resolved = 0

    def changed(self, node: int) -> None:
        if node in self.observers:
            self._changed[node] = None

    def look(self, now_ns: int) -> None:
        self.next_ns = now_ns + self._every_ns
        for node in self._changed:
            process = self._machines[node].process
            if process is not None:
                self._seen[node] = frozenset(
                    f"{conflict.kind} {conflict.key}" for conflict in process.view.conflicts()
                )
        self._changed.clear()
        now_open: frozenset[str] = frozenset().union(*self._seen.values())
        self._opened += len(now_open - self._open)
        self._resolved += len(self._open - now_open)
        self._open = now_open
        if not self.series.add(now_ns, (len(now_open), self._opened, self._resolved)):
            self._every_ns *= 2


class Recording:
    """Everything a report needs of a run beside its result. Nodes are given by index."""

    clock: Clock
    episodes: Episodes
    travels: Travels
    traffic: Traffic
    agreement: Agreement
    conflicts: Conflicts

    def __init__(self) -> None:
        self.weather = 0
        """counts changes of what is wrong"""
        self.ended_ns = 0
        self.names: tuple[str, ...] = ()
        self.sites: tuple[str, ...] = ()
        """by node"""

    def begin(self, clock: Clock, machines: Sequence[Machine], episodes: Episodes) -> None:
        """The run is set up and about to start."""
        self.clock = clock
        self.names = tuple(machine.identity.name for machine in machines)
        self.sites = tuple(machine.identity.site for machine in machines)
        self.episodes = episodes
        self.travels = Travels(machines)
        self.traffic = Traffic(len(machines))
        self.agreement = Agreement(machines)
        self.conflicts = Conflicts(machines)

    def weather_changed(self) -> None:
        """A fault began or ended; a node that starts holds what its disk has."""
        self.weather += 1
        self.agreement.changed(range(len(self.names)))
        self.agreement.look(self.clock.now_ns)

    def drained(self, node: int, owner: NodeId, effects: Sequence[Effect]) -> None:
        now_ns = self.clock.now_ns
        stored = False
        for effect in effects:
            if isinstance(effect, Persist):
                stored = True
                self.travels.drained(node, owner, effect, now_ns, self.weather)
        if stored:
            self.agreement.changed((node,))
            self.conflicts.changed(node)
        if now_ns >= self.agreement.next_ns:
            self.agreement.look(now_ns)
        if now_ns >= self.conflicts.next_ns:
            self.conflicts.look(now_ns)

    def frame_sent(self, sender: int, frame: bytes) -> None:
        self.traffic.sent(sender, frame, self.clock.now_ns)

    def end(self) -> None:
        """The run is over."""
        self.ended_ns = self.clock.now_ns
        self.agreement.changed(range(len(self.names)))
        self.agreement.look(self.ended_ns)
        self.conflicts.look(self.ended_ns)
        self.travels.end()
