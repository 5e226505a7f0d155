"""What a scenario asks of real nodes: the requests of its users, taken from a simulated run of it,
under the names of the lab's sites and gateways; and what of it cannot be played at all.

A lab's sites are a, b, c, … in the order of the file, and their gateways a1, a2, …
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final

from mesh.core.errors import BadInput
from mesh.core.importing import EndpointSpec
from mesh.core.ops import Op
from sim.core.clock import seconds
from sim.core.episodes import sides_text
from sim.core.events import (
    ClockStep,
    Clone,
    Crash,
    Cut,
    Event,
    Flap,
    Join,
    Oneway,
    Part,
    Rotate,
    Slow,
    Trouble,
    Upgrade,
)
from sim.core.node import Process
from sim.core.releases import PRESENT
from sim.core.scenario import Scenario
from sim.core.simulation import Result, Simulation
from sim.seeding import chance_of

SITES_MAX: Final = 8
NODES_MAX: Final = 12
"""Each is a process of about 100 MB and a core while it starts."""
DURATION_S_MAX: Final = 1800.0
ENDPOINTS_MAX: Final = 2000
RATE_MAX: Final = 50.0
"""Requests to a node's API, from one process that waits for each answer."""

PLAYED: Final = (
    "add_vpc", "set_vpc", "remove_vpc", "add_subnet", "remove_subnet", "add_endpoint",
    "remove_endpoint", "move_endpoint", "resolve_conflict", "add_peering", "remove_peering",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody asks of a node, in the lab's names. `call` is a method of the writer."""

    at_s: float
    gateway: str
    call: str
    arguments: Mapping[str, Any]


@dataclass(slots=True)
class Script:
    """A scenario for real nodes, and what the simulator made of it."""

    scenario: Scenario
    simulated: Result
    sites: Mapping[str, str]
    """name in the scenario -> in the lab"""
    gateways: Mapping[str, str]
    founding: list[Request] = field(default_factory=list)
    """VPCs and their subnets: before anything else"""
    requests: list[Request] = field(default_factory=list)
    unplayed: dict[str, int] = field(default_factory=dict)
    """what users did in the simulation that no API offers -> how often"""


def script_of(scenario: Scenario, seed: int) -> Script:
    """Run the scenario in the simulator. Raises BadInput where real nodes cannot play it."""
    check_playable(scenario)
    sites = list(
        dict.fromkeys([*(s.name for s in scenario.sites), *(s for _, s in scenario.joining)])
    )
    letters = {site: chr(ord("a") + i) for i, site in enumerate(sites)}
    gateways = {}
    for name in (*scenario.node_names, *(name for name, _ in scenario.joining)):
        site, _, number = name.rpartition("-")
        gateways[name] = f"{letters[site]}{number}"
    if len(sites) > SITES_MAX or len(gateways) > NODES_MAX:
        raise BadInput(
            f"{len(sites)} sites and {len(gateways)} gateways: a lab plays up to {SITES_MAX} and"
            f" {NODES_MAX}; write a smaller [small] and add --small"
        )
    simulation = Simulation(scenario, chance_of(seed))
    taker = _Taker(simulation, letters, gateways)
    simulation.users.heard = taker.heard
    result = simulation.run(seed)
    script = Script(scenario, result, letters, gateways, unplayed=taker.unplayed)
    for request in taker.taken:
        first = request.call in ("add_vpc", "add_subnet") and not _extra(request)
        (script.founding if first else script.requests).append(request)
    claims = sum(request.call == "add_endpoint" for request in script.requests)
    if claims > ENDPOINTS_MAX:
        raise BadInput(f"{claims} claims of endpoints: a lab plays up to {ENDPOINTS_MAX}")
    return script


def _extra(request: Request) -> bool:
    return str(request.arguments["name"]).startswith("extra-")


class _Taker:
    """Takes down what users ask in a simulated run."""

    def __init__(
        self, simulation: Simulation, sites: Mapping[str, str], gateways: Mapping[str, str]
    ) -> None:
        self.taken: list[Request] = []
        self.unplayed: dict[str, int] = {}
        self._clock = simulation.clock
        self._sites, self._gateways = sites, gateways

    def heard(self, process: Process, ask: Callable[..., Sequence[Op]]) -> None:
        if not isinstance(ask, partial):
            self._leave_out("what no API takes")
            return
        call = ask.func.__name__
        given = inspect.signature(ask.func).bind_partial(*ask.args, **ask.keywords).arguments
        if isinstance(spec := given.get("spec"), EndpointSpec):
            said = {key: value for key, value in spec._asdict().items() if value}
            given = {**given, **said}
            del given["spec"]
        if call not in PLAYED or ("sites" in given and call == "set_vpc"):
            self._leave_out(f"{call} sites" if call == "set_vpc" else call)
            return
        arguments = {key: self._named(process, key, value) for key, value in given.items()}
        at_s = seconds(self._clock.now_ns)
        gateway = self._gateways[process.identity.name]
        self.taken.append(Request(at_s, gateway, call, arguments))

    def _leave_out(self, what: str) -> None:
        self.unplayed[what] = self.unplayed.get(what, 0) + 1

    def _named(self, process: Process, key: str, value: Any) -> Any:
        """A VPC by its name, a site and a node by those of the lab."""
        if key in ("vpc", "a", "b") or (key == "name" and value in process.view.vpcs):
            vpc = process.view.vpcs.get(value)
            return vpc.name if vpc is not None else value
        if key == "key":
            kind, vpc_text, *rest = value.split("/")
            vpc = process.view.vpcs.get(vpc_text)
            return "/".join([kind, vpc.name if vpc is not None else vpc_text, *rest])
        if key == "sites":
            return [self._sites[site] for site in value]
        if key == "keep":
            return self._gateways.get(value, value)
        return list(value) if isinstance(value, tuple) else value


# ---- what cannot be played ----


def check_playable(scenario: Scenario) -> None:
    """Raises BadInput, naming what real nodes cannot play and what to do about it."""
    for field_ in fields(scenario.faults):
        key, lengths = field_.name, ("cut_ns", "down_ns")
        if key not in lengths and getattr(scenario.faults, key):
            raise BadInput(
                f"[faults] {key}: what is left to chance is not played live: write an [[event]]"
                " with its time for each, or set it to 0"
            )
    for site in scenario.sites:
        if site.clock_skew_ns or site.release != PRESENT:
            what = "clock_skew_s" if site.clock_skew_ns else "release"
            raise BadInput(f"[[site]] {site.name} {what}: is not played live: leave it out")
    weather = scenario.weather
    if weather.mode != "stream" or weather.reset:
        what = "reset" if weather.mode == "stream" else "mode"
        raise BadInput(f"[network] {what}: real nodes have TCP: leave it out")
    if scenario.converged:
        raise BadInput('start: real nodes start empty: leave it out, or write "empty"')
    if scenario.views < len(scenario.node_names):
        raise BadInput("views: real nodes all keep views: leave it out")
    if scenario.hosted_share not in (0.0, 1.0):
        raise BadInput('interest: say which, "every" or "hosted"')
    for event in scenario.events:
        why = _unplayable(event, scenario)
        if why:
            at_s = seconds(event.at_ns)
            raise BadInput(f"[[event]] {words_of(event)} at {at_s:g} s: is not played live: {why}")
    for what, found, most in (
        ("duration_s", seconds(scenario.duration_ns), DURATION_S_MAX),
        ("[workload] rate_per_s", scenario.workload.rate_per_s, RATE_MAX),
    ):
        if found > most:
            raise BadInput(f"{what}: {found:g}: a lab plays up to {most:g}")


def _unplayable(event: Event, scenario: Scenario) -> str:
    founder = scenario.node_names[0]
    match event:
        case Trouble(kind="stall"):
            return "a real process that reads nothing misses its heartbeats, too: write crash"
        case Trouble():
            return "real disks are not damaged, nor keys stolen, on purpose: leave it out"
        case ClockStep():
            return "all nodes have this machine's clock: leave it out"
        case Upgrade():
            return "there is one release here: write crash"
        case Clone():
            return "two machines of one address are not made: leave it out"
        case Part(node=node) if node == founder:
            return f"{founder} is the only admin: let another gateway go"
        case _:
            return ""


def words_of(event: Event) -> str:
    """An event in a line."""
    match event:
        case Cut():
            return f"cut {sides_text(event.groups)}"
        case Oneway():
            return f"oneway {event.a} → {event.b}"
        case Slow():
            return f"slow {event.a} | {event.b}, {event.factor:g} ×"
        case Flap():
            return f"flap {event.a} | {event.b}"
        case Crash():
            return f"{'crash' if event.restore_ns is None else 'restore'} {event.node}"
        case ClockStep():
            return f"clock {event.node}"
        case Clone():
            return f"clone {event.node}"
        case Join():
            return f"join {event.site}"
        case Upgrade():
            return f"upgrade {event.node}"
        case Rotate():
            return f"rotate {event.node}"
        case Trouble() | Part():
            return f"{event.kind} {event.node}"
