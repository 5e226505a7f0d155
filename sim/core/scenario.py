"""Scenarios: who takes part, how the network behaves, what users do, what goes wrong and when.

`parse` takes what a TOML reader makes of a file and answers a checked `Scenario`. Every mistake is
`Misread` with the place in the file, what is wrong, and what to write. Reading files is the shell's
job. Times are virtual seconds from the start; latencies are one way.

    duration_s = 60            # users write and things go wrong for so long; then all heals
    quiet_s = 90               # so soon after that everything must be the same everywhere
    sites = 3                  # a, b, c; or one [[site]] each: name, gateways, at, …
    signatures = "ed25519"     # or "keyed-hash", a stand-in where nobody forges
    quota = 200                # records that a node may write into the mesh shard
    interest = "hosted"        # nodes keep what their site has to do with; default: "every" shard;
                               # "either": the one with half of the seeds, the other with the rest
    views = 20                 # how many of the nodes keep a view and rows; by default all
    start = "converged"        # all is set up and everywhere; default: "empty" disks

    [[vpc]]                    # name, endpoints = { a = 5, c = 2 }; in place of [workload] vpcs
    [network]                  # see Weather; latency_ms between sites, link = [["a", "b", 80], …],
                               # matrix_ms = [[0, 80, 20], …]: a row for each site, from it to each
    [workload]                 # see Workload
    [faults]                   # by chance, see Faults
    [[event]]                  # see `events`
    [expect]                   # what must hold beside what always must, see Expected
    [small]                    # any of the above once more: what `small` makes of it
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from mesh.core.bounds import MESH_RECORDS, QUOTA_MAX
from mesh.core.effects import ALARMS
from sim.core.clock import MS_NS, SECOND_NS, ns_of
from sim.core.events import DURATION_S_MAX, Event, Join, Trouble, read_event
from sim.core.network import Weather
from sim.core.presence import check_presence
from sim.core.releases import PRESENT, RELEASES_MAX
from sim.core.tables import SHOWN_MAX, Table, shown

SITES_MAX = 1000
GATEWAYS_MAX = 16
NODES_MAX = 1000
"""What a run of minutes on one machine can carry."""
RATE_MAX = 1000.0
WRITES_MAX = 1_000_000
FRAMES_MAX = 100_000_000
EVENTS_MAX = 10_000
CHURN_MAX = 50
"""Nodes that come or go by chance."""
HOSTED_SHARES = {"every": 0.0, "either": 0.5, "hosted": 1.0}
"""What nodes keep -> in how many of the runs only what their sites have to do with."""
STRETCHED = 200
"""The number of a VPC's stretched subnet; those homed at its sites count from 1."""
VPCS_MAX = 1000
ENDPOINTS_MAX = 10_000
"""Of one VPC at one site, where VPCs are laid out one by one."""
ENDPOINTS_IN_ALL_MAX = 200_000
"""What a run of minutes on one machine can carry."""
EXTRA = "extra-"
"""How names of VPCs begin that users of a run make and remove."""
LATENCY_MS_MIN = 0.5
LATENCY_MS_MAX = 60_000.0
KM_PER_MS = 120.0
"""Light in a fibre goes 200 km in a ms, and no fibre goes straight."""
EARTH_KM = 6371.0

OpKind: TypeAlias = Literal[
    "create",
    "delete",
    "recreate",
    "move",
    "claim",
    "resolve",
    "evict",
    "inherit",
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
    "inherit": 0.5,
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
    release: int = PRESENT
    """Of Weft, that its nodes run at first; later ones write what the others do not know."""


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A VPC, and how many endpoints it has at which sites at the start."""

    name: str
    endpoints: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Workload:
    """What users do. `mix` weighs the kinds of `MIX`; `addresses` bounds the addresses used in a
    subnet, so that few of them make for many meetings."""

    vpcs: int = 2
    sites_per_vpc: int = 0
    """In how many sites a VPC has endpoints; 0: in all."""
    endpoints: int = 2
    """claimed at the start by each gateway in each VPC"""
    addresses: int = 6
    rate_per_s: float = 2.0
    writes: int = 0
    """0: requests come at `rate_per_s`. Else they are spread over the run until so many writes have
    been taken, those of the beginning among them; what is refused then is made up for after it"""
    frames: int = 0
    """with `writes`: users go on, one write at a time, until nodes have sent so many frames"""
    burst: int = 1
    """requests that a user makes at once"""
    mix: Mapping[OpKind, float] = field(default_factory=lambda: dict(MIX))
    laid_out: tuple[LaidOut, ...] = ()
    """in place of `vpcs`, `sites_per_vpc` and `endpoints`: the VPCs one by one"""


@dataclass(frozen=True, slots=True)
class Faults:
    """How many of each happen at times and places left to chance, and how long they last."""

    cuts: int = 0
    cut_ns: int = 20 * SECOND_NS
    oneway_cuts: int = 0
    slow_links: int = 0
    crashes: int = 0
    restores: int = 0
    """crashes after which the disk is an earlier copy of itself"""
    power_losses: int = 0
    """crashes after which the disk lacks what was written in the last second"""
    torn: int = 0
    full_disks: int = 0
    stalls: int = 0
    clones: int = 0
    clock_steps: int = 0
    """of up to a minute, now and then of a year"""
    down_ns: int = 10 * SECOND_NS
    joins: int = 0
    retires: int = 0
    """of these some leave, some are dead, some compromised; a part is forgotten later"""
    upgrades: int = 0
    """restarts with the next release, or with the one before"""
    rotations: int = 0
    """nodes that replace their key; now and then the process ends in the middle of it"""


@dataclass(frozen=True, slots=True)
class Expected:
    """Bounds on what a run measures, and alarms that must have been raised in it."""

    heal_s_max: float | None = None
    push_p99_s_max: float | None = None
    bytes_per_site_max: int | None = None
    copies_max: float | None = None
    writes_min: int = 0
    frames_min: int = 0
    faults_min: int = 0
    alarms: tuple[str, ...] = ()


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
    expected: Expected
    real_signatures: bool = False
    """Ed25519 and no stand-in: what a run with forgers needs"""
    quota: int = MESH_RECORDS
    """Records that a node may hold in the mesh shard, as its admission says."""
    hosted_share: float = 0.0
    """Of the runs those in which a node keeps only the VPCs that its site has to do with; in the
    others it keeps every shard."""
    views: int = NODES_MAX
    """The first so many nodes keep views and rows; the others replicate only."""
    converged: bool = False
    """Every disk holds what is set up at the start; else it has to come from those who wrote it."""

    @property
    def node_names(self) -> tuple[str, ...]:
        """Of the nodes that are there from the start."""
        return tuple(f"{site.name}-{i}" for site in self.sites for i in range(1, site.gateways + 1))

    @property
    def joining(self) -> tuple[tuple[str, str], ...]:
        """(name, site) of those that join, in the order of their events; the random ones last."""
        return _joining(self.sites, [e.site for e in self.events if isinstance(e, Join)], self)


def _joining(
    sites: tuple[Site, ...], wanted: list[str], scenario: Scenario | None
) -> tuple[tuple[str, str], ...]:
    count = {site.name: site.gateways for site in sites}
    if scenario is not None:
        wanted = wanted + [sites[i % len(sites)].name for i in range(scenario.faults.joins)]
    found = []
    for site in wanted:
        count[site] = count.get(site, 0) + 1
        found.append((f"{site}-{count[site]}", site))
    return tuple(found)


def parse(raw: Mapping[str, Any], *, small: bool = False) -> Scenario:
    """The scenario in a file's tables; `small`: with what [small] has in place of the rest. Raises
    Misread."""
    top = Table("", raw)
    top.table("small").absent("small", "there is one [small] only: leave this out")
    if small:
        top = Table("", {**_merged(raw, raw.get("small", {})), "small": {}})
        top.table("small")
    duration_s = top.number("duration_s", 60.0, low=1.0, high=DURATION_S_MAX)
    quiet_ns = top.seconds("quiet_s", 90.0, low=1.0, high=DURATION_S_MAX)
    sites, places = _sites(top)
    network = top.table("network")
    latency_ns, links, weather = _network(network, sites, places)
    workload = _workload(top.table("workload"), _laid_out(top, sites))
    faults = _faults(top.table("faults"))
    events = _events(top, sites, duration_s, faults.retires > 0)
    hostile = any(isinstance(e, Trouble) and e.kind == "hostile" for e in events)
    signatures = top.one_of(
        "signatures", "ed25519" if hostile else "keyed-hash", ("ed25519", "keyed-hash")
    )
    if hostile and signatures != "ed25519":
        raise top.bad("signatures", 'a hostile node forges: leave this out, or write "ed25519"')
    hosted_share = HOSTED_SHARES[top.one_of("interest", "every", tuple(HOSTED_SHARES))]
    views = top.whole("views", NODES_MAX, low=1, high=NODES_MAX)
    if hosted_share and views < NODES_MAX:
        raise top.bad("interest", "it follows from views, and some nodes keep none")
    converged = top.one_of("start", "empty", ("empty", "converged")) == "converged"
    quota = top.whole("quota", MESH_RECORDS, low=1, high=QUOTA_MAX)
    expected = _expected(top.table("expect"))
    top.done()
    return Scenario(
        ns_of(duration_s),
        quiet_ns,
        sites,
        latency_ns,
        links,
        weather,
        workload,
        faults,
        events,
        expected,
        signatures == "ed25519",
        quota,
        hosted_share,
        views,
        converged,
    )


def _merged(raw: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`raw` with the keys of `over`; tables are merged, lists replaced."""
    merged = dict(raw)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    if "sites" in over:
        merged.pop("site", None)
        merged.pop("vpc", None)
    return merged


def _expected(table: Table) -> Expected:
    def bound(key: str) -> float | None:
        value = table.number(key, -1.0, low=0.0, high=1e12)
        return None if value < 0 else value

    bytes_max = bound("bytes_per_site_max")
    alarms = table.list("alarms")
    for alarm in alarms:
        table.known("alarms", alarm, "alarm", ALARMS)
    expected = Expected(
        bound("heal_s_max"),
        bound("push_p99_s_max"),
        None if bytes_max is None else int(bytes_max),
        bound("copies_max"),
        table.whole("writes_min", 0, low=0, high=WRITES_MAX),
        table.whole("frames_min", 0, low=0, high=WRITES_MAX),
        table.whole("faults_min", 0, low=0, high=WRITES_MAX),
        tuple(alarms),
    )
    table.done()
    return expected


def _events(
    top: Table, sites: tuple[Site, ...], duration_s: float, by_chance: bool
) -> tuple[Event, ...]:
    tables = top.tables("event", EVENTS_MAX)
    joins = [site for table in tables if isinstance(site := table.peek("join"), str)]
    names = list(dict.fromkeys([*(site.name for site in sites), *joins]))
    members = [f"{site.name}-{i}" for site in sites for i in range(1, site.gateways + 1)]
    nodes = members + [name for name, _ in _joining(sites, joins, None)]
    events = [read_event(table, names, nodes, duration_s) for table in tables]
    ordered = tuple(sorted(events, key=lambda event: event.at_ns))
    joining = _joining(sites, [e.site for e in ordered if isinstance(e, Join)], None)
    written = list(zip(events, tables, strict=True))
    check_presence(written, members, [name for name, _ in joining], by_chance=by_chance)
    return ordered


# ---- sites and the network between them ----


def _sites(top: Table) -> tuple[tuple[Site, ...], dict[str, tuple[float, float]]]:
    """The sites, and where those are that say so."""
    tables = top.tables("site", SITES_MAX)
    places: dict[str, tuple[float, float]] = {}
    if tables:
        top.absent("sites", "there is a [[site]] for each already: leave out one of the two")
        sites = tuple(_site(table, places) for table in tables)
    else:
        if isinstance(top.peek("sites"), list):
            raise top.bad("sites", "is how many there are: write a [[site]] with a name for each")
        count = top.whole("sites", 3, low=1, high=SITES_MAX)
        sites = tuple(Site(_letters(i)) for i in range(count))
    seen: set[str] = set()
    for site, table in zip(sites, tables, strict=False):
        if site.name in seen:
            raise table.bad("name", f"there is a site {site.name} already: rename one")
        seen.add(site.name)
    nodes = sum(site.gateways for site in sites)
    if nodes > NODES_MAX:
        raise top.bad("site", f"{nodes} gateways in all: have at most {NODES_MAX}")
    return sites, places


def _letters(i: int) -> str:
    """a, b, …, z, aa, ab, …"""
    text = ""
    i += 1
    while i:
        i, letter = divmod(i - 1, 26)
        text = chr(ord("a") + letter) + text
    return text


def _site(table: Table, places: dict[str, tuple[float, float]]) -> Site:
    site = Site(
        table.name("name"),
        table.whole("gateways", 1, low=1, high=GATEWAYS_MAX),
        table.seconds("clock_skew_s", 0.0, low=-DURATION_S_MAX, high=DURATION_S_MAX),
        table.whole("release", PRESENT, low=1, high=RELEASES_MAX),
    )
    if "at" in table:
        place = table.list("at")
        if len(place) != 2:
            raise table.bad("at", "write latitude and longitude: at = [52.5, 13.4]")
        latitude = table.checked("at", place[0], -90.0, 90.0)
        places[site.name] = latitude, table.checked("at", place[1], -180.0, 180.0)
    table.done()
    return site


def _distance_ns(a: tuple[float, float], b: tuple[float, float]) -> int:
    """One way over the fibre between two places on the globe."""
    lat_a, lon_a, lat_b, lon_b = (math.radians(angle) for angle in (*a, *b))
    chord = math.sin((lat_b - lat_a) / 2) ** 2
    chord += math.cos(lat_a) * math.cos(lat_b) * math.sin((lon_b - lon_a) / 2) ** 2
    km = 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(chord)))
    # Whole microseconds: the last digits of a sine are not the same on all machines.
    return round((LATENCY_MS_MIN + km / KM_PER_MS) * 1000) * (MS_NS // 1000)


def _measured(table: Table, names: list[str]) -> dict[tuple[str, str], int]:
    """What `link` says of pairs of sites: the same both ways."""
    links: dict[tuple[str, str], int] = {}
    for i, link in enumerate(table.list("link"), 1):
        where = f"link[{i}]"
        if not isinstance(link, list) or len(link) != 3:
            raise table.bad(where, 'write ["SITE", "SITE", LATENCY_MS]')
        a, b = (table.known(where, name, "site", names) for name in link[:2])
        if a == b:
            raise table.bad(where, f"{a} twice: gateways of one site are on one LAN: leave it out")
        if (a, b) in links:
            raise table.bad(where, f"{a} and {b} are linked above already: keep one of the two")
        links[a, b] = links[b, a] = round(
            table.checked(where, link[2], 0.0, LATENCY_MS_MAX) * MS_NS
        )
    return links


def _matrix(table: Table, names: list[str]) -> dict[tuple[str, str], int]:
    """`matrix_ms`: a row for each site, from it to each, in the order of the sites."""
    links: dict[tuple[str, str], int] = {}
    rows = table.list("matrix_ms")
    order = ", ".join(names[:SHOWN_MAX]) + (", …" if len(names) > SHOWN_MAX else "")
    if rows and len(rows) != len(names):
        words = (
            f"{len(rows)} rows for {len(names)} sites: write one for each, in this order: {order}"
        )
        raise table.bad("matrix_ms", words)
    for i, (name, row) in enumerate(zip(names, rows, strict=bool(rows)), 1) if rows else ():
        where = f"matrix_ms[{i}]"
        if not isinstance(row, list) or len(row) != len(names):
            count = len(row) if isinstance(row, list) else "no"
            words = f"{count} numbers from {name}: write one to each of {order}"
            raise table.bad(where, words)
        for other, value in zip(names, row, strict=True):
            latency_ms = table.checked(where, value, 0.0, LATENCY_MS_MAX)
            if name == other and latency_ms:
                raise table.bad(where, f"{shown(value)} from {name} to itself: write 0 there")
            if name != other:
                links[name, other] = round(latency_ms * MS_NS)
    return links


def _network(
    table: Table, sites: tuple[Site, ...], places: dict[str, tuple[float, float]]
) -> tuple[int, dict[tuple[str, str], int], Weather]:
    if isinstance(table.peek("latency_ms"), list):
        raise table.bad("latency_ms", "is one number for all links: call a table matrix_ms")
    latency_ns = table.ms("latency_ms", 20.0)
    links: dict[tuple[str, str], int] = {}
    for a, at in places.items():
        for b, other in places.items():
            if a != b:
                links[a, b] = _distance_ns(at, other)
    names = [site.name for site in sites]
    links.update(_matrix(table, names))
    links.update(_measured(table, names))
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
        detect_ns=table.seconds("detect_s", 3.0, low=0.1, high=3600.0),
        redial_ns=table.seconds("redial_s", 0.1, low=0.0, high=3600.0),
    )
    if weather.mode == "stream" and (weather.duplicate or weather.reorder):
        raise table.bad("mode", 'duplicate and reorder need "datagram"; a stream does neither')
    if weather.mode == "datagram" and weather.reset:
        raise table.bad("mode", 'reset needs "stream"')
    table.done()
    return latency_ns, links, weather


# ---- what users do, what goes wrong by chance ----


def _laid_out(top: Table, sites: tuple[Site, ...]) -> tuple[LaidOut, ...]:
    names = [site.name for site in sites]
    found: dict[str, LaidOut] = {}
    for table in top.tables("vpc", VPCS_MAX):
        name = table.name("name")
        if name in found:
            raise table.bad("name", f"there is a VPC {name} already: rename one")
        if name.startswith(EXTRA):
            raise table.bad("name", f"names that begin with {EXTRA} are taken: choose another")
        counts = table.table("endpoints")
        for site in counts:
            if site not in names:
                raise counts.unknown(site, names)
        endpoints = {s: counts.whole(s, 0, low=0, high=ENDPOINTS_MAX) for s in counts}
        if not 0 < len(endpoints) < STRETCHED:
            raise table.bad("endpoints", f"name 1 to {STRETCHED - 1} sites: {{ {names[0]} = 5 }}")
        table.done()
        found[name] = LaidOut(name, endpoints)
    in_all = sum(sum(vpc.endpoints.values()) for vpc in found.values())
    if in_all > ENDPOINTS_IN_ALL_MAX:
        raise top.bad("vpc", f"{in_all} endpoints in all: have at most {ENDPOINTS_IN_ALL_MAX}")
    return tuple(found.values())


def _workload(table: Table, laid_out: tuple[LaidOut, ...]) -> Workload:
    for key in ("vpcs", "sites_per_vpc", "endpoints") if laid_out else ():
        table.absent(key, "each [[vpc]] says so itself: leave this out")
    weights = table.table("mix")
    mix: dict[OpKind, float] = {
        kind: weights.number(kind, 0.0 if weights else weight, low=0.0, high=1e6)
        for kind, weight in MIX.items()
    }
    weights.done()
    if not any(mix.values()):
        raise table.bad("mix", "all weights are 0: give at least one kind a weight")
    workload = Workload(
        vpcs=table.whole("vpcs", 2, low=1, high=VPCS_MAX),
        sites_per_vpc=table.whole("sites_per_vpc", 0, low=0, high=SITES_MAX),
        endpoints=table.whole("endpoints", 2, low=0, high=200),
        addresses=table.whole("addresses", 6, low=1, high=200),
        rate_per_s=table.number("rate_per_s", 2.0, low=0.0, high=RATE_MAX),
        writes=table.whole("writes", 0, low=0, high=WRITES_MAX),
        frames=table.whole("frames", 0, low=0, high=FRAMES_MAX),
        burst=table.whole("burst", 1, low=1, high=100),
        mix=mix,
        laid_out=laid_out,
    )
    if workload.writes:
        table.absent("rate_per_s", "the rate follows from writes: leave out one of the two")
    table.done()
    return workload


def _faults(table: Table) -> Faults:
    def count(key: str, high: int = EVENTS_MAX) -> int:
        return table.whole(key, 0, low=0, high=high)

    faults = Faults(
        cuts=count("cuts"),
        cut_ns=table.seconds("cut_s", 20.0, low=0.01, high=DURATION_S_MAX),
        oneway_cuts=count("oneway_cuts"),
        slow_links=count("slow_links"),
        crashes=count("crashes"),
        restores=count("restores"),
        power_losses=count("power_losses"),
        torn=count("torn"),
        full_disks=count("full_disks"),
        stalls=count("stalls"),
        clones=count("clones", CHURN_MAX),
        clock_steps=count("clock_steps"),
        down_ns=table.seconds("down_s", 10.0, low=0.01, high=DURATION_S_MAX),
        joins=count("joins", CHURN_MAX),
        retires=count("retires", CHURN_MAX),
        upgrades=count("upgrades", CHURN_MAX),
        rotations=count("rotations", CHURN_MAX),
    )
    table.done()
    return faults
