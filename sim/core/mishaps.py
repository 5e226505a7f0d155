"""What goes wrong at one node: crashes, disks that are lost, torn or full, clocks, copies.

A process that ended is started again; a node that was retired is not. A full disk stops nothing but
its node's own writes. People follow the alarm about a clone: whoever stopped writing is started
anew, and adopts what there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from sim.core.cast import as_clone
from sim.core.chance import below, pick
from sim.core.clock import SECOND_NS
from sim.core.disk import Disk
from sim.core.episodes import Episode
from sim.core.events import DURATION_S_MAX, ClockStep, Clone, Crash, Trouble, Upgrade
from sim.core.hostile import Hostile
from sim.core.node import Machine
from sim.core.releases import PRESENT
from sim.core.stage import Stage

CLONE_RESTART_NS = 5 * SECOND_NS
"""A node that took itself for a clone is started again by its people, who follow the alarm: every
other one. The rest go on by themselves a minute after the last sign of a copy."""
LOST_TAIL_NS = SECOND_NS
CLOCK_STEP_NS = 60 * SECOND_NS
YEAR_NS = 365 * 24 * 3600 * SECOND_NS
YEARS_SHARE = 0.2

assert YEAR_NS <= DURATION_S_MAX * SECOND_NS


class NodeFaults:
    """Of one run. At `end` every node runs again that is to."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._down: dict[int, Episode] = {}
        self._lasting: dict[tuple[str, int], Episode] = {}
        """(kind, node) of a full disk, a stalled reader"""
        self._backups: dict[tuple[int, int], Disk] = {}
        self._copies = [m.identity.index for m in stage.machines if m.state == "copy"]
        self.hostiles: dict[int, Hostile] = {}

    def schedule(self, event: Crash | Trouble | ClockStep | Clone | Upgrade) -> None:
        index = self._stage.index_of(event.node)
        match event:
            case Crash():
                self._schedule_crash(event.at_ns, index, event.for_ns, event.restore_ns)
            case Trouble():
                self._schedule_trouble(event.at_ns, event.kind, index, event.for_ns)
            case ClockStep():
                self._stage.at(event.at_ns, partial(self._step_clock, index, event.step_ns))
            case Upgrade():
                upgrade = partial(self._upgrade, index, event.release, event.for_ns)
                self._stage.at(event.at_ns, upgrade)
            case Clone():
                self._schedule_clone(event.at_ns, index, event.from_ns, event.for_ns)

    def schedule_chance(self) -> None:
        stage, chance = self._stage, self._stage.chance
        faults = stage.scenario.faults
        everyone = range(len(stage.scenario.node_names))
        down_ns = faults.down_ns

        def times(count: int) -> Sequence[tuple[int, int, int]]:
            """(at, node, for) for each"""
            return [
                (stage.some_time_ns(), pick(chance, everyone), stage.some_length_ns(down_ns))
                for _ in range(count)
            ]

        for at_ns, index, for_ns in times(faults.crashes):
            self._schedule_crash(at_ns, index, for_ns, None)
        for at_ns, index, for_ns in times(faults.restores):
            self._schedule_crash(at_ns, index, for_ns, int(at_ns * chance.random()))
        for at_ns, index, for_ns in times(faults.power_losses):
            self._schedule_crash(at_ns, index, for_ns, max(at_ns - LOST_TAIL_NS, 0))
        for at_ns, index, for_ns in times(faults.torn):
            self._schedule_trouble(at_ns, "torn", index, for_ns)
        for at_ns, index, for_ns in times(faults.full_disks):
            self._schedule_trouble(at_ns, "full", index, for_ns)
        for at_ns, index, for_ns in times(faults.stalls):
            self._schedule_trouble(at_ns, "stall", index, for_ns)
        for at_ns, index, for_ns in times(faults.clones):
            self._schedule_clone(at_ns, index, int(at_ns * chance.random()), for_ns)
        for at_ns, index, _ in times(faults.clock_steps):
            longest_ns = YEAR_NS if chance.random() < YEARS_SHARE else CLOCK_STEP_NS
            step_ns = below(chance, 2 * longest_ns) - longest_ns
            stage.at(at_ns, partial(self._step_clock, index, step_ns))

        for at_ns, index, for_ns in times(faults.upgrades):
            stage.at(at_ns, partial(self._upgrade, index, 0, for_ns))

    def mind(self) -> None:
        """Look after the processes, now and then, to the end."""
        for machine in self._stage.machines:
            process = machine.process
            minded = machine.state == "member" and machine.identity.index % 2 == 0
            if minded and process is not None and process.replica.cloned:
                machine.crash()
                machine.start()
                name = machine.identity.name
                self._stage.episodes.happened("restart", name, "took itself for a clone")
                self._stage.witness.changed()
        self._stage.clock.after(CLONE_RESTART_NS, self.mind)

    def end(self) -> None:
        """Start all nodes, stop who is not one of them."""
        for kind, index in list(self._lasting):
            self._trouble_ends(kind, index)
        for machine in self._stage.machines:
            if machine.state in ("clone", "hostile") and machine.process is not None:
                self._stop(machine)
            elif machine.state == "member" and machine.process is None:
                self._run_again(machine)

    # ---- crashes ----

    def _schedule_crash(self, at_ns: int, index: int, for_ns: int, back_ns: int | None) -> None:
        if back_ns is not None:
            self._stage.at(back_ns, partial(self._back_up, index, at_ns))
        self._stage.at(at_ns, partial(self._crash, index, for_ns, at_ns))

    def _back_up(self, index: int, for_at_ns: int) -> None:
        machine = self._stage.machines[index]
        if machine.state != "waiting":  # it joins later than it was to: there is no disk yet
            self._backups[index, for_at_ns] = machine.disk.copy()

    def _crash(self, index: int, for_ns: int, at_ns: int) -> None:
        stage, machine = self._stage, self._stage.machines[index]
        backup = self._backups.pop((index, at_ns), None)
        if machine.process is None or machine.state != "member":
            return
        stage.count += 1
        machine.crash()
        down = self._down[index] = stage.episodes.began("down", machine.identity.name)
        if backup is not None:
            machine.disk = backup
            stage.witness.disk_lost(index)
            down.note = "came back with an older copy of its disk"
        stage.witness.changed()
        stage.later(for_ns, partial(self._start, index))

    def _start(self, index: int) -> None:
        machine = self._stage.machines[index]
        if machine.process is None and machine.state == "member":
            self._run_again(machine)
            self._stage.witness.changed()

    def _run_again(self, machine: Machine) -> None:
        machine.start()
        if (down := self._down.pop(machine.identity.index, None)) is not None:
            self._stage.episodes.ended(down)

    def _stop(self, machine: Machine) -> None:
        if machine.process is not None:
            machine.crash()
        machine.state = "gone"
        if (down := self._down.pop(machine.identity.index, None)) is not None:
            self._stage.episodes.ended(down)

    def _upgrade(self, index: int, release: int, for_ns: int) -> None:
        """`release` 0: the next one, or back from the one after this."""
        stage, machine = self._stage, self._stage.machines[index]
        if machine.state != "member":
            return
        stage.count += 1
        was = machine.release
        machine.release = release or (PRESENT if was > PRESENT else was + 1)
        note = f"from release {was} to {machine.release}"
        stage.episodes.happened("upgrade", machine.identity.name, note)
        if machine.process is not None:
            machine.crash()
            self._down[index] = stage.episodes.began("down", machine.identity.name)
            stage.witness.changed()
            stage.later(for_ns, partial(self._start, index))

    # ---- disks, readers, clocks ----

    def _schedule_trouble(self, at_ns: int, kind: str, index: int, for_ns: int) -> None:
        begin = partial(self._tear, index, for_ns)
        if kind != "torn":
            begin = partial(self._trouble_begins, kind, index, for_ns)
        self._stage.at(at_ns, begin)

    def _tear(self, index: int, for_ns: int) -> None:
        stage, machine = self._stage, self._stage.machines[index]
        if machine.process is None or machine.state != "member":
            return
        stage.count += 1
        machine.crash()
        down = self._down[index] = stage.episodes.began("down", machine.identity.name)
        if machine.disk.tear(stage.chance):
            stage.witness.disk_lost(index)
            down.note = "came back with a torn record on its disk"
        stage.witness.changed()
        stage.later(for_ns, partial(self._start, index))

    def _trouble_begins(self, kind: str, index: int, for_ns: int) -> None:
        stage, machine = self._stage, self._stage.machines[index]
        if machine.process is None or machine.state != "member" or (kind, index) in self._lasting:
            return
        stage.count += 1
        self._lasting[kind, index] = stage.episodes.began(kind, machine.identity.name)
        if kind == "full":
            machine.disk.full = True
        elif kind == "stall":
            stage.network.stall(index)
        else:
            machine.state = "hostile"
            stage.witness.hostile(machine.identity.node)
            self.hostiles[index] = Hostile(machine, stage)
        stage.witness.changed()
        stage.later(for_ns, partial(self._trouble_ends, kind, index))

    def _trouble_ends(self, kind: str, index: int) -> None:
        episode = self._lasting.pop((kind, index), None)
        if episode is None:
            return
        stage, machine = self._stage, self._stage.machines[index]
        if kind == "full":
            machine.disk.full = False
        elif kind == "stall":
            stage.network.resume(index)
        else:
            del self.hostiles[index]
            self._stop(machine)
        stage.episodes.ended(episode)
        stage.witness.changed()

    def _step_clock(self, index: int, step_ns: int) -> None:
        machine = self._stage.machines[index]
        self._stage.count += 1
        note = f"by {step_ns // SECOND_NS} s"
        self._stage.episodes.happened("clock step", machine.identity.name, note)
        machine.step_clock(step_ns)

    # ---- copies ----

    def _schedule_clone(self, at_ns: int, index: int, from_ns: int, for_ns: int) -> None:
        # A key of its own in `_backups`: no fault of the node is at a negative time.
        self._stage.at(from_ns, partial(self._back_up, index, -at_ns - 1))
        self._stage.at(at_ns, partial(self._clone, index, for_ns, -at_ns - 1))

    def _clone(self, index: int, for_ns: int, key_ns: int) -> None:
        stage, original = self._stage, self._stage.machines[index]
        disk = self._backups.pop((index, key_ns), None)
        if disk is None or original.state != "member" or not self._copies:
            return
        machine = stage.machines[self._copies.pop(0)]
        machine.identity = as_clone(machine.identity, original.identity)
        machine.disk, machine.state = disk, "clone"
        stage.count += 1
        stage.witness.cloned(original.identity.node)
        episode = stage.episodes.began("clone", machine.identity.name)
        machine.start()
        stage.witness.changed()
        stage.later(for_ns, partial(self._end_clone, machine, episode))

    def _end_clone(self, machine: Machine, episode: Episode) -> None:
        self._stop(machine)
        self._stage.episodes.ended(episode)
        self._stage.witness.changed()
