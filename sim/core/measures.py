"""What a run measures: how soon writes are everywhere, and how soon a healed mesh agrees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from crdt.header import ChainId, Epoch
from crdt.lattice import Lattice
from mesh.core.effects import Effect, Persist
from mesh.core.ops import NodeId
from sim.core.checkers import load_header
from sim.core.clock import SECOND_NS, Clock, seconds

LOOK_NS = SECOND_NS // 20
"""How often a run looks at the state of all nodes: the resolution of what is found so."""


class PushTimes:
    """How long writes take to reach other nodes while nothing is wrong."""

    def __init__(self, clock: Clock) -> None:
        self.taken_ns: list[int] = []
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
            flushes = self._flushes.setdefault((effect.chain, effect.epoch), [])
            if effect.chain.node == owner:
                flushes.append((hi, now_ns, self.weather))
                continue
            place = (node, effect.chain, effect.epoch)
            first = self._seen.get(place, 0)
            while first < len(flushes) and flushes[first][0] <= hi:
                _, wrote_ns, weather = flushes[first]
                if weather == self.weather:
                    self.taken_ns.append(now_ns - wrote_ns)
                first += 1
            self._seen[place] = first

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
        for holder in holders:
            for id in holder.lattice.chains():
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
        if watch != self._watch:
            return  # something went wrong again
        if all(_includes(holder, wanted) for holder in holders):
            self._longest_ns = max(self._longest_ns or 0, self._clock.now_ns - since_ns)
            return
        self._clock.after(LOOK_NS, lambda: self._look(watch, since_ns, holders, wanted))

    def longest_s(self) -> float | None:
        """None if no heal came to its end."""
        return None if self._longest_ns is None else round(seconds(self._longest_ns), 3)


def _includes(holder: Holder, wanted: dict[tuple[ChainId, Epoch], int]) -> bool:
    """Of the shards that it keeps."""
    for (id, epoch), head in wanted.items():
        if not holder.keeps(id.shard):
            continue
        headers = [chain.header for chain in holder.lattice.branches(id) if chain.header]
        if not any(
            header.covers_head(epoch, head) if header.epoch != epoch else header.hi >= head
            for header in headers
        ):
            return False
    return True
