"""Nodes that come and go: an admin admits, retires and forgets them, as people would have it do.

A statement is made by a node that may make it and is up; if none is, people try again. A node that
leaves says so itself and goes on for a little. One that is retired is off for good; one whose key
was stolen may go on, and nobody listens to it. Forgotten is who is not seen in any view any more.
"""

from __future__ import annotations

from functools import partial

from mesh.core.errors import Refused
from mesh.core.ops import NodeId
from mesh.core.roster import Roster
from sim.core import reference
from sim.core.chance import below
from sim.core.clock import SECOND_NS
from sim.core.disk import Disk
from sim.core.events import Join, Part, Parting, Rotate
from sim.core.node import Machine, Process, roster_of
from sim.core.signing import public_key
from sim.core.stage import Stage

AGAIN_NS = SECOND_NS
RETIRE_OUSTED_NS = 5 * SECOND_NS
"""So often people look for nodes that came back with a key that is not theirs any more."""
DIES_SHARE = 0.2
"""Of the rotations by chance: the process ends once the new key is in use, before anybody knows."""
FAREWELL_NS = 3 * SECOND_NS
"""So long a node that left goes on: until it has been heard of."""


class Membership:
    """Of one run."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._joining = [m.identity.index for m in stage.machines if m.state == "waiting"]
        scenario = stage.scenario
        self._rotate_some = scenario.faults.rotations > 0 or any(
            isinstance(event, Rotate) for event in scenario.events
        )

    def schedule(self, event: Join | Part | Rotate) -> None:
        if isinstance(event, Join):
            index = next(
                i for i in self._joining if self._stage.machines[i].identity.site == event.site
            )
            self._joining.remove(index)
            self._stage.at(event.at_ns, partial(self._join, index))
        elif isinstance(event, Rotate):
            index = self._stage.index_of(event.node)
            self._stage.at(event.at_ns, partial(self._rotate, index, dies=False, force=event.force))
        else:
            index = self._stage.index_of(event.node)
            self._stage.at(event.at_ns, partial(self._part, event.kind, index))

    def schedule_chance(self) -> None:
        """The rest of those that join, and some of the nodes, but not the only admin, go."""
        stage, chance = self._stage, self._stage.chance
        for index in self._joining:
            stage.at(stage.some_time_ns(), partial(self._join, index))
        count = len(stage.scenario.node_names)
        for _ in range(stage.scenario.faults.rotations):
            index, dies = below(chance, count), chance.random() < DIES_SHARE
            stage.at(stage.some_time_ns(), partial(self._rotate, index, dies=dies, force=False))
        if count < 2:
            return
        for _ in range(stage.scenario.faults.retires):
            index = 1 + below(chance, count - 1)
            kind: Parting = ("leave", "retire", "compromise")[below(chance, 3)]
            at_ns = stage.some_time_ns()
            stage.at(at_ns, partial(self._part, kind, index))
            if kind != "compromise" and chance.random() < 0.5:
                left_ns = stage.scenario.duration_ns - at_ns
                forget_ns = at_ns + int(left_ns * chance.random())
                stage.at(forget_ns, partial(self._part, "forget", index))

    def mind(self) -> None:
        """Now and then: retire as compromised who came back from a time before its key was
        replaced. It has not the key that counts, and whom it reaches does not let it in."""
        if not self._rotate_some:
            return
        for machine in self._staying():
            admin, index = self._admin(), machine.identity.index
            if admin is None or machine.process is None:
                continue
            if self._stage.network.passes(admin.identity.index, index) and self._ousted(machine):
                self._part("compromise", index)
        self._stage.later(RETIRE_OUSTED_NS, self.mind)

    def end(self) -> None:
        """Who is nobody's member, people invite anew, under another key: whoever has lost its own,
        and whoever joined through an admin that has lost the admission with its disk before anybody
        else heard of it."""
        for machine in self._staying() if self._rotate_some else ():
            if self._ousted(machine):
                self._strand(machine, forgotten=True)
        members = self._staying()
        for machine in members:
            node = machine.identity.node
            others = [other for other in members if other is not machine]
            if others and not any(_knows(other, node) for other in others):
                self._strand(machine, forgotten=False)

    def _staying(self) -> list[Machine]:
        return [machine for machine in self._stage.machines if machine.state == "member"]

    def _strand(self, machine: Machine, *, forgotten: bool) -> None:
        machine.state = "gone"
        self._stage.episodes.happened("stranded", machine.identity.name)
        self._stage.witness.parted(machine.identity.node, forgotten=forgotten)
        self._switch_off(machine)

    def _ousted(self, machine: Machine) -> bool:
        """Whether another key than the one on its disk is in use, by all that is known of it."""
        node, key = machine.identity.node, public_key(machine.disk.seed)
        for other in self._staying():
            theirs = _roster(other)
            known = theirs.members().get(node)
            if known is not None and known.key != key:
                all_known = theirs.copy()
                all_known.add(_roster(machine).rotations(node))
                if all_known.members()[node].key != key:
                    return True
        return False

    # ---- inner ----

    def _admin(self) -> Process | None:
        """An admin that is up and can write a statement."""
        for machine in self._stage.machines:
            process = machine.process
            if process is None or machine.state != "member" or machine.disk.full:
                continue
            member = process.replica.roster.active(machine.identity.node)
            if member is not None and member.admin and process.replica.writable:
                return process
        return None

    def _join(self, index: int) -> None:
        stage, machine = self._stage, self._stage.machines[index]
        admin = self._admin()
        if admin is None:
            stage.later(AGAIN_NS, partial(self._join, index))
            return
        who = machine.identity
        roster = admin.replica.roster
        seed = stage.machines[admin.identity.index].disk.seed
        admin.say(roster.admit(seed, who.key, who.name, who.site))
        stage.count += 1
        machine.disk = Disk(roster.statements(), who.seed)
        machine.state = "member"
        stage.episodes.happened("join", who.name)
        machine.start()
        stage.witness.changed()

    def _part(self, kind: Parting, index: int) -> None:
        stage, machine = self._stage, self._stage.machines[index]
        node = machine.identity.node
        again = partial(self._part, kind, index)
        speaker = machine.process if kind == "leave" else self._admin()
        if kind == "forget":
            if machine.state != "gone" or speaker is None or _seen(speaker, node):
                stage.later(AGAIN_NS, again)
                return
        elif machine.state != "member":
            return
        elif speaker is None or not speaker.replica.writable:
            stage.later(AGAIN_NS, again)
            return
        if kind == "retire" and machine.process is not None:
            machine.crash()
        try:
            _say(kind, speaker, stage.machines[speaker.identity.index].disk.seed, node)
        except Refused:
            stage.later(AGAIN_NS, again)  # the admin has not heard of the node yet
            return
        stage.count += 1
        stage.episodes.happened(kind, machine.identity.name)
        stage.witness.parted(node, forgotten=kind in ("forget", "compromise"))
        if machine.state == "member":
            machine.state = "gone"
            stage.clock.after(FAREWELL_NS, partial(self._switch_off, machine))
        stage.witness.changed()

    def _rotate(self, index: int, *, dies: bool, force: bool) -> None:
        stage, machine = self._stage, self._stage.machines[index]
        if machine.state != "member":
            return
        if machine.process is None or not machine.process.rotate(dies=dies, force=force):
            stage.later(AGAIN_NS, partial(self._rotate, index, dies=dies, force=force))
            return
        stage.count += 1
        note = "and ended before anybody knew" if dies else ""
        stage.episodes.happened("rotate", machine.identity.name, note)
        stage.witness.rotated(index)
        if dies:
            machine.crash()
            machine.start()
            stage.witness.changed()

    @staticmethod
    def _switch_off(machine: Machine) -> None:
        if machine.process is not None:
            machine.crash()


def _knows(machine: Machine, node: NodeId) -> bool:
    return node in _roster(machine).members()


def _roster(machine: Machine) -> Roster:
    """As the node knows it, or will when it starts. For reading only."""
    if machine.process is not None:
        return machine.process.replica.roster
    return roster_of(machine.disk.statements)


def _say(kind: Parting, speaker: Process, seed: bytes, node: NodeId) -> None:
    roster = speaker.replica.roster
    if kind == "forget":
        speaker.say(roster.forget(seed, node))
    else:
        speaker.say(roster.retire(seed, node, compromised=kind == "compromise"))


def _seen(process: Process, node: NodeId) -> bool:
    """Whether anything would look otherwise without the node's records."""
    members = process.replica.roster.members()
    if members[node].state == "active":
        return True
    held = list(reference.held_by(process.replica))
    without = [row for row in held if row[0] != node]
    return reference.read(held, members) != reference.read(without, members)
