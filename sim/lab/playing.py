"""Real nodes play a scenario: links go and come, processes die and start, users ask, in real time.

A scenario's times are those of the clock on the wall here. Whatever ends a play early, the lab it
was played in is gone afterwards.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

from mesh.core.errors import Refused, RequestError
from mesh.node.backup import restore
from sim.core.clock import seconds
from sim.core.events import Crash, Cut, Flap, Join, Oneway, Part, Rotate, Slow
from sim.core.scenario import Scenario
from sim.lab import hearing, processes
from sim.lab.asking import Users
from sim.lab.hearing import Ears, Heads
from sim.lab.lab import Lab
from sim.lab.nodes import Node
from sim.lab.script import Script, words_of
from sim.lab.signals import undisturbed
from sim.lab.topology import GATEWAYS_PER_SITE_MAX, LabSpec, Topology, plan
from sim.lab.weather import LinkFault, Wan, Weather
from sim.progress import Show

AGAIN_S: Final = 1.0
FAREWELL_S: Final = 3.0
"""So long a node that left goes on, as in the simulator."""
REQUEST_TIMEOUT_S: Final = 10.0
PATIENCE_S: Final = 60.0
"""A node may be starting just now, in a thread of its own."""
EVENTS_AT_ONCE: Final = 8
FLAPS_MAX: Final = 1000


Cue: TypeAlias = tuple[float, str, bool, Callable[[], None]]
"""(at_s, in words, whether it takes its time, what)"""
REST_TRIES: Final = 2
"""So often in a row all must hold the same."""


@dataclass(frozen=True, slots=True)
class Live:
    """What real nodes did; as `sim.core.simulation.Result`."""

    converged: bool
    heal_s: float | None
    bytes_per_site: int
    push_p50_s: float | None
    push_p99_s: float | None
    lost: int
    resurrected: int
    writes: int
    refused: int
    pushes: int
    """times that the push figures are made of"""
    unplayed: tuple[str, ...] = ()
    """events that did not come about while there was time, and why"""
    unsettled: tuple[str, ...] = ()
    """what was not the same everywhere, or not done, when the time was over"""


def play(script: Script, name: str, progress: Callable[[str], None], show: Show) -> Live:
    """Make a lab of that name, play in it, and take it down.

    Raises:
        Refused: there is such a lab.
        NotReady: the machine or a node fails.
    """
    joining = [script.gateways[node] for node, _ in script.scenario.joining]
    ours = True
    try:
        try:
            lab = Lab.up_as(topology_of(script, name), progress, joining)
        except Refused:
            ours = False  # somebody else's has the name
            raise
        wan = Wan(lab.topology)
        try:
            return _Play(script, lab, wan, progress, show).run()
        finally:
            wan.end()
    finally:
        # Also when it was interrupted on its way out of `up_as`, where that has done its part.
        with undisturbed():
            if ours:
                progress("taking everything down")
                Lab.take_down(name, PATIENCE_S)


def topology_of(script: Script, name: str) -> Topology:
    """A lab with the gateways that the scenario has or will have, and no pods."""
    names = set(script.gateways.values())
    gateways = max(int(gateway[1:]) for gateway in names)
    spec = LabSpec(name, len(script.sites), min(gateways, GATEWAYS_PER_SITE_MAX), pods=0, vpcs=0)
    planned = plan(spec)
    return replace(
        planned,
        gateways=tuple(gateway for gateway in planned.gateways if gateway.name in names),
        subnets=(),
        interest="hosted" if script.scenario.hosted_share else "all",
    )


class _Play:
    """One play in a lab that is up."""

    def __init__(
        self, script: Script, lab: Lab, wan: Wan, tell: Callable[[str], None], show: Show
    ) -> None:
        self._script = script
        self._scenario = script.scenario
        self._lab = lab
        self._lab_lock = threading.Lock()
        self._wan = wan
        self._weather = Weather(script, lab.topology, wan)
        self._tell = tell
        self._show = show
        self._changes = 0
        """of what is wrong"""
        self._state_lock = threading.RLock()
        nodes = {gateway.name: lab.node(gateway.name) for gateway in lab.topology.gateways}
        self._nodes = nodes
        joining = {script.gateways[node] for node, _ in script.scenario.joining}
        self._waiting = [name for name in nodes if name in joining]
        self._members = [name for name in nodes if name not in joining]
        self._founder = self._members[0]
        self._down: set[str] = set()
        self._suspect: set[str] = set()
        """gateways that lost their disk, or went: nothing is promised of what they wrote last"""
        self._dropped: set[str] = set()
        """gateways of which nothing counts any more: their chains go everywhere, soon"""
        self._healed_s: list[float] = []
        self._unplayed: list[str] = []
        self._unsettled: list[str] = []
        self._over = threading.Event()
        self._began_s = 0.0
        self._ears = Ears(lambda: self._changes)
        self._users = Users(nodes, self._due)
        self._pool = ThreadPoolExecutor(EVENTS_AT_ONCE)
        self._under_way: list[Future[None]] = []

    def run(self) -> Live:
        try:
            return self._run()
        finally:
            self._over.set()
            self._ears.end()
            # Who still waits for a node gets its answer when the lab goes.
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> Live:
        script, duration_s = self._script, seconds(self._scenario.duration_ns)
        for name in self._members:
            self._ears.listen(self._nodes[name])
        current = self._lab.state.processes
        self._show(0.0, "VPCs and subnets")
        self._users.found(
            script.founding, [(self._nodes[name], current[name]) for name in self._members]
        )
        first_s = min((request.at_s for request in script.requests), default=0.0)
        self._began_s = time.monotonic() - first_s
        self._users.begin(script.requests)
        for at_s, words, slow, action in sorted(self._timeline(), key=lambda row: row[0]):
            self._wait_until(min(at_s, duration_s))
            if at_s >= duration_s:
                break
            self._show(at_s, words)
            self._tell(f"{at_s:g} s: {words}")
            if slow:
                told = f"{words} at {at_s:g} s"
                self._under_way.append(self._pool.submit(self._carefully, told, action))
            else:
                action()
        self._wait_until(duration_s)
        converged = self._come_to_rest()
        return self._figures(converged)

    def _due(self, at_s: float) -> bool:
        while not self._over.is_set():
            left_s = self._began_s + at_s - time.monotonic()
            if left_s <= 0:
                return True
            self._over.wait(left_s)
        return False

    def _wait_until(self, at_s: float) -> None:
        """Show how far it is meanwhile."""
        while (left_s := self._began_s + at_s - time.monotonic()) > 0:
            time.sleep(min(left_s, 0.25))
            now_s = time.monotonic() - self._began_s
            self._show(now_s, f"{now_s:.0f} of {seconds(self._scenario.duration_ns):g} s")

    # ---- what happens when ----

    def _timeline(self) -> Iterator[Cue]:
        for event in self._scenario.events:
            at_s, words = seconds(event.at_ns), words_of(event)
            match event:
                case Cut() | Oneway() | Slow():
                    yield from self._link_event(event, at_s, words)
                case Flap():
                    yield from self._flaps(event, words)
                case Crash():
                    yield from self._crash_event(event, at_s, words)
                case Join():
                    name = self._waiting_at(event.site)
                    yield at_s, words, True, partial(self._join, name)
                case Rotate():
                    name = self._script.gateways[event.node]
                    yield at_s, words, True, partial(self._rotate, name, event.force)
                case Part():
                    yield at_s, words, True, partial(self._part, event)

    def _link_event(self, event: Cut | Oneway | Slow, at_s: float, words: str) -> Iterator[Cue]:
        fault = LinkFault(words, _pairs(event, self._scenario), getattr(event, "factor", None))
        yield at_s, words, False, partial(self._begin, fault)
        if event.for_ns is not None:
            end_s = at_s + seconds(event.for_ns)
            yield end_s, f"{words}: over", False, partial(self._end, fault)

    def _flaps(self, event: Flap, words: str) -> Iterator[Cue]:
        """Cut for the second half of every period."""
        until_ns = min(event.at_ns + event.for_ns, self._scenario.duration_ns)
        pairs = frozenset([(event.a, event.b), (event.b, event.a)])
        for i in range(FLAPS_MAX):
            began_ns = event.at_ns + i * event.period_ns
            if began_ns >= until_ns:
                return
            fault = LinkFault(f"{words} {i}", pairs, None)
            cut_s = seconds(began_ns + event.period_ns // 2)
            yield cut_s, words, False, partial(self._begin, fault)
            end_s = seconds(began_ns + event.period_ns)
            yield end_s, words, False, partial(self._end, fault)

    def _crash_event(self, event: Crash, at_s: float, words: str) -> Iterator[Cue]:
        name = self._script.gateways[event.node]
        copy = self._lab.directory / f"{name}-{event.at_ns}.snapshot"
        back = event.restore_ns is not None
        if event.restore_ns is not None:
            words_then = f"copy of {event.node}'s disk"
            yield seconds(event.restore_ns), words_then, True, partial(self._save, name, copy)
        yield at_s, words, True, partial(self._kill, name)
        again_s = at_s + seconds(event.for_ns)
        again = partial(self._start, name, copy if back else None)
        yield again_s, f"{event.node} starts", True, again

    def _waiting_at(self, site: str) -> str:
        letter = self._script.sites[site]
        name = next(name for name in self._waiting if name[0] == letter)
        self._waiting.remove(name)
        return name

    # ---- links ----

    def _begin(self, fault: LinkFault) -> None:
        with self._state_lock:
            self._weather.begin(fault)
            self._changed()

    def _end(self, fault: LinkFault) -> None:
        with self._state_lock:
            self._weather.end(fault)
            self._changed()

    def _changed(self) -> None:
        """Something went wrong or well: when nothing is wrong now, see how long it takes until all
        have what any has."""
        self._changes += 1
        if self._weather.whole and not self._down:
            changes, members = self._changes, [self._nodes[name] for name in self._members]
            self._under_way.append(self._pool.submit(self._time_heal, changes, members))

    def _time_heal(self, changes: int, members: list[Node]) -> None:
        since_s = time.monotonic()
        wanted: Heads = {}
        left = list(members)
        while changes == self._changes and time.monotonic() - since_s < self._quiet_s:
            try:
                if not wanted:
                    wanted = hearing.greatest([hearing.heads(node.api) for node in left])
                wanted = {at: head for at, head in wanted.items() if at[0] not in self._dropped}
                left = [n for n in left if not hearing.includes(hearing.heads(n.api), wanted)]
            except RequestError:
                pass  # one starts; it is asked again
            if wanted and not left:
                self._healed_s.append(time.monotonic() - since_s)
                return
            time.sleep(hearing.LOOK_S)

    @property
    def _quiet_s(self) -> float:
        return seconds(self._scenario.quiet_ns)

    # ---- nodes ----

    def _carefully(self, words: str, action: Callable[[], None]) -> None:
        """Again and again until it goes, or the time of faults is over."""
        why = "the time of events was over before its turn"
        while not self._over.is_set():
            try:
                action()
                return
            except RequestError as error:
                why = str(error)
                self._over.wait(AGAIN_S)
        self._note_unplayed(f"{words}: {why}")

    def _note_unplayed(self, words: str) -> None:
        with self._state_lock:
            self._unplayed.append(words)

    def _save(self, name: str, copy: Path) -> None:
        self._nodes[name].api.post("/v1/snapshot", {"file": str(copy)})

    def _kill(self, name: str) -> None:
        with self._state_lock:
            if name in self._down or name not in self._members:
                return
            self._down.add(name)
            self._changed()
        with self._lab_lock:
            self._lab.kill(name)

    def _start(self, name: str, copy: Path | None) -> None:
        if name not in self._members:
            return
        with self._lab_lock:
            if copy is not None and not copy.exists():
                self._note_unplayed(f"restore {name}: there was no time to copy its disk before")
            elif copy is not None and name not in self._suspect:
                directory = self._nodes[name].directory
                shutil.rmtree(directory)
                restore(copy, directory)
                self._suspect.add(name)
            self._lab.start(name)
        with self._state_lock:
            self._down.discard(name)
            self._changed()

    def _join(self, name: str) -> None:
        with self._lab_lock:
            self._lab.join(name, self._founder)
        with self._state_lock:
            self._members.append(name)
            self._ears.listen(self._nodes[name])
            self._changed()

    def _rotate(self, name: str, force: bool) -> None:
        self._nodes[name].api.post("/v1/rotate", {"force": force})

    def _part(self, event: Part) -> None:
        name = self._script.gateways[event.node]
        founder = self._nodes[self._founder].api
        if event.kind in ("forget", "compromise"):
            self._dropped.add(name)
        if event.kind == "forget":
            founder.post(f"/v1/members/{name}/forget", {})
            return
        if event.kind == "leave":
            self._nodes[name].api.post("/v1/leave", {})
        else:
            if event.kind == "retire":
                self._off(name)
            compromised = {"compromised": True} if event.kind == "compromise" else {}
            founder.post(f"/v1/members/{name}/retire", compromised)
        with self._state_lock:
            self._suspect.add(name)
            if name in self._members:
                self._members.remove(name)
            self._down.discard(name)
            self._changed()
        if event.kind != "retire":
            time.sleep(FAREWELL_S)
            self._off(name)

    def _off(self, name: str) -> None:
        """End its process, if it runs."""
        with self._lab_lock:
            process = self._lab.state.processes[name]
            if processes.alive(process):
                self._lab.kill(name)

    # ---- the end ----

    def _come_to_rest(self) -> bool:
        """Heal all, start all; whether all hold the same in time."""
        self._over.set()
        self._users.end(REQUEST_TIMEOUT_S)
        with self._state_lock:
            self._weather.heal()
            down = sorted(self._down)
        for name in down:
            with self._lab_lock:
                self._lab.start(name)
            with self._state_lock:
                self._down.discard(name)
        with self._state_lock:
            self._changed()
        deadline_s = time.monotonic() + self._quiet_s
        members = [self._nodes[name] for name in self._members]
        agreed = 0
        while time.monotonic() < deadline_s:
            self._show(seconds(self._scenario.duration_ns), "coming to rest")
            try:
                self._unsettled = hearing.differing(members)
            except RequestError as error:
                self._unsettled = [f"not asked: {error}"]
            if not all(future.done() for future in self._under_way):
                self._unsettled.append("events that had begun were still under way")
            for future in filter(Future.done, self._under_way):
                future.result()  # what none of them should raise
            agreed = agreed + 1 if not self._unsettled else 0
            if agreed >= REST_TRIES:
                return True
            time.sleep(hearing.LOOK_S)
        return False

    def _figures(self, converged: bool) -> Live:
        push_s = self._ears.push_s()
        sent = sum(self._wan.sent_bytes().values())
        lost, resurrected = self._compare_claims() if converged else (0, 0)
        return Live(
            converged=converged,
            heal_s=round(max(self._healed_s), 3) if self._healed_s else None,
            bytes_per_site=sent // len(self._scenario.sites),
            push_p50_s=hearing.quantile_s(push_s, 0.5),
            push_p99_s=hearing.quantile_s(push_s, 0.99),
            lost=lost,
            resurrected=resurrected,
            writes=self._users.asked - self._users.refused,
            refused=self._users.refused,
            pushes=len(push_s),
            unplayed=tuple(self._unplayed),
            unsettled=() if converged else tuple(self._unsettled),
        )

    def _compare_claims(self) -> tuple[int, int]:
        """How many endpoints are not there that must be, and the other way round: of those that
        one gateway alone ever claimed, which has its disk and answered the last request."""
        there = {
            (row["vpc"], row["ip"], row["node"])
            for name in self._members
            for row in self._nodes[name].api.get("/v1/endpoints")
        }
        lost = resurrected = 0
        for (vpc, ip), calls in self._users.claims.items():
            gateways = {gateway for _, gateway in calls}
            if len(gateways) > 1 or gateways & self._suspect:
                continue
            (gateway,) = gateways
            if ((vpc, ip), gateway) in self._users.unknown:
                continue
            removed = calls[-1][0] == "remove_endpoint"
            if removed and (vpc, ip, gateway) in there:
                resurrected += 1
            elif not removed and (vpc, ip, gateway) not in there:
                lost += 1
        return lost, resurrected


def _pairs(event: Cut | Oneway | Slow, scenario: Scenario) -> frozenset[tuple[str, str]]:
    """(site, site) of the links that are meant."""
    match event:
        case Oneway():
            return frozenset([(event.a, event.b)])
        case Slow():
            return frozenset([(event.a, event.b), (event.b, event.a)])
        case Cut():
            sites = [*(s.name for s in scenario.sites), *(s for _, s in scenario.joining)]
            side = {site: i for i, group in enumerate(event.groups) for site in group}
            rest = len(event.groups) - 1  # a site that joins later is with the rest
            return frozenset(
                (a, b) for a in sites for b in sites if side.get(a, rest) != side.get(b, rest)
            )
