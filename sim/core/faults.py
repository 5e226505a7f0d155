"""What goes wrong, and when: the scenario's events and those left to chance.

Every fault ends by itself or at `end`, when all cuts heal and every node runs again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sim.core.chance import Chance, below, pick
from sim.core.clock import SECOND_NS, Clock
from sim.core.disk import Disk
from sim.core.episodes import Episode, Episodes, sides_text
from sim.core.network import Network, Pair
from sim.core.node import Machine
from sim.core.scenario import Crash, Cut, Flap, Scenario

CLONE_RESTART_NS = 5 * SECOND_NS
"""A node that took itself for a clone is started again by its people, who follow the alarm."""
RESTART_NS = 5 * SECOND_NS
SHORTEST_NS = SECOND_NS // 10


class Faults:
    """The faults of one run. `changed` is called whenever one begins or ends; `disk_lost` when a
    disk was replaced by an older copy."""

    def __init__(
        self,
        scenario: Scenario,
        machines: Sequence[Machine],
        network: Network,
        clock: Clock,
        chance: Chance,
        changed: Callable[[], None],
        disk_lost: Callable[[int], None],
    ) -> None:
        self.count = 0
        self.episodes = Episodes(clock)
        self._scenario = scenario
        self._machines = machines
        self._network = network
        self._clock = clock
        self._chance = chance
        self._changed = changed
        self._disk_lost = disk_lost
        self._cuts: list[tuple[list[Pair], Episode]] = []
        self._down: dict[int, Episode] = {}
        self._backups: dict[tuple[int, int], Disk] = {}
        self._index = {machine.identity.name: machine.identity.index for machine in machines}
        self._over = False

    def schedule(self) -> None:
        """Put everything on the clock."""
        for event in self._scenario.events:
            match event:
                case Cut():
                    pairs = self._between(event.groups)
                    what = sides_text(event.groups)
                    self._clock.at(event.at_ns, partial(self._cut, pairs, what, event.for_ns))
                case Crash():
                    index = self._index[event.node]
                    self._schedule_crash(event.at_ns, index, event.for_ns, event.restore_ns)
                case Flap():
                    self._clock.at(event.at_ns, partial(self._flap, event))
        self._schedule_chance()
        self._clock.after(CLONE_RESTART_NS, self._mind_clones)

    def _schedule_chance(self) -> None:
        faults, chance = self._scenario.faults, self._chance
        everyone = range(len(self._machines))
        if len(self._machines) > 1:
            for _ in range(faults.cuts):
                self._clock.at(self._some_time(), self._cut_at_random)
            for _ in range(faults.oneway_cuts):
                a = below(chance, len(everyone))
                b = (a + 1 + below(chance, len(everyone) - 1)) % len(everyone)
                length_ns = self._some_length(faults.cut_ns)
                what = f"{self._machines[a].identity.name} → {self._machines[b].identity.name}"
                cut = partial(self._cut, [(a, b)], what, length_ns, "one-way cut")
                self._clock.at(self._some_time(), cut)
        for _ in range(faults.crashes):
            length_ns = self._some_length(faults.down_ns)
            self._schedule_crash(self._some_time(), pick(chance, everyone), length_ns, None)
        for _ in range(faults.restores):
            at_ns, length_ns = self._some_time(), self._some_length(faults.down_ns)
            back_ns = int(at_ns * chance.random())
            self._schedule_crash(at_ns, pick(chance, everyone), length_ns, back_ns)

    def _some_time(self) -> int:
        return int(self._scenario.duration_ns * self._chance.random())

    def _some_length(self, longest_ns: int) -> int:
        # Most short, some long: heartbeats are missed in some, in others frames only wait.
        part = self._chance.random() ** 2
        return SHORTEST_NS + int(longest_ns * part)

    def end(self) -> None:
        """Heal all cuts, start all nodes."""
        self._over = True
        for pairs, episode in self._cuts:
            self._network.heal(pairs)
            self.episodes.ended(episode)
        self._cuts.clear()
        for machine in self._machines:
            if machine.process is None:
                self._run_again(machine)
        self._changed()

    # ---- cuts ----

    def _between(self, groups: Sequence[Sequence[str]]) -> list[Pair]:
        group_of = {site: i for i, group in enumerate(groups) for site in group}
        return self._crossing([group_of[machine.identity.site] for machine in self._machines])

    def _crossing(self, side: Sequence[int]) -> list[Pair]:
        everyone = range(len(side))
        return [(a, b) for a in everyone for b in everyone if side[a] != side[b]]

    def _cut_at_random(self) -> None:
        side = [below(self._chance, 2) for _ in self._machines]
        side[below(self._chance, len(side))] ^= 1
        names = [machine.identity.name for machine in self._machines]
        sides = [[name for name, at in zip(names, side, strict=True) if at == i] for i in (0, 1)]
        for_ns = self._some_length(self._scenario.faults.cut_ns)
        self._cut(self._crossing(side), sides_text(sides), for_ns)

    def _cut(self, pairs: list[Pair], what: str, for_ns: int | None, kind: str = "cut") -> None:
        if self._over or not pairs:
            return
        self.count += 1
        self._network.cut(pairs)
        self._cuts.append((pairs, self.episodes.began(kind, what)))
        self._changed()
        if for_ns is not None:
            self._clock.after(for_ns, partial(self._heal, pairs))

    def _heal(self, pairs: list[Pair]) -> None:
        for i, (cut, episode) in enumerate(self._cuts):
            if cut is pairs:
                del self._cuts[i]
                self._network.heal(pairs)
                self.episodes.ended(episode)
                self._changed()
                return

    def _flap(self, flap: Flap) -> None:
        if self._over or self._clock.now_ns >= flap.at_ns + flap.for_ns:
            return
        site = [machine.identity.site for machine in self._machines]
        everyone = range(len(site))
        link = [
            (a, b) for a in everyone for b in everyone if {site[a], site[b]} == {flap.a, flap.b}
        ]
        half_ns = flap.period_ns // 2
        what = sides_text([[flap.a], [flap.b]])
        cut = partial(self._cut, link, what, flap.period_ns - half_ns, "flap")
        self._clock.after(half_ns, cut)
        self._clock.after(flap.period_ns, partial(self._flap, flap))

    # ---- crashes ----

    def _schedule_crash(self, at_ns: int, index: int, for_ns: int, back_ns: int | None) -> None:
        if back_ns is not None:
            self._clock.at(back_ns, partial(self._back_up, index, at_ns))
        self._clock.at(at_ns, partial(self._crash, index, for_ns, at_ns, back_ns is not None))

    def _back_up(self, index: int, for_at_ns: int) -> None:
        self._backups[index, for_at_ns] = self._machines[index].disk.copy()

    def _crash(self, index: int, for_ns: int, at_ns: int, restore: bool) -> None:
        machine = self._machines[index]
        backup = self._backups.pop((index, at_ns), None)
        if self._over or machine.process is None:
            return
        self.count += 1
        machine.crash()
        down = self._down[index] = self.episodes.began("down", machine.identity.name)
        if restore and backup is not None:
            machine.disk = backup
            self._disk_lost(index)
            down.note = "came back with an older copy of its disk"
        self._changed()
        self._clock.after(for_ns, partial(self._start, index))

    def failed(self, index: int) -> None:
        """A node ended by itself: what looks after its process starts it again."""
        name = self._machines[index].identity.name
        self._down[index] = self.episodes.began("down", name, "its disk is full")
        self._changed()
        self._clock.after(RESTART_NS, partial(self._start, index))

    def _start(self, index: int) -> None:
        if self._machines[index].process is None:
            self._run_again(self._machines[index])
            self._changed()

    def _run_again(self, machine: Machine) -> None:
        machine.start()
        self.episodes.ended(self._down.pop(machine.identity.index))

    def _mind_clones(self) -> None:
        for machine in self._machines:
            if machine.process is not None and machine.process.replica.cloned:
                machine.crash()
                machine.start()
                self.episodes.happened("restart", machine.identity.name, "took itself for a clone")
                self._changed()
        self._clock.after(CLONE_RESTART_NS, self._mind_clones)
