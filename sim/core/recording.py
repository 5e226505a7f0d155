"""What a report of a run is drawn from, taken down as the run goes, in bounded memory.

A run that is recorded is, frame by frame, the run that is not: nothing here is put on the clock or
draws chance. What is kept does not grow with the length of a run: times are counted in bins of
equal ratio, series are thinned when they are full, and of the updates every so many is followed.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from crdt.header import ChainId, Epoch
from mesh.core import wire
from mesh.core.effects import Effect, Persist
from mesh.core.ops import NodeId
from sim.core.checkers import load_header
from sim.core.clock import MS_NS, SECOND_NS, Clock
from sim.core.episodes import Episodes
from sim.core.node import Machine
from sim.core.upkeep import FRAME_BYTES

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
CONFLICTS_NS = 2 * SECOND_NS
"""How often is looked, at most: reading conflicts costs more than comparing digests."""
LOOK_NS_PER_NODE = MS_NS

FRAME_GROUPS = {
    "updates": (wire.DELTAS,),
    "comparing": (
        wire.SYNC,
        wire.PROBE,
        wire.RECENT,
        wire.SAME,
        wire.TOLD,
        wire.HEADS,
        wire.REST,
        wire.WAKE,
    ),
    "catching up": (wire.WANT, wire.ANSWER, wire.PART, wire.MORE, wire.DONE),
    "roster": (wire.HAVE, wire.ASK, wire.STATEMENTS),
}
"""What frames are for: the kinds of `mesh.core.wire`, put together."""
GROUPS = (*FRAME_GROUPS, "other", "links")
"""And what is sent to make links and to keep them."""
_GROUP_OF = {kind: i for i, kinds in enumerate(FRAME_GROUPS.values()) for kind in kinds}
_OTHER = len(FRAME_GROUPS)
_LINKS = GROUPS.index("links")
_COMPARING = GROUPS.index("comparing")


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

    def __init__(self, every_ns: int = 1) -> None:
        """`every_ns`: the shortest time between two rows; of rows nearer by, the last counts."""
        self.at_ns: list[int] = []
        self.rows: list[tuple[int, ...]] = []
        self.every_ns = every_ns

    def add(self, at_ns: int, row: tuple[int, ...]) -> None:
        """The numbers are these from `at_ns` on, which is no earlier than the last time."""
        if self.rows:
            if row == self.rows[-1]:
                return
            if at_ns < self.at_ns[-1] + self.every_ns:
                self.rows[-1] = row
                return
        self.at_ns.append(at_ns)
        self.rows.append(row)
        if len(self.rows) >= POINTS_MAX:
            # The first and the last stay: `POINTS_MAX` is even.
            self.at_ns = [*self.at_ns[:1], *self.at_ns[1::2]]
            self.rows = [*self.rows[:1], *self.rows[1::2]]
            self.every_ns *= 2


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
        self._holders: dict[str, list[int]] = {}
        """at the end: the members that hold a shard"""
        self._joined_ns: dict[int, int] = {}
        """of nodes that came later: what was made before is no news to them"""
        self._made_before: dict[int, dict[str, int]] = {}
        """of nodes that came later: how many updates had been made, by shard"""
        self._machines = machines
        self._tracks: dict[ChainId, dict[Epoch, _Track]] = {}

    def drained(self, node: int, owner: NodeId, effect: Persist, now_ns: int, weather: int) -> None:
        header = load_header(effect.header)
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
        joined_ns = self._joined_ns.get(node, 0)
        while i < len(heads) and heads[i] <= head:
            if track.made_ns[i] < joined_ns:
                i += 1
                continue
            at = bin_of(now_ns - track.made_ns[i])
            calm = track.weather[i] == weather
            (self.calm if calm else self.rough)[at] += 1
            update = self.followed.get(track.number[i])
            if update is not None:
                update.delays[at] += 1
                update.rough = update.rough or not calm
            i += 1
        track.passed[node] = i

    def started(self, node: int, now_ns: int) -> None:
        """A node runs; one that starts for the first time while others write has joined."""
        if self.made and self._machines[node].starts == 1:
            self._joined_ns[node] = now_ns
            self._made_before[node] = dict(self.made_in)

    def end(self) -> None:
        for node, machine in enumerate(self._machines):
            if machine.process is not None and machine.state == "member":
                for shard in machine.process.replica.lattice.shards():
                    self._holders.setdefault(shard, []).append(node)

    def holders(self, update: Update) -> int:
        """How many nodes an update is for, its writer among them; known at the end.

        Those that hold the shard then and had joined before; nodes that went may have had it, too.
        """
        held = self._holders.get(update.shard, ())
        joined = sum(self._joined_ns.get(node, 0) <= update.made_ns for node in held)
        return max(joined, 1 + sum(update.delays))

    def expected(self) -> int:
        """How many arrivals there are if all updates come to all, the writers' own included."""
        total = 0
        for shard, made in self.made_in.items():
            for node in self._holders.get(shard, ()):
                total += made - self._made_before.get(node, {}).get(shard, 0)
        return max(total, self.made + sum(self.calm) + sum(self.rough))


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
        kind: int | None = frame[2] if len(frame) > 2 else None
        if kind == wire.ZIPPED:
            kind = wire.kind_of(frame)
        group = _OTHER if kind is None else _GROUP_OF.get(kind, _OTHER)
        size_bytes = len(frame) + FRAME_BYTES
        self.by_node[group][node] += size_bytes
        self.frames[group] += 1
        slot = now_ns // self.slot_ns
        while slot >= SLOTS_MAX:
            self._widen()
            slot = now_ns // self.slot_ns
        self.by_slot[group][slot] += size_bytes

    def idled(self, node: int, size_bytes: int, since_ns: int, now_ns: int) -> None:
        """What a node sent, evenly, while the time was leapt over."""
        self._spread(_COMPARING, node, size_bytes, since_ns, now_ns)

    def link_kept(self, node: int, size_bytes: int, since_ns: int, now_ns: int) -> None:
        """What a node sent, evenly, to make links and to keep them."""
        self._spread(_LINKS, node, size_bytes, since_ns, now_ns)

    def _spread(self, group: int, node: int, size_bytes: int, since_ns: int, now_ns: int) -> None:
        self.by_node[group][node] += size_bytes
        while now_ns // self.slot_ns >= SLOTS_MAX:
            self._widen()
        first, last = since_ns // self.slot_ns, now_ns // self.slot_ns
        each, left = divmod(size_bytes, last - first + 1)
        for slot in range(first, last + 1):
            self.by_slot[group][slot] += each
        self.by_slot[group][first] += left

    def _widen(self) -> None:
        self.slot_ns *= 2
        for series in self.by_slot:
            for i in range(SLOTS_MAX // 2):
                series[i] = series[2 * i] + series[2 * i + 1]
            for i in range(SLOTS_MAX // 2, SLOTS_MAX):
                series[i] = 0


class Agreement:
    """How many nodes run, and how many of them agree; kept up with every change of a node."""

    def __init__(self, machines: Sequence[Machine]) -> None:
        self.series = Series(max(DIGESTS_NS, LOOK_NS_PER_NODE * len(machines)))
        """(members that run, those of them that hold what most hold of every shard of theirs)"""
        self._machines = machines
        self._held: dict[str, dict[int, bytes]] = {}
        """shard -> node -> its digest"""
        self._numbers: dict[str, dict[bytes, int]] = {}
        """shard -> digest -> how many nodes have it"""
        self._common: dict[str, bytes] = {}
        """shard -> the digest that most have"""
        self._astray: dict[int, int] = {}
        """node -> in how many shards it holds something else"""
        self._running: set[int] = set()

    def changed(self, node: int, shards: Iterable[str], now_ns: int) -> None:
        """A running node's chains of these shards are others now."""
        process = self._machines[node].process
        if process is not None and node in self._running:
            for shard in shards:
                self._set(node, shard, process.replica.lattice.digest(shard))
            self._add(now_ns)

    def started(self, node: int, now_ns: int) -> None:
        """A node runs, with what its disk has."""
        machine = self._machines[node]
        if machine.process is None or machine.state != "member":
            return
        self._running.add(node)
        lattice = machine.process.replica.lattice
        for shard in lattice.shards():
            self._set(node, shard, lattice.digest(shard))
        self._add(now_ns)

    def stopped(self, node: int, now_ns: int) -> None:
        if node in self._running:
            self._running.remove(node)
            for shard in self._held:
                self._set(node, shard, None)
            self._add(now_ns)

    def weather_changed(self, now_ns: int) -> None:
        """Somebody may be no member any more: nothing is promised of what it holds."""
        for node in sorted(self._running):
            if self._machines[node].state != "member":
                self.stopped(node, now_ns)

    def holding(self, node: int) -> tuple[tuple[str, bytes], ...]:
        """The digests of what a node holds; where they are equal, so are views."""
        return tuple((shard, held[node]) for shard, held in self._held.items() if node in held)

    def _add(self, now_ns: int) -> None:
        running = len(self._running)
        self.series.add(now_ns, (running, running - len(self._astray)))

    def _set(self, node: int, shard: str, digest: bytes | None) -> None:
        held = self._held.setdefault(shard, {})
        numbers = self._numbers.setdefault(shard, {})
        common = self._common.get(shard)
        former = held.pop(node, None)
        if former is not None:
            numbers[former] -= 1
            if not numbers[former]:
                del numbers[former]
            if former != common:
                self._stray(node, -1)
        if digest is not None:
            held[node] = digest
            numbers[digest] = numbers.get(digest, 0) + 1
            if digest != common:
                self._stray(node, 1)
        # Only what has just grown can have become the most common; of a node that stops, any.
        grown = digest or max(numbers, key=numbers.__getitem__, default=None)
        if grown is not None and numbers[grown] > numbers.get(common or b"", 0):
            self._become_common(shard, grown)

    def _become_common(self, shard: str, digest: bytes) -> None:
        """Half of the way of an update: what was astray is in agreement, and the other way."""
        before = self._common.get(shard)
        self._common[shard] = digest
        for node, held in self._held[shard].items():
            if held == digest:
                self._stray(node, -1)
            elif held == before:
                self._stray(node, 1)

    def _stray(self, node: int, more: int) -> None:
        shards = self._astray.get(node, 0) + more
        if shards:
            self._astray[node] = shards
        else:
            self._astray.pop(node, None)


class Conflicts:
    """Conflicts in the views of some of the nodes. Looked at every so often."""

    def __init__(self, machines: Sequence[Machine], agreement: Agreement) -> None:
        self.series = Series(max(CONFLICTS_NS, LOOK_NS_PER_NODE * len(machines)))
        """(conflicts that an observer sees, those that came up so far, those that went)"""
        step = max(1, -(-len(machines) // OBSERVERS_MAX))
        self.observers = frozenset(range(0, len(machines), step))
        self.next_ns = 0
        self._machines = machines
        self._agreement = agreement
        self._changed: dict[int, None] = {}
        self._seen: dict[int, frozenset[str]] = {}
        self._open: frozenset[str] = frozenset()
        self._opened = self._resolved = 0

    def changed(self, node: int) -> None:
        if node in self.observers:
            self._changed[node] = None

    def look(self, now_ns: int) -> None:
        if not self._changed and self.series.rows:
            return
        self.next_ns = now_ns + self.series.every_ns
        read: dict[tuple[tuple[str, bytes], ...], frozenset[str]] = {}
        for node in self._changed:
            process = self._machines[node].process
            if process is None:
                continue
            holding = self._agreement.holding(node)
            if holding not in read:
                read[holding] = frozenset(
                    f"{conflict.kind} {conflict.key}" for conflict in process.view.conflicts()
                )
            self._seen[node] = read[holding]
        self._changed.clear()
        for node in sorted(self._seen):
            if self._machines[node].state != "member":
                del self._seen[node]
        now_open: frozenset[str] = frozenset().union(*self._seen.values())
        self._opened += len(now_open - self._open)
        self._resolved += len(self._open - now_open)
        self._open = now_open
        self.series.add(now_ns, (len(now_open), self._opened, self._resolved))


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
        self.vpcs: dict[str, str] = {}
        """shard -> the name of its VPC, of those there are at the end"""
        self._machines: Sequence[Machine] = ()

    def begin(self, clock: Clock, machines: Sequence[Machine], episodes: Episodes) -> None:
        """The run is set up and about to start."""
        self.clock = clock
        self._machines = machines
        self.names = tuple(machine.identity.name for machine in machines)
        self.sites = tuple(machine.identity.site for machine in machines)
        self.episodes = episodes
        self.travels = Travels(machines)
        self.traffic = Traffic(len(machines))
        self.agreement = Agreement(machines)
        self.conflicts = Conflicts(machines, self.agreement)

    def weather_changed(self) -> None:
        """A fault began or ended."""
        self.weather += 1
        self.agreement.weather_changed(self.clock.now_ns)

    def started(self, node: int) -> None:
        self.travels.started(node, self.clock.now_ns)
        self.agreement.started(node, self.clock.now_ns)
        self.conflicts.changed(node)

    def stopped(self, node: int) -> None:
        self.agreement.stopped(node, self.clock.now_ns)

    def drained(self, node: int, owner: NodeId, effects: Sequence[Effect]) -> None:
        now_ns = self.clock.now_ns
        shards: dict[str, None] = {}
        for effect in effects:
            if isinstance(effect, Persist):
                shards[effect.chain.shard] = None
                self.travels.drained(node, owner, effect, now_ns, self.weather)
        if shards:
            self.agreement.changed(node, shards, now_ns)
            self.conflicts.changed(node)
        if now_ns >= self.conflicts.next_ns:
            self.conflicts.look(now_ns)

    def settled(self) -> None:
        """Nothing happens for a while: what was not looked at yet is as it stays."""
        self.conflicts.look(self.clock.now_ns)

    def frame_sent(self, sender: int, frame: bytes) -> None:
        self.traffic.sent(sender, frame, self.clock.now_ns)

    def link_kept(self, node: int, size_bytes: int, since_ns: int) -> None:
        self.traffic.link_kept(node, size_bytes, since_ns, self.clock.now_ns)

    def idled(self, sent: Mapping[int, int], since_ns: int) -> None:
        """The time was leapt over since then; `sent`: bytes by node."""
        for node, size_bytes in sent.items():
            self.traffic.idled(node, size_bytes, since_ns, self.clock.now_ns)

    def end(self) -> None:
        """The run is over."""
        self.ended_ns = self.clock.now_ns
        self.conflicts.look(self.ended_ns)
        self.travels.end()
        seeing = (m.process for m in self._machines if m.process is not None and m.process.sees)
        for process in seeing:
            self.vpcs |= {id: vpc.name for id, vpc in process.view.vpcs.items()}
