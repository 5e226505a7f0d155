"""Nodes that come and go: an admin admits, retires and forgets them, as people would have it do.

A statement is made by a node that may make it and is up; if none is, people try again. A node that
leaves says so itself and goes on for a little. One that is retired is off for good; one whose key
was stolen may go on, and nobody listens to it. Forgotten is who is not seen in any view any more.
"""

from __future__ import annotations

from functools import partial

from mesh.core.errors import Refused
from mesh.core.ops import NodeId
from sim.core import reference
from sim.core.chance import below
from sim.core.clock import SECOND_NS
from sim.core.disk import Disk
from sim.core.events import Join, Part, Parting
from sim.core.node import Machine, Process, roster_of
from sim.core.stage import Stage

AGAIN_NS = SECOND_NS
FAREWELL_NS = 3 * SECOND_NS
"""So long a node that left goes on: until it has been heard of."""


class Membership:
    """Of one run."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._joining = [m.identity.index for m in stage.machines if m.state == "waiting"]

    def schedule(self, event: Join | Part) -> None:
        if isinstance(event, Join):
            index = next(
                i for i in self._joining if self._stage.machines[i].identity.site == event.site
            )
            self._joining.remove(index)
            self._stage.at(event.at_ns, partial(self._join, index))
        else:
            index = self._stage.index_of(event.node)
            self._stage.at(event.at_ns, partial(self._part, event.kind, index))

    def schedule_chance(self) -> None:
        """The rest of those that join, and some of the nodes, but not the only admin, go."""
        stage, chance = self._stage, self._stage.chance
        for index in self._joining:
            stage.at(stage.some_time_ns(), partial(self._join, index))
        count = len(stage.scenario.node_names)
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

    def end(self) -> None:
        """Whoever joined through an admin that has lost the admission with its disk before anybody
        else heard of it is nobody's member: people invite it anew, under another key."""
        members = [machine for machine in self._stage.machines if machine.state == "member"]
        for machine in members:
            node = machine.identity.node
            others = [other for other in members if other is not machine]
            if others and not any(_knows(other, node) for other in others):
                machine.state = "gone"
                self._stage.episodes.happened("stranded", machine.identity.name)
                self._stage.witness.parted(node, forgotten=False)
                self._switch_off(machine)

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
        admin.say(roster.admit(admin.identity.seed, who.key, who.name, who.site))
        stage.count += 1
        machine.disk = Disk(roster.statements())
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
            _say(kind, speaker, node)
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

    @staticmethod
    def _switch_off(machine: Machine) -> None:
        if machine.process is not None:
            machine.crash()


def _knows(machine: Machine, node: NodeId) -> bool:
    if machine.process is not None:
        return node in machine.process.replica.roster.members()
    return node in roster_of(machine.disk.statements).members()


def _say(kind: Parting, speaker: Process, node: NodeId) -> None:
    roster, seed = speaker.replica.roster, speaker.identity.seed
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
