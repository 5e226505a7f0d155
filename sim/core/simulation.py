"""One run: `run(scenario, seed, chance_of)` is a function of its arguments, to the last byte.

The replicas, views, writers and compilers are those of the node; clock, network and disks are
modelled. Users write and things go wrong for `duration_s`; then all heals, and within `quiet_s` the
mesh must come to rest. The checks are in `checkers`.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Final

from crdt.lattice import Lattice
from mesh.core import wire
from mesh.core.antientropy import PERIOD_NS
from mesh.core.effects import Alarm, Effect, Persist, Send, Stored
from mesh.core.ops import Delete, NodeId, Op
from sim.core.beginning import Beginning
from sim.core.cast import identities_of, latencies_of, signatures_of, statements_of
from sim.core.chance import ChanceOf, below
from sim.core.checkers import StepChecks, Violation, Violations
from sim.core.clock import SECOND_NS, Clock
from sim.core.disk import Disk
from sim.core.entitlement import EntitlementChecks
from sim.core.episodes import Episodes
from sim.core.events import ClockStep
from sim.core.faults import Faults
from sim.core.keychecks import KeyChecks
from sim.core.ledger import Ledger
from sim.core.measures import LOOK_NS, HealTimes, PushTimes
from sim.core.network import Network
from sim.core.node import Machine, Process
from sim.core.recording import Recording
from sim.core.releases import codec_of, forget_shared
from sim.core.resting import RestChecks
from sim.core.scenario import Scenario
from sim.core.shared import SharedLattice
from sim.core.signing import Signatures, public_key
from sim.core.stage import Stage
from sim.core.tidying import TidyChecks
from sim.core.unsettled import unsettled
from sim.core.upkeep import FRAME_BYTES
from sim.core.workload import Users
from sim.core.world import Identity, World

FAR_NS: Final = 60 * SECOND_NS
"""Housekeeping that is due later than this does not keep a run from being at rest."""
IN_SYNC_BYTES: Final = (
    len(wire.encode(wire.Probe(bytes(wire.DIGEST_BYTES))))
    + len(wire.encode(wire.Same()))
    + 2 * FRAME_BYTES
)
"""What an end of a link between two that hold the same sends in a period."""
LOOK_NS_PER_NODE: Final = SECOND_NS // 1000
"""Looking whether all hold the same costs by the node: a large run looks less often."""
BRANCHED_READINGS_MAX: Final = 2
"""So often in a run that is done where a chain has just come to be held in several epochs."""
READINGS: Final = 2
"""How often in a run a node's view, whatever it holds at the time, is compared to the reference."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run found. Times are virtual; None where there was nothing to measure."""

    seed: int
    sites: int
    converged: bool
    heal_s: float | None
    """the longest time from a moment when nothing was wrong any more until every node had what any
    node had at that moment"""
    bytes_per_site: int
    push_p50_s: float | None
    push_p99_s: float | None
    """from a write to each other node that nothing separated from the writer meanwhile"""
    updates: int
    """flushes that nodes have made of writes, their own and their users'"""
    reached: float | None
    """the share of updates that are at the end where they belong, of all updates and nodes"""
    copies: float | None
    """how often a node was sent each update, by pushes and by anti-entropy, on average"""
    lost: int
    resurrected: int
    violations: tuple[Violation, ...]
    frames: int
    frames_lost: int
    writes: int
    refused: int
    faults: int
    events: int
    alarms: Mapping[str, int]
    """how often each was raised"""
    fingerprint: str
    """a hash over every frame carried and every flush stored, in order: equal for equal runs"""

    @property
    def ok(self) -> bool:
        return self.converged and not self.violations

    def json(self) -> dict[str, object]:
        """What `weft sim run -o json` prints."""
        return {
            "seed": self.seed,
            "sites": self.sites,
            "converged": self.converged,
            "heal_s": self.heal_s,
            "bytes_per_site": self.bytes_per_site,
            "push_p50_s": self.push_p50_s,
            "push_p99_s": self.push_p99_s,
            "lost": self.lost,
            "resurrected": self.resurrected,
            "violations": [violation.json() for violation in self.violations],
            "updates": self.updates,
            "reached": self.reached,
            "copies": self.copies,
        }


class Simulation:
    """The parts of one run, put together. It is the probe of its nodes and of its network."""

    def __init__(
        self, scenario: Scenario, chance_of: ChanceOf, recording: Recording | None = None
    ) -> None:
        """`recording`: takes down what a report shows; the run is the same without it."""
        self.clock = Clock()
        self.violations = Violations(self.clock)
        self.ledger = Ledger()
        self.alarms: dict[str, int] = {}
        self.lost: list[str] = []
        self.resurrected: list[str] = []
        self._scenario = scenario
        self._chance_of = chance_of
        self._steps = StepChecks(self.violations, self._incompatible)
        self._push = PushTimes(self.clock)
        self._heal = HealTimes(self.clock)
        self._frames = sha256()
        identities = identities_of(scenario)
        members = len(scenario.node_names)
        joining = members + len(scenario.joining)
        self.network = Network(
            self.clock,
            chance_of("network"),
            scenario.weather,
            latencies_of(scenario, identities),
            self,
        )
        world = World(
            self.clock,
            self.network,
            chance_of,
            signatures_of(scenario, identities),
            self,
            chance_of("interest").random() < scenario.hosted_share,
            scenario.views,
            [identity.node for identity in identities],
        )
        self.clock.idle = self._idle
        self._look_ns = max(LOOK_NS, LOOK_NS_PER_NODE * len(identities))
        self._idle_again_ns = 0
        self._branched_readings = 0
        self.clock.leapt = self._leapt
        statements = statements_of(identities[:members], scenario.quota)
        self.machines = [
            Machine(identity, Disk(statements, identity.seed), world) for identity in identities
        ]
        for machine in self.machines[members:]:
            machine.state = "waiting" if machine.identity.index < joining else "copy"
        skews = [site.clock_skew_ns for site in scenario.sites for _ in range(site.gateways)]
        for machine, skew_ns in zip(self.machines, skews, strict=False):
            machine.skew_ns = skew_ns
        self._tidy = TidyChecks(self.violations, clocks_go=not _steps_clocks(scenario))
        self._keys = KeyChecks(self.violations)
        self._entitlement = EntitlementChecks(self.violations)
        self._rest = RestChecks(self.violations, chance_of("rest"))
        self._chance = chance_of("simulation")
        self.users = Users(
            scenario.workload,
            self.machines,
            self.clock,
            chance_of("users"),
            scenario.views,
            lambda: self.network.carried.frames,
        )
        if scenario.converged:
            self._begin_converged(identities[:members], statements, world.signatures)
        stage = Stage(
            scenario,
            self.machines,
            self.network,
            self.clock,
            chance_of("faults"),
            Episodes(self.clock),
            self,
        )
        self.faults = Faults(stage)
        self._recording = recording
        if recording is not None:
            recording.begin(self.clock, self.machines, self.faults.episodes)

    def _begin_converged(
        self,
        identities: Sequence[Identity],
        statements: tuple[bytes, ...],
        signatures: Signatures,
    ) -> None:
        """Let all members have on their disks what users set up before the run."""
        chance_of, views = self._chance_of, self._scenario.views
        beginning = Beginning(identities, statements, signatures, chance_of("beginning"))
        firsts = {identity.site: identity for identity in reversed(identities[:views])}
        owners = [identity for identity in identities if firsts.get(identity.site) is identity]
        beginning.register()
        beginning.lay_out(self.users.layout, owners)
        beginning.populate(self.users.layout)
        for machine in self._members():
            machine.disk = beginning.disk(machine.identity)

    # ---- what nodes and the network tell ----

    def started(self, node: int, lattice: Lattice) -> None:
        origin = lattice.origin if isinstance(lattice, SharedLattice) else None
        self._steps.started(node, lattice, origin)
        if self._recording is not None:
            self._recording.started(node)
        machine = self.machines[node]
        self.ledger.started(machine.identity.node, machine.disk)

    def stopped(self, node: int, store_failed: bool) -> None:
        self.ledger.stopped(node, self.machines[node].identity.node, store_failed)
        if self._recording is not None:
            self._recording.stopped(node)

    def tidying(self, node: int, ops: Sequence[Op]) -> None:
        machine = self.machines[node]
        assert machine.process is not None
        for op in ops:
            if isinstance(op, Delete) and machine.state == "member":
                self._tidy.deleting(machine.process, op)

    def wrote(self, node: int, ops: Sequence[Op]) -> None:
        machine = self.machines[node]
        if machine.state in ("member", "gone"):
            assert machine.process is not None
            self._keys.wrote(machine.process, public_key(machine.disk.seed))
        if machine.state == "member":
            assert machine.process is not None
            self._steps.wrote(node)
            self._tidy.wrote(machine.process, ops, machine.skew_ns)
            self.ledger.wrote(node, ops)

    def drained(self, node: int, effects: Sequence[Effect], lattice: Lattice) -> None:
        machine = self.machines[node]
        owner = machine.identity.node
        # Frames change nothing here; what others make of them is seen there.
        silent = [effect for effect in effects if not isinstance(effect, Send)]
        self._note(node, silent)
        if machine.state in ("clone", "hostile"):
            return  # nothing is promised of what it holds; others' checks see what it sends
        self.ledger.drained(node)
        assert machine.process is not None
        self._entitlement.drained(machine.process, effects, self.clock.now_ns)
        if self._recording is not None:
            self._recording.drained(node, owner, silent)
        if silent:
            self._check(machine, silent, lattice)

    def _check(self, machine: Machine, effects: Sequence[Effect], lattice: Lattice) -> None:
        """Everything that must hold at every step, of what a node is about to store and say."""
        node, owner, process = machine.identity.index, machine.identity.node, machine.process
        assert process is not None
        self._steps.drained(node, effects, lattice, process.replica.roster.members())
        self._tidy.drained(process, effects, self.clock.now_ns)
        self._keys.drained(process, effects)
        self._compare_branched(process, effects, lattice)
        self._push.drained(node, owner, effects)
        for effect in effects:
            if isinstance(effect, Alarm) and effect.event == "node.cloned":
                self.ledger.cloned(owner)

    def stored(self, node: int, batch: Sequence[Stored]) -> None:
        if self.machines[node].state not in ("clone", "hostile"):
            self.ledger.stored(node, self.machines[node].identity.node, batch)

    def frame_sent(self, sender: int, receiver: int, frame: bytes) -> None:
        self._frames.update(b"%d %d %d;" % (sender, receiver, len(frame)) + frame)
        if self.faults.hostile:
            self.faults.frame_sent(sender, receiver, frame)
        if self._recording is not None:
            self._recording.frame_sent(sender, frame)

    def link_kept(self, node: int, size_bytes: int, since_ns: int) -> None:
        if self._recording is not None:
            self._recording.link_kept(node, size_bytes, since_ns)

    def _note(self, node: int, effects: Sequence[Effect]) -> None:
        """Into the run's fingerprint; and which alarms were raised at all."""
        self._frames.update(b"%d at %d;" % (node, self.clock.now_ns))
        for effect in effects:
            if isinstance(effect, Persist):
                self._frames.update(effect.header)
            elif isinstance(effect, Alarm):
                self.alarms[effect.event] = self.alarms.get(effect.event, 0) + 1
                self._frames.update(effect.event.encode())

    # ---- what faults tell ----

    def changed(self) -> None:
        self._push.weather += 1
        if self._recording is not None:
            self._recording.weather_changed()
        running = [machine.process for machine in self._members() if machine.process is not None]
        whole = self.network.whole and len(running) == len(self._members())
        self._heal.weather_changed(
            [process.replica for process in running] if whole and not self.faults.hostile else None
        )

    def disk_lost(self, index: int) -> None:
        restored = self.machines[index]
        self._steps.suspects.add(restored.identity.node)
        disks = [machine.disk for machine in self._members() if machine is not restored]
        self.ledger.disk_lost(restored.identity.node, restored.disk, [restored.disk, *disks])

    def cloned(self, node: NodeId) -> None:
        self._steps.suspects.add(node)
        self.ledger.distrust(node)

    def hostile(self, node: NodeId) -> None:
        self._steps.hostile.add(node)
        self.ledger.distrust(node)
        self._disk_gone(node)

    def rotated(self, index: int) -> None:
        machine = self.machines[index]
        self.ledger.rotated(machine.identity.node, machine.disk)

    def parted(self, node: NodeId, forgotten: bool) -> None:
        if forgotten:
            self.ledger.distrust(node)
        else:
            self.ledger.parted(node)
        self._disk_gone(node)

    def _disk_gone(self, node: NodeId) -> None:
        others = [machine for machine in self._members() if machine.identity.node != node]
        self.ledger.disk_gone([machine.disk for machine in others])

    def _incompatible(self, node: int, peer: NodeId) -> bool:
        mine = self.machines[node].process
        return mine is not None and any(
            mine.codec.speaks.common(codec_of(other.release).speaks) is None
            for other in self.machines
            if other.identity.node == peer
        )

    def _members(self) -> list[Machine]:
        """Those that must run, and hold the same, at the end."""
        return [machine for machine in self.machines if machine.state == "member"]

    def _leapt(self, ns: int) -> None:
        """Nothing but the time has passed."""
        sent = self.network.idled(ns, PERIOD_NS, IN_SYNC_BYTES)
        if self._recording is not None:
            self._recording.idled(sent, self.clock.now_ns - ns)

    # ---- the run ----

    def run(self, seed: int) -> Result:
        """Let it all happen. `seed` is only passed on to the result."""
        rests = False
        try:
            rests = self._live_through()
        except Exception as error:  # whatever it is, the seed that shows it is what people need
            self.violations.add("no node fails", _where(error))
        if rests:
            self._compare_expected()
        return self.result(seed, rests)

    def result(self, seed: int, rests: bool = False) -> Result:
        """What is known now: once, after `run`, or instead of that when it was interrupted."""
        scenario, carried = self._scenario, self.network.carried
        self.network.count()
        if self._recording is not None:
            self._recording.end()
        return Result(
            seed=seed,
            sites=len(scenario.sites),
            converged=rests,
            heal_s=self._heal.longest_s(),
            bytes_per_site=self._bytes_per_site(),
            push_p50_s=self._push.quantile_s(0.5),
            push_p99_s=self._push.quantile_s(0.99),
            updates=self._push.updates,
            reached=self._reached(),
            copies=self._copies(),
            lost=len(self.lost),
            resurrected=len(self.resurrected),
            violations=tuple(self.violations.found),
            frames=carried.frames,
            frames_lost=carried.frames_lost,
            writes=self.users.writes,
            refused=self.users.refused,
            faults=self.faults.count,
            events=self.clock.events,
            alarms=dict(sorted(self.alarms.items())),
            fingerprint=self._frames.hexdigest(),
        )

    def _live_through(self) -> bool:
        """The whole run; whether the mesh came to rest."""
        scenario = self._scenario
        for machine in self._members():
            machine.start()
        if not scenario.converged:
            self.users.set_up()
        self.users.run(scenario.duration_ns)
        self.faults.schedule()
        for _ in range(READINGS):
            at_ns = int(scenario.duration_ns * self._chance.random())
            self.clock.at(
                at_ns, partial(self._compare_reading, below(self._chance, len(self.machines)))
            )
        self.clock.run(scenario.duration_ns)
        self.faults.end()
        rests = self._come_to_rest(scenario.duration_ns + scenario.quiet_ns)
        if rests:
            self._rest.run(self._members())
            self._compare_ledger()
        else:
            self._say_what_is_unsettled()
        return rests

    def _compare_expected(self) -> None:
        """What the scenario says beside what always holds."""
        expected = self._scenario.expected
        for name, found, most in (
            ("heal_s", self._heal.longest_s(), expected.heal_s_max),
            ("push_p99_s", self._push.quantile_s(0.99), expected.push_p99_s_max),
            ("bytes_per_site", self._bytes_per_site(), expected.bytes_per_site_max),
            ("copies", self._copies(), expected.copies_max),
        ):
            if most is not None and (found is None or found > most):
                said = "not measured" if found is None else str(found)
                self.violations.add("as the scenario expects", f"{name}: {said}, not {most}")
        for name, found, least in (
            ("writes", self.users.writes, expected.writes_min),
            ("frames", self.network.carried.frames, expected.frames_min),
            ("faults", self.faults.count, expected.faults_min),
        ):
            if found < least:
                self.violations.add("as the scenario expects", f"{name}: {found}, not {least}")
        for alarm in expected.alarms:
            if alarm not in self.alarms:
                self.violations.add("as the scenario expects", f"no alarm {alarm}")

    def _reached(self) -> float | None:
        replicas = [machine.process.replica for machine in self._members() if machine.process]
        return self._push.reached(replicas)

    def _copies(self) -> float | None:
        """Over the nodes other than an update's writer."""
        wanted = self._push.updates * (len(self._members()) - 1)
        copies = sum(machine.copies for machine in self.machines)
        return round(copies / wanted, 3) if wanted else None

    def _bytes_per_site(self) -> int:
        self.network.count()
        sent = sum(self.network.carried.bytes_by_node.values())
        return sent // len(self._scenario.sites)

    def _compare_branched(
        self, process: Process, effects: Sequence[Effect], lattice: Lattice
    ) -> None:
        if self._branched_readings >= BRANCHED_READINGS_MAX or not process.sees:
            return
        for effect in effects:
            if isinstance(effect, Persist) and lattice.is_branched(effect.chain):
                self._branched_readings += 1
                self._rest.reference(process)
                return

    def _compare_reading(self, node: int) -> None:
        process = self.machines[node].process
        if process is not None and process.sees:
            self._rest.reference(process)

    def _come_to_rest(self, until_ns: int) -> bool:
        """Whether all became the same, and nothing was left to do, in time."""
        look_ns = 0
        while not self.violations.full:
            if self.clock.now_ns >= look_ns:
                look_ns = self.clock.now_ns + self._look_ns
                if not self.users.at_work and self._equal() and self._quiet():
                    return True
            if not self.clock.step(until_ns):
                return self._equal() and self._quiet()
        return False

    def _idle(self) -> bool:
        """Whether linked nodes have nothing to tell each other: frames under way are old news."""
        if self.clock.now_ns < self._idle_again_ns:
            return False
        idle = self._nothing_to_tell()
        if not idle:
            self._idle_again_ns = self.clock.now_ns + self._look_ns
        elif self._recording is not None:
            self._recording.settled()
        return idle

    def _nothing_to_tell(self) -> bool:
        if self.network.refusals_lapse:
            return False
        processes = [machine.process for machine in self.machines]
        for process in processes:
            if process is not None and not process.settled:
                return False
        digests = [None if process is None else process.digests() for process in processes]
        for a, b in self.network.links():
            if digests[a] == digests[b]:
                continue
            one, other = processes[a], processes[b]
            if one is not None and other is not None and one.differ_from(other):
                return False
        return True

    def _equal(self) -> bool:
        """Whether all hold the same."""
        processes = [machine.process for machine in self._members()]
        running = [process for process in processes if process is not None]
        if len(running) < len(processes):
            return False
        digests = [process.digests() for process in running]
        if not digests or digests.count(digests[0]) == len(digests):
            return True
        by_shard: dict[str, set[bytes]] = {}
        shards = {shard for found in digests for shard in found}
        for process, found in zip(running, digests, strict=True):
            for shard in shards:
                if shard == "roster" or process.replica.keeps(shard):
                    by_shard.setdefault(shard, set()).add(found.get(shard, b""))
        return all(len(found) == 1 for found in by_shard.values())

    def _quiet(self) -> bool:
        """Whether nothing is on its way to any disk, and nothing is about to be written."""
        return all(
            machine.process is not None and machine.process.at_rest(FAR_NS)
            for machine in self._members()
        )

    def _say_what_is_unsettled(self) -> None:
        quiet_ns = self._scenario.quiet_ns
        for words in unsettled(self._members(), self.network, quiet_ns, FAR_NS):
            self.violations.add("comes to rest in time", words)

    def _compare_ledger(self) -> None:
        lattices = []
        compared: list[dict[str, bytes]] = []
        for machine in self._members():
            assert machine.process is not None
            process = machine.process
            if process.interests is None:
                if process.digests() in compared:
                    continue  # its entries were found equal to those of another
                compared.append(process.digests())
            lattices.append((machine.identity.name, process.replica.lattice, process.hears))
        self.lost, self.resurrected = self.ledger.compare(lattices)
        for words in self.lost:
            self.violations.add("nothing written is lost", words)
        for words in self.resurrected:
            self.violations.add("nothing deleted comes back", words)


def run(
    scenario: Scenario, seed: int, chance_of: ChanceOf, recording: Recording | None = None
) -> Result:
    """Run a scenario once. `chance_of` gives the streams of chance of that seed."""
    forget_shared()
    return Simulation(scenario, chance_of, recording).run(seed)


def _steps_clocks(scenario: Scenario) -> bool:
    stepped = any(isinstance(event, ClockStep) for event in scenario.events)
    return stepped or scenario.faults.clock_steps > 0


def _where(error: Exception) -> str:
    """An exception in one line, with the places of the code it came through last."""
    places = [
        f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)[-3:]
    ]
    return f"{type(error).__name__}: {error} ({' > '.join(places)})"
