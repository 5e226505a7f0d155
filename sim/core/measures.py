"""What a run measures: how soon writes are everywhere, and how soon a healed mesh agrees."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Protocol

from crdt.header import ChainId, Epoch, Header
from crdt.lattice import Lattice
from mesh.core.effects import Effect, Persist
from mesh.core.ops import NodeId
from sim.core.checkers import load_header
from sim.core.clock import SECOND_NS, Clock, seconds

LOOK_NS: Final = SECOND_NS // 20
"""How often a run looks at the state of all nodes: the resolution of what is found so."""


class PushTimes:
    """How long writes take to reach other nodes while nothing is wrong."""

    def __init__(self, clock: Clock) -> None:
        self.taken_ns: array[int] = array("q")
        self.updates = 0
        """flushes that nodes have made"""
        self.weather = 0
        """counts changes of what is wrong: a time across one is not taken"""
        self._clock = clock
        self._flushes: dict[tuple[ChainId, Epoch], list[tuple[int, int, int]]] = {}
        self._seen: dict[tuple[int, ChainId, Epoch], int] = {}

    def drained(self, node: int, owner: NodeId, effects: Sequence[Effect]) -> None:
        now_ns = self._clock.now_ns
        for effect in effects:
            if not isinstance(effect, Persist):
                continue
            hi = load_header(effect.header).hi
            flushes = self._flushes.get((effect.chain, effect.epoch))
            if flushes is None:
                flushes = self._flushes[effect.chain, effect.epoch] = []
            if effect.chain.node == owner:
                flushes.append((hi, now_ns, self.weather))
                self.updates += 1
                continue
            place = (node, effect.chain, effect.epoch)
            first = self._seen.get(place, 0)
            while first < len(flushes) and flushes[first][0] <= hi:
                _, wrote_ns, weather = flushes[first]
                if weather == self.weather:
                    self.taken_ns.append(now_ns - wrote_ns)
                first += 1
            self._seen[place] = first

    def reached(self, holders: Iterable[Holder]) -> float | None:
        """The share of updates that are where they belong, of all updates and nodes: 1 when every
        update is everywhere."""
        wanted = found = 0
        for holder in holders:
            for (id, epoch), flushes in self._flushes.items():
                if not flushes or not holder.keeps(id.shard):
                    continue
                wanted += len(flushes)
                headers = [chain.header for chain in holder.lattice.branches(id) if chain.header]
                if any(h.epoch == epoch and h.hi >= flushes[-1][0] for h in headers):
                    found += len(flushes)
                else:
                    found += sum(_holds(headers, epoch, hi) for hi, _, _ in flushes)
        return found / wanted if wanted else None

    def quantile_s(self, part: float) -> float | None:
        if not self.taken_ns:
            return None
        ordered = sorted(self.taken_ns)
        return round(seconds(ordered[min(int(len(ordered) * part), len(ordered) - 1)]), 4)


class Holder(Protocol):
    """A node as far as it is looked at."""

    @property
    def lattice(self) -> Lattice: ...

    def keeps(self, shard: str) -> bool: ...


class HealTimes:
    """How long it takes, once nothing is wrong any more, until all have what any had then.

    Users go on writing meanwhile, so equal digests would be seen late or never: what is waited for
    is what was there at that moment.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._longest_ns: int | None = None
        self._watch = 0

    def weather_changed(self, holders: Sequence[Holder] | None) -> None:
        """Something went wrong or well. `holders`: all nodes, when nothing is wrong now."""
        self._watch += 1
        if holders is None:
            return
        wanted: dict[tuple[ChainId, Epoch], int] = {}
        for id in _differing([holder.lattice for holder in holders]):
            for holder in holders:
                for chain in holder.lattice.branches(id):
                    if chain.header is not None:
                        place = (id, chain.header.epoch)
                        wanted[place] = max(wanted.get(place, 0), chain.header.hi)
        self._look(self._watch, self._clock.now_ns, holders, wanted)

    def _look(
        self,
        watch: int,
        since_ns: int,
        holders: Sequence[Holder],
        wanted: dict[tuple[ChainId, Epoch], int],
    ) -> None:
        """`holders`: those that may lack something."""
        if watch != self._watch:
            return  # something went wrong again
        lacking = [holder for holder in holders if not _includes(holder, wanted)]
        if not lacking:
            self._longest_ns = max(self._longest_ns or 0, self._clock.now_ns - since_ns)
            return
        self._clock.after(LOOK_NS, lambda: self._look(watch, since_ns, lacking, wanted))

    def longest_s(self) -> float | None:
        """None if no heal came to its end."""
        return None if self._longest_ns is None else round(seconds(self._longest_ns), 3)


def _differing(lattices: Sequence[Lattice]) -> Iterator[ChainId]:
    """The chains that are not the same everywhere: few in a large mesh."""
    for shard in sorted({shard for lattice in lattices for shard in lattice.shards()}):
        if len({lattice.digest(shard) for lattice in lattices}) > 1:
            for id in sorted({id for lattice in lattices for id in lattice.chains(shard)}):
                if len({lattice.weight(id) for lattice in lattices}) > 1:
                    yield id


def _includes(holder: Holder, wanted: dict[tuple[ChainId, Epoch], int]) -> bool:
    """Of the shards that it keeps."""
    for (id, epoch), head in wanted.items():
        if not holder.keeps(id.shard):
            continue
        headers = [chain.header for chain in holder.lattice.branches(id) if chain.header]
        if not _holds(headers, epoch, head):
            return False
    return True


def _holds(headers: Iterable[Header], epoch: Epoch, head: int) -> bool:
    """Whether one of the signed states holds what was written up to `head` of `epoch`."""
    return any(
        header.covers_head(epoch, head) if header.epoch != epoch else header.hi >= head
        for header in headers
    )
