"""Scenarios: who takes part, how the network behaves, what users do, what goes wrong and when.

`parse` takes what a TOML reader makes of a file and answers a checked `Scenario`. Every mistake is
`BadInput` with the place in the file, what is wrong, and what to write. Reading files is the
shell's job. Times are virtual seconds from the start; latencies are one way.

    duration_s = 60            # users write and things go wrong for so long; then all heals
    quiet_s = 90               # so soon after that everything must be the same everywhere
    sites = 3                  # a, b, c; or one [[site]] each: name, gateways, clock_skew_s

    [network]                  # see Weather; latency_ms between sites, link = [["a", "b", 80], …]
    [workload]                 # see Workload
    [faults]                   # by chance, see Faults
    [[event]]                  # at_s, and one of cut, crash, restore, flap; for_s
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from mesh.core.errors import BadInput
from sim.core.clock import MS_NS, SECOND_NS, ns_of
from sim.core.network import Weather

SITES_MAX = 1000
GATEWAYS_MAX = 16
NODES_MAX = 1000
"""What a run of minutes on one machine can carry."""
DURATION_S_MAX = 400 * 24 * 3600.0
RATE_MAX = 1000.0
EVENTS_MAX = 10_000
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

OpKind: TypeAlias = Literal[
    "create",
    "delete",
    "recreate",
    "move",
    "claim",
    "resolve",
    "evict",
    "vpc",
    "contend",
    "admit",
    "subnet",
    "peering",
    "trespass",
]
MIX: dict[OpKind, float] = {
    "create": 4.0,
    "delete": 2.0,
    "recreate": 2.0,
    "move": 1.0,
    "claim": 1.0,
    "resolve": 0.5,
    "evict": 0.5,
    "vpc": 0.5,
    "contend": 0.3,
    "admit": 0.2,
    "subnet": 0.5,
    "peering": 0.5,
    "trespass": 0.3,
}


@dataclass(frozen=True, slots=True)
class Site:
    name: str
    gateways: int = 1
    clock_skew_ns: int = 0


@dataclass(frozen=True, slots=True)
class Workload:
    """What users do. `mix` weighs the kinds of `MIX`; `addresses` bounds the addresses used in a
    subnet, so that few of them make for many meetings."""

    vpcs: int = 2
    endpoints: int = 2
    """claimed at the start by each gateway in each VPC"""
    addresses: int = 6
    rate_per_s: float = 2.0
    mix: Mapping[OpKind, float] = field(default_factory=lambda: dict(MIX))


@dataclass(frozen=True, slots=True)
class Faults:
    """How many of each happen at times and places left to chance, and how long they last."""

    cuts: int = 0
    cut_ns: int = 20 * SECOND_NS
    oneway_cuts: int = 0
    crashes: int = 0
    restores: int = 0
    """crashes after which the disk is an earlier copy of itself"""
    down_ns: int = 10 * SECOND_NS


@dataclass(frozen=True, slots=True)
class Cut:
    """Groups of sites that do not reach each other; a site in no group is a group with the rest."""

    at_ns: int
    groups: tuple[tuple[str, ...], ...]
    for_ns: int | None
    """None: until the end"""


@dataclass(frozen=True, slots=True)
class Crash:
    """A node's process ends and starts again after `for_ns`; `restore_ns`: with a disk of then."""

    at_ns: int
    node: str
    for_ns: int
    restore_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Flap:
    """Two sites are cut off from each other for the second half of every period."""

    at_ns: int
    a: str
    b: str
    period_ns: int
    for_ns: int


Event: TypeAlias = Cut | Crash | Flap


@dataclass(frozen=True, slots=True)
class Scenario:
    """A checked scenario. Nodes are named SITE-N, from 1."""

    duration_ns: int
    quiet_ns: int
    sites: tuple[Site, ...]
    latency_ns: int
    links: Mapping[tuple[str, str], int]
    """(site, site) -> latency one way, in both orders, where it is not `latency_ns`"""
    weather: Weather
    workload: Workload
    faults: Faults
    events: tuple[Event, ...]
    real_signatures: bool = False
    """Ed25519 and no stand-in: what a run with forgers needs"""

    @property
    def node_names(self) -> tuple[str, ...]:
        return tuple(f"{site.name}-{i}" for site in self.sites for i in range(1, site.gateways + 1))


def parse(raw: Mapping[str, Any]) -> Scenario:
    """The scenario in a file's tables. Raises BadInput."""
    top = _Table("", raw)
    duration_s = top.number("duration_s", 60.0, low=1.0, high=DURATION_S_MAX)
    quiet_s = top.number("quiet_s", 90.0, low=1.0, high=DURATION_S_MAX)
    sites = _sites(top)
    network = top.table("network")
    latency_ns, links, weather = _network(network, sites)
    workload = _workload(top.table("workload"))
    faults = _faults(top.table("faults"))
    events = tuple(_event(table, sites, duration_s) for table in top.tables("event", EVENTS_MAX))
    top.done()
    return Scenario(
        ns_of(duration_s),
        ns_of(quiet_s),
        sites,
        latency_ns,
        links,
        weather,
        workload,
        faults,
        tuple(sorted(events, key=lambda event: event.at_ns)),
    )


def _sites(top: _Table) -> tuple[Site, ...]:
    tables = top.tables("site", SITES_MAX)
    if tables:
        top.absent("sites", "there is a [[site]] for each already: leave out one of the two")
        sites = tuple(_site(table) for table in tables)
    else:
        count = top.whole("sites", 3, low=1, high=SITES_MAX)
        sites = tuple(Site(_letters(i)) for i in range(count))
    names = [site.name for site in sites]
    for name in names:
        if names.count(name) > 1:
            raise top.bad("site", f"there are two of name {name}: rename one")
    nodes = sum(site.gateways for site in sites)
    if nodes > NODES_MAX:
        raise top.bad("site", f"{nodes} gateways in all: use at most {NODES_MAX}")
    return sites


def _letters(i: int) -> str:
    """a, b, …, z, aa, ab, …"""
    text = ""
    i += 1
    while i:
        i, letter = divmod(i - 1, 26)
        text = chr(ord("a") + letter) + text
    return text


def _site(table: _Table) -> Site:
    site = Site(
        table.name("name"),
        table.whole("gateways", 1, low=1, high=GATEWAYS_MAX),
        ns_of(table.number("clock_skew_s", 0.0, low=-DURATION_S_MAX, high=DURATION_S_MAX)),
    )
    table.done()
    return site


def _network(
    table: _Table, sites: tuple[Site, ...]
) -> tuple[int, dict[tuple[str, str], int], Weather]:
    latency_ns = table.ms("latency_ms", 20.0)
    links: dict[tuple[str, str], int] = {}
    for i, link in enumerate(table.list("link")):
        where = f"link[{i}]"
        if not isinstance(link, list) or len(link) != 3:
            raise table.bad(where, 'write ["SITE", "SITE", LATENCY_MS]')
        a, b = (table.site(where, name, sites) for name in link[:2])
        links[a, b] = links[b, a] = round(table.checked(where, link[2], 0.0, 60_000.0) * MS_NS)
    mode = table.one_of("mode", "stream", ("stream", "datagram"))
    mbps = table.number("bandwidth_mbps", 0.0, low=0.0, high=1e6)
    weather = Weather(
        mode=mode,  # type: ignore[arg-type]  # one of the two
        jitter_ns=table.ms("jitter_ms", 2.0),
        loss=table.probability("loss"),
        duplicate=table.probability("duplicate"),
        reorder=table.probability("reorder"),
        reset=table.probability("reset"),
        bits_per_s=round(mbps * 1e6),
        detect_ns=ns_of(table.number("detect_s", 3.0, low=0.1, high=3600.0)),
        redial_ns=ns_of(table.number("redial_s", 2.0, low=0.0, high=3600.0)),
    )
    if weather.mode == "stream" and (weather.duplicate or weather.reorder):
        raise table.bad("mode", 'duplicate and reorder need "datagram"; a stream does neither')
    if weather.mode == "datagram" and weather.reset:
        raise table.bad("mode", 'reset needs "stream"')
    table.done()
    return latency_ns, links, weather


def _workload(table: _Table) -> Workload:
    weights = table.table("mix")
    mix: dict[OpKind, float] = {
        kind: weights.number(kind, 0.0 if weights else weight, low=0.0, high=1e6)
        for kind, weight in MIX.items()
    }
    weights.done()
    if not any(mix.values()):
        raise table.bad("mix", "all weights are 0: give at least one kind a weight")
    workload = Workload(
        vpcs=table.whole("vpcs", 2, low=1, high=1000),
        endpoints=table.whole("endpoints", 2, low=0, high=200),
        addresses=table.whole("addresses", 6, low=1, high=200),
        rate_per_s=table.number("rate_per_s", 2.0, low=0.0, high=RATE_MAX),
        mix=mix,
    )
    table.done()
    return workload


def _faults(table: _Table) -> Faults:
    faults = Faults(
        cuts=table.whole("cuts", 0, low=0, high=EVENTS_MAX),
        cut_ns=ns_of(table.number("cut_s", 20.0, low=0.01, high=DURATION_S_MAX)),
        oneway_cuts=table.whole("oneway_cuts", 0, low=0, high=EVENTS_MAX),
        crashes=table.whole("crashes", 0, low=0, high=EVENTS_MAX),
        restores=table.whole("restores", 0, low=0, high=EVENTS_MAX),
        down_ns=ns_of(table.number("down_s", 10.0, low=0.01, high=DURATION_S_MAX)),
    )
    table.done()
    return faults


def _event(table: _Table, sites: tuple[Site, ...], duration_s: float) -> Event:
    at_ns = ns_of(table.number("at_s", None, low=0.0, high=duration_s))
    kinds = [kind for kind in ("cut", "crash", "restore", "flap") if kind in table]
    if len(kinds) != 1:
        raise table.bad("", "give exactly one of cut, crash, restore, flap")
    for_s = table.number("for_s", 0.0, low=0.0, high=DURATION_S_MAX)
    event: Event
    match kinds[0]:
        case "cut":
            event = Cut(at_ns, _groups(table, sites), ns_of(for_s) or None)
        case "flap":
            pair = table.list("flap")
            if len(pair) != 2:
                raise table.bad("flap", "write the two sites whose link flaps")
            a, b = (table.site("flap", name, sites) for name in pair)
            period_ns = ns_of(table.number("period_s", 4.0, low=0.01, high=DURATION_S_MAX))
            event = Flap(at_ns, a, b, period_ns, ns_of(for_s or duration_s))
        case kind:
            node = table.node(kind, sites)
            back_ns = None
            if kind == "restore":
                back_ns = ns_of(table.number("from_s", 0.0, low=0.0, high=at_ns / SECOND_NS))
            event = Crash(at_ns, node, ns_of(for_s), back_ns)
    table.done()
    return event


def _groups(table: _Table, sites: tuple[Site, ...]) -> tuple[tuple[str, ...], ...]:
    groups = []
    seen: set[str] = set()
    for group in table.list("cut"):
        if not isinstance(group, list) or not group:
            raise table.bad("cut", 'write groups of sites: [["a"], ["b", "c"]]')
        names = tuple(table.site("cut", name, sites) for name in group)
        for name in names:
            if name in seen:
                raise table.bad("cut", f"site {name} is in two groups: keep one")
            seen.add(name)
        groups.append(names)
    rest = tuple(site.name for site in sites if site.name not in seen)
    if rest:
        groups.append(rest)
    if len(groups) < 2:
        raise table.bad("cut", "one group of all sites cuts nothing: write at least two")
    return tuple(groups)


class _Table:
    """A table of the file and where it is, for errors. Every key must be asked for."""

    def __init__(self, where: str, raw: object) -> None:
        if not isinstance(raw, Mapping):
            raise BadInput(f"{where}: is not a table")
        self._where = where
        self._raw: Mapping[str, Any] = raw
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self._raw

    def __bool__(self) -> bool:
        return bool(self._raw)

    def bad(self, key: str, words: str) -> BadInput:
        place = " ".join(part for part in (self._where, key) if part)
        return BadInput(f"{place}: {words}" if place else words)

    def get(self, key: str) -> Any:
        self._asked.add(key)
        return self._raw.get(key)

    def done(self) -> None:
        """Raise BadInput if the table has a key that nobody asked for."""
        for key in self._raw:
            if key not in self._asked:
                near = difflib.get_close_matches(key, sorted(self._asked), 1)
                known = (
                    f"did you mean {near[0]}"
                    if near
                    else "known: " + ", ".join(sorted(self._asked))
                )
                raise self.bad(key, f"is not known here: {known}")

    def absent(self, key: str, words: str) -> None:
        if key in self._raw:
            raise self.bad(key, words)

    def table(self, key: str) -> _Table:
        raw = self.get(key)
        place = f"[{self._where.strip('[]')}.{key}]" if self._where else f"[{key}]"
        return _Table(place, {} if raw is None else raw)

    def tables(self, key: str, count_max: int) -> list[_Table]:
        raw = self.get(key)
        if raw is None:
            return []
        if not isinstance(raw, list) or len(raw) > count_max:
            raise self.bad(key, f"write at most {count_max} tables [[{key}]]")
        return [_Table(f"[[{key}]] {i}", item) for i, item in enumerate(raw, 1)]

    def list(self, key: str) -> list[Any]:
        raw = self.get(key)
        if raw is None:
            return []
        if not isinstance(raw, list):
            raise self.bad(key, "is not a list")
        return raw

    def checked(self, key: str, value: object, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(key, f"{value!r} is not a number")
        if not low <= value <= high:
            raise self.bad(key, f"{value} is out of bounds: use {low:g} to {high:g}")
        return float(value)

    def number(self, key: str, default: float | None, *, low: float, high: float) -> float:
        value = self.get(key)
        if value is None:
            if default is None:
                raise self.bad(key, f"is missing: give a number from {low:g} to {high:g}")
            return default
        return self.checked(key, value, low, high)

    def whole(self, key: str, default: int, *, low: int, high: int) -> int:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is not int:
            raise self.bad(key, f"{value!r} is not a whole number")
        return int(self.checked(key, value, low, high))

    def ms(self, key: str, default_ms: float) -> int:
        return round(self.number(key, default_ms, low=0.0, high=60_000.0) * MS_NS)

    def probability(self, key: str) -> float:
        return self.number(key, 0.0, low=0.0, high=0.95)

    def one_of(self, key: str, default: str, known: tuple[str, ...]) -> str:
        value = self.get(key)
        if value is None:
            return default
        if value not in known:
            raise self.bad(key, f"{value!r} is none of {', '.join(known)}")
        return str(value)

    def name(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self.bad(key, f"{value!r} is no name: use a-z, 0-9 and -")
        return value

    def site(self, key: str, value: object, sites: tuple[Site, ...]) -> str:
        known = [site.name for site in sites]
        if value not in known:
            raise self.bad(key, f"no site {value!r}: there are {', '.join(known[:20])}")
        return str(value)

    def node(self, key: str, sites: tuple[Site, ...]) -> str:
        """A node's name; a site's name stands for its first gateway."""
        value = self.get(key)
        for site in sites:
            if value == site.name:
                return f"{site.name}-1"
            if value in {f"{site.name}-{i}" for i in range(1, site.gateways + 1)}:
                return str(value)
        raise self.bad(key, f"no node {value!r}: nodes are named SITE-1, SITE-2, …")
