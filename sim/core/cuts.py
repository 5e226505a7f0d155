"""What goes wrong between nodes: cuts, of both directions or one, slow and flapping links."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sim.core.chance import below
from sim.core.episodes import Episode, sides_text
from sim.core.events import Cut, Flap, Oneway, Slow
from sim.core.network import Pair
from sim.core.stage import Stage

SLOW_FACTOR = 20.0


class LinkFaults:
    """Of one run. Everything heals at `end`."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._under_way: list[tuple[Episode, Callable[[], None]]] = []
        """(what it is, how it is undone)"""

    def schedule(self, event: Cut | Oneway | Slow | Flap) -> None:
        match event:
            case Cut():
                side = {site: i for i, group in enumerate(event.groups) for site in group}
                begin = partial(self._cut_sites, side, sides_text(event.groups), event.for_ns)
                self._stage.at(event.at_ns, begin)
            case Oneway():
                begin = partial(self._oneway, event.a, event.b, event.for_ns)
                self._stage.at(event.at_ns, begin)
            case Slow():
                self._stage.at(event.at_ns, partial(self._slow_sites, event))
            case Flap():
                self._stage.at(event.at_ns, partial(self._flap, event))

    def schedule_chance(self) -> None:
        stage = self._stage
        faults = stage.scenario.faults
        if len(stage.machines) < 2:
            return
        for _ in range(faults.cuts):
            stage.at(stage.some_time_ns(), self._cut_at_random)
        for _ in range(faults.oneway_cuts):
            a, b = self._two()
            for_ns = stage.some_length_ns(faults.cut_ns)
            what = f"{self._name(a)} → {self._name(b)}"
            begin = partial(self._cut, [(a, b)], what, for_ns, "one-way cut")
            stage.at(stage.some_time_ns(), begin)
        for _ in range(faults.slow_links):
            a, b = self._two()
            for_ns = stage.some_length_ns(faults.cut_ns)
            what = sides_text([[self._name(a)], [self._name(b)]])
            begin = partial(self._slow, [(a, b), (b, a)], SLOW_FACTOR, what, for_ns)
            stage.at(stage.some_time_ns(), begin)

    def end(self) -> None:
        for episode, undo in self._under_way:
            undo()
            self._stage.episodes.ended(episode)
        self._under_way.clear()

    # ---- inner ----

    def _two(self) -> Pair:
        count = len(self._stage.machines)
        a = below(self._stage.chance, count)
        return a, (a + 1 + below(self._stage.chance, count - 1)) % count

    def _name(self, index: int) -> str:
        return self._stage.machines[index].identity.name

    def _cut_sites(self, side: dict[str, int], what: str, for_ns: int | None) -> None:
        # A site that joined later is with the last group, the rest.
        rest = max(side.values())
        sides = [side.get(m.identity.site, rest) for m in self._stage.machines]
        self._cut(_crossing(sides), what, for_ns)

    def _cut_at_random(self) -> None:
        stage = self._stage
        side = [below(stage.chance, 2) for _ in stage.machines]
        other = below(stage.chance, len(side))
        if len(set(side)) == 1:
            side[other] ^= 1
        names = [machine.identity.name for machine in stage.machines]
        sides = [[name for name, at in zip(names, side, strict=True) if at == i] for i in (0, 1)]
        for_ns = stage.some_length_ns(stage.scenario.faults.cut_ns)
        self._cut(_crossing(side), sides_text(sides), for_ns)

    def _between(self, a: str, b: str) -> list[Pair]:
        """From every gateway of a to every one of b."""
        site = [machine.identity.site for machine in self._stage.machines]
        everyone = range(len(site))
        return [(i, j) for i in everyone for j in everyone if (site[i], site[j]) == (a, b)]

    def _oneway(self, a: str, b: str, for_ns: int | None) -> None:
        self._cut(self._between(a, b), f"{a} → {b}", for_ns, "one-way cut")

    def _cut(self, pairs: list[Pair], what: str, for_ns: int | None, kind: str = "cut") -> None:
        if pairs:
            self._stage.network.cut(pairs)
            self._began(kind, what, for_ns, partial(self._stage.network.heal, pairs))

    def _slow_sites(self, event: Slow) -> None:
        pairs = self._between(event.a, event.b) + self._between(event.b, event.a)
        what = sides_text([[event.a], [event.b]])
        self._slow(pairs, event.factor, what, event.for_ns)

    def _slow(self, pairs: list[Pair], factor: float, what: str, for_ns: int | None) -> None:
        self._stage.network.slow(pairs, factor)
        self._began("slow", what, for_ns, partial(self._stage.network.slow, pairs, 1 / factor))

    def _began(self, kind: str, what: str, for_ns: int | None, undo: Callable[[], None]) -> None:
        stage = self._stage
        stage.count += 1
        fault = stage.episodes.began(kind, what), undo
        self._under_way.append(fault)
        stage.witness.changed()
        if for_ns is not None:
            stage.later(for_ns, partial(self._ended, fault))

    def _ended(self, fault: tuple[Episode, Callable[[], None]]) -> None:
        self._under_way = [other for other in self._under_way if other[0] is not fault[0]]
        fault[1]()
        self._stage.episodes.ended(fault[0])
        self._stage.witness.changed()

    def _flap(self, flap: Flap) -> None:
        stage = self._stage
        if stage.clock.now_ns >= flap.at_ns + flap.for_ns:
            return
        pairs = self._between(flap.a, flap.b) + self._between(flap.b, flap.a)
        half_ns = flap.period_ns // 2
        what = sides_text([[flap.a], [flap.b]])
        stage.later(half_ns, partial(self._cut, pairs, what, flap.period_ns - half_ns, "flap"))
        stage.later(flap.period_ns, partial(self._flap, flap))


def _crossing(side: Sequence[int]) -> list[Pair]:
    everyone = range(len(side))
    return [(a, b) for a in everyone for b in everyone if side[a] != side[b]]
