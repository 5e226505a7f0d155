"""What happens at a given time in a scenario, as the tables [[event]] say.

Each has `at_s` and one of the kinds below. Most last `for_s`; without it a cut lasts until the end,
and what restarts does so at once. Nodes are named SITE-N; a site's name stands for its first
gateway. Of two sites that are named for a link, all gateways are meant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from sim.core.clock import SECOND_NS
from sim.core.releases import RELEASES_MAX
from sim.core.tables import NAME, Table, shown

DURATION_S_MAX = 400 * 24 * 3600.0
FACTOR_MAX = 1000.0


@dataclass(frozen=True, slots=True)
class Cut:
    """Groups of sites that do not reach each other; a site in no group is a group with the rest."""

    at_ns: int
    groups: tuple[tuple[str, ...], ...]
    for_ns: int | None
    """None: until the end"""


@dataclass(frozen=True, slots=True)
class Oneway:
    """What `a` sends does not reach `b`."""

    at_ns: int
    a: str
    b: str
    for_ns: int | None


@dataclass(frozen=True, slots=True)
class Slow:
    """Between two sites everything takes `factor` times as long."""

    at_ns: int
    a: str
    b: str
    factor: float
    for_ns: int | None


@dataclass(frozen=True, slots=True)
class Flap:
    """Two sites are cut off from each other for the second half of every period."""

    at_ns: int
    a: str
    b: str
    period_ns: int
    for_ns: int


@dataclass(frozen=True, slots=True)
class Crash:
    """A node's process ends and starts again after `for_ns`; `restore_ns`: with a disk of then."""

    at_ns: int
    node: str
    for_ns: int
    restore_ns: int | None = None


NodeFault: TypeAlias = Literal["torn", "full", "stall", "hostile"]
"""A crash that leaves a record on the disk unreadable; a disk that takes nothing any more; a
process that does not read what it is sent; a member that sends forged and mutated frames and two
histories."""


@dataclass(frozen=True, slots=True)
class Trouble:
    at_ns: int
    kind: NodeFault
    node: str
    for_ns: int


@dataclass(frozen=True, slots=True)
class ClockStep:
    """A node's wall clock is set forward (or back) by `step_ns`."""

    at_ns: int
    node: str
    step_ns: int


@dataclass(frozen=True, slots=True)
class Clone:
    """A copy of a node's disk, as it was at `from_ns`, is run beside the node for `for_ns`."""

    at_ns: int
    node: str
    from_ns: int
    for_ns: int


@dataclass(frozen=True, slots=True)
class Upgrade:
    """A node's process ends, and starts again as another release, higher or lower."""

    at_ns: int
    node: str
    release: int
    for_ns: int


@dataclass(frozen=True, slots=True)
class Join:
    """One more gateway, at a site that may be new, joins through an admin."""

    at_ns: int
    site: str


Parting: TypeAlias = Literal["leave", "retire", "compromise", "forget"]


@dataclass(frozen=True, slots=True)
class Part:
    """A node goes for good: of its own accord, retired (its machine is off), retired as
    compromised, or, after that, forgotten."""

    at_ns: int
    kind: Parting
    node: str


@dataclass(frozen=True, slots=True)
class Rotate:
    """A node replaces its key; `force`: whether or not it has heard everybody since it started."""

    at_ns: int
    node: str
    force: bool = False


Event: TypeAlias = (
    Cut
    | Oneway
    | Slow
    | Flap
    | Crash
    | Trouble
    | ClockStep
    | Clone
    | Join
    | Part
    | Rotate
    | Upgrade
)


def read_event(
    table: Table, sites: Sequence[str], nodes: Sequence[str], duration_s: float
) -> Event:
    """`nodes`: all there are or will be. Raises Misread."""
    table.past("at_s", duration_s)
    at_ns = table.seconds("at_s", None, low=0.0, high=duration_s)
    kinds = [kind for kind in _READERS if kind in table]
    if not kinds:
        strange = [key for key in table if key not in _DETAILS]
        if strange:
            raise table.unknown(strange[0], _READERS)
        raise table.bad("", f"does not say what happens: give one of {', '.join(_READERS)}")
    if len(kinds) > 1:
        raise table.bad("", f"{' and '.join(kinds)} in one: write an [[event]] for each")
    event = _READERS[kinds[0]](_Reading(table, at_ns, kinds[0], sites, nodes, duration_s))
    table.done()
    return event


@dataclass(frozen=True, slots=True)
class _Reading:
    """One table, of which the kind is known."""

    table: Table
    at_ns: int
    kind: str
    sites: Sequence[str]
    nodes: Sequence[str]
    duration_s: float

    def for_ns(self, default_s: float = 0.0) -> int:
        return self.table.seconds("for_s", default_s, low=0.0, high=DURATION_S_MAX)

    def back_ns(self) -> int:
        return self.table.seconds("from_s", 0.0, low=0.0, high=self.at_ns / SECOND_NS)

    def link(self) -> tuple[str, str]:
        words = f'write the two sites: {self.kind} = ["a", "b"]'
        return self.table.pair(self.kind, self.sites, words)

    def node(self) -> str:
        """A node's name; a site's name stands for its first gateway."""
        value = self.table.get(self.kind)
        if isinstance(value, str) and f"{value}-1" in self.nodes:
            return f"{value}-1"
        return self.table.known(self.kind, value, "node", self.nodes)


def _cut(r: _Reading) -> Event:
    groups: list[tuple[str, ...]] = []
    seen: set[str] = set()
    for group in r.table.list("cut"):
        if not isinstance(group, list) or not group:
            raise r.table.bad("cut", 'write groups of sites: [["a"], ["b", "c"]]')
        names = tuple(r.table.known("cut", name, "site", r.sites) for name in group)
        for name in names:
            if name in seen:
                raise r.table.bad("cut", f"site {name} is in two groups: keep one")
            seen.add(name)
        groups.append(names)
    rest = tuple(site for site in r.sites if site not in seen)
    if rest:
        groups.append(rest)
    if len(groups) < 2:
        raise r.table.bad("cut", "one group of all sites cuts nothing: write at least two")
    return Cut(r.at_ns, tuple(groups), r.for_ns() or None)


def _oneway(r: _Reading) -> Event:
    return Oneway(r.at_ns, *r.link(), r.for_ns() or None)


def _slow(r: _Reading) -> Event:
    factor = r.table.number("factor", 10.0, low=1.0, high=FACTOR_MAX)
    return Slow(r.at_ns, *r.link(), factor, r.for_ns() or None)


def _flap(r: _Reading) -> Event:
    period_ns = r.table.seconds("period_s", 4.0, low=0.01, high=DURATION_S_MAX)
    return Flap(r.at_ns, *r.link(), period_ns, r.for_ns(r.duration_s))


def _crash(r: _Reading) -> Event:
    return Crash(r.at_ns, r.node(), r.for_ns())


def _restore(r: _Reading) -> Event:
    return Crash(r.at_ns, r.node(), r.for_ns(), r.back_ns())


def _power(r: _Reading) -> Event:
    lost_ns = r.table.seconds("lost_s", 1.0, low=0.0, high=DURATION_S_MAX)
    return Crash(r.at_ns, r.node(), r.for_ns(), max(r.at_ns - lost_ns, 0))


def _trouble(r: _Reading) -> Event:
    kind = next(kind for kind in get_args(NodeFault) if kind == r.kind)
    return Trouble(r.at_ns, kind, r.node(), r.for_ns(10.0))


def _clock(r: _Reading) -> Event:
    step_ns = r.table.seconds("step_s", None, low=-DURATION_S_MAX, high=DURATION_S_MAX)
    return ClockStep(r.at_ns, r.node(), step_ns)


def _clone(r: _Reading) -> Event:
    return Clone(r.at_ns, r.node(), r.back_ns(), r.for_ns(30.0))


def _upgrade(r: _Reading) -> Event:
    release = r.table.whole("to", 0, low=1, high=RELEASES_MAX)
    return Upgrade(r.at_ns, r.node(), release, r.for_ns(1.0))


def _join(r: _Reading) -> Event:
    site = r.table.get("join")
    if not isinstance(site, str) or not NAME.fullmatch(site):
        raise r.table.bad("join", f"{shown(site)} is no site: use a-z, 0-9 and -")
    return Join(r.at_ns, site)


def _rotate(r: _Reading) -> Event:
    return Rotate(r.at_ns, r.node(), r.table.flag("force"))


def _part(r: _Reading) -> Event:
    kind = next(kind for kind in get_args(Parting) if kind == r.kind)
    return Part(r.at_ns, kind, r.node())


_DETAILS = {"at_s", "for_s", "from_s", "lost_s", "factor", "period_s", "step_s", "to", "force"}
_READERS: dict[str, Callable[[_Reading], Event]] = {
    "cut": _cut,
    "oneway": _oneway,
    "slow": _slow,
    "flap": _flap,
    "crash": _crash,
    "restore": _restore,
    "power": _power,
    "torn": _trouble,
    "full": _trouble,
    "stall": _trouble,
    "hostile": _trouble,
    "clock": _clock,
    "clone": _clone,
    "upgrade": _upgrade,
    "rotate": _rotate,
    "join": _join,
    "leave": _part,
    "retire": _part,
    "compromise": _part,
    "forget": _part,
}

KINDS = tuple(_READERS)


def kind_in(table: Table) -> str:
    """Which kind a table that was read says."""
    return next(kind for kind in KINDS if kind in table)
