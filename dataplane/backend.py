"""What carries the compiled tables out: the port both backends implement, and the choice of one.

A backend is synchronous and not thread-safe: the node calls it from one worker thread. Unless a
method says otherwise, a `DataplaneError` leaves the backend usable and what it had installed in
place; the caller repeats the call or runs `repair`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from dataplane.drops import DropEvent
from dataplane.fib.rows import (
    EndpointKey,
    EntitledKey,
    FibDelta,
    K,
    SubnetKey,
    Tables,
    V,
    endpoint_name,
    entitled_name,
    subnet_name,
)

Mode: TypeAlias = Literal["xdp", "memory"]
Hook: TypeAlias = Literal["xdp", "tc"]
"""Where programs meet packets: as early as can be, which is best for many small ones; or where the
kernel has made its own of them, with what belongs together in one, which is best for bulk TCP."""
Json: TypeAlias = dict[str, Any]

AUDIT_NAMES_MAX = 1000
"""Rows named in each list of an audit report; the counts go on."""

NEARLY_FULL = 0.8
"""Of a table's capacity: from here on people are told, while there is time to make room."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Rows that each table has room for. Those of endpoints and subnets take memory as they come,
    the others' up front."""

    endpoints: int = 1 << 18  # a gateway's own VPCs, not the whole mesh
    subnets: int = 1 << 16
    gateways: int = 4096
    ports: int = 4096  # directly attached workloads of one machine

    @property
    def groups(self) -> int:
        """One for each gateway, and one for each site, of which there are no more."""
        return 2 * self.gateways

    @property
    def entitled(self) -> int:
        """One for each VPC, or for each site that it names: as many as subnets or fewer."""
        return self.subnets


DEFAULT_CAPACITY = Capacity()


class DataplaneError(Exception):
    """The data plane could not do what it was asked; the text says what and what to do."""


class Unavailable(DataplaneError):
    """This machine cannot run the backend that was asked for."""


class TableFull(DataplaneError):
    """A table has no room. Everything else of the call was carried out; `refused` rows are not in,
    and `refused_all` with those of other tables.

    They go in as soon as a call makes room; until then each says again that they are out, and an
    audit shows them as missing.
    """

    def __init__(self, table: str, refused: int, usage: Usage, refused_all: int = 0) -> None:
        more = f", and {refused_all - refused} of other tables" if refused_all > refused else ""
        super().__init__(
            f"table {table} is full ({usage.used} of {usage.max}): {refused} rows are not"
            f" installed{more}; remove some or start with a larger table"
        )
        self.table = table
        self.refused = refused
        self.refused_all = max(refused, refused_all)
        self.usage = usage


class Usage(NamedTuple):
    used: int
    max: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """How installed rows differ from compiled ones; rows are named `table VNI/IP` and the like."""

    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    missing_count: int = 0
    stale_count: int = 0
    wrong_count: int = 0

    @property
    def clean(self) -> bool:
        return not (self.missing_count or self.stale_count or self.wrong_count)


class Changes(Protocol):
    """Tells when interfaces, link addresses or routes may have changed; in any thread."""

    def fileno(self) -> int:
        """A descriptor that becomes readable when `take` has something to say."""

    def take(self) -> bool:
        """Whether anything has changed since the last call. Never blocks; OSError as the kernel
        said."""


class Backend(Protocol):
    """The port. `replace` comes first; until then a real data plane keeps its former programs."""

    @property
    def mode(self) -> Mode: ...

    def replace(self, tables: Tables) -> None:
        """Make the installed rows exactly these: all are written first, then stale ones go."""

    def apply(self, delta: FibDelta) -> None:
        """Carry out a delta, in an order in which no row points to one that is not there yet."""

    def audit(self, tables: Tables) -> AuditReport:
        """Compare what is installed with what should be; changes nothing."""

    def repair(self, tables: Tables) -> AuditReport:
        """Install exactly these rows; the report says what was wrong before."""

    def counters(self) -> Json:
        """`{"drops": {reason: packets}}`, and what was sent, received and dropped by each of
        `"ports": {ifname: {...}}, "gateways": {id: ...}, "vpcs": {vni: ...}, "sites": {site: ...}`.
        """

    def take_drops(self) -> list[DropEvent]:
        """Drops told of since the last call, the oldest first: a sample, bounded in rate and
        number."""

    def usage(self) -> Usage:
        """Rows in and capacity of the endpoint table, the one that grows."""

    def usages(self) -> dict[str, Usage]:
        """The same for every table, by name. It may cost a walk through all rows."""

    def capacities(self) -> dict[str, int]:
        """Rows that each table has room for, where that is bounded, by name. Costs nothing."""

    def show(self) -> Json:
        """Every table as a list of plain dicts, with counters where a row has them."""

    def explain(self, vni: int, ip: str) -> Json:
        """The installed row that decides for an address; `kind`: endpoint, subnet or none."""

    def refresh_adjacency(self) -> int:
        """Look up interfaces and link addresses again; returns how many rows still lack theirs."""

    @property
    def changes(self) -> Changes | None:
        """When to call `refresh_adjacency`, beside now and then; None where nothing says it."""

    def missing_interfaces(self) -> tuple[str, ...]:
        """Ports whose interface was not there when it was last looked for."""

    def detach(self) -> None:
        """Stop forwarding and remove everything from this machine. The backend is closed after."""

    def close(self) -> None:
        """Let go. What is installed goes on forwarding."""


def open_backend(
    mode: Literal["auto", "xdp", "memory"],
    *,
    instance: str,
    underlay: str,
    wan_ifname: str | None = None,
    capacity: Capacity = DEFAULT_CAPACITY,
    hook: Hook = "xdp",
) -> tuple[Backend, str]:
    """The backend for a node, and `MODE: why` in words.

    `instance` names this node's pins among those of others on the machine. `wan_ifname` defaults to
    the interface that has the `underlay` address. Raises `Unavailable` if `xdp` was asked for and
    cannot be had; `auto` then takes memory and says why.
    """
    from dataplane.memory import MemoryBackend

    if mode == "memory":
        return MemoryBackend(capacity=capacity), "memory: chosen"
    from dataplane.xdp import loading
    from dataplane.xdp.backend import XdpBackend

    try:
        backend = XdpBackend.open(
            instance=instance,
            underlay=underlay,
            wan_ifname=wan_ifname,
            capacity=capacity,
            hook=hook,
        )
    except Unavailable as error:
        loading.dismiss()
        if mode == "xdp":
            raise
        return MemoryBackend(capacity=capacity), f"memory: {error}"
    return backend, f"xdp: {backend.describe()}"


class Audit:
    """Collects an `AuditReport` table by table, with a bounded number of names."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {"missing": [], "stale": [], "wrong": []}
        self._counts = {"missing": 0, "stale": 0, "wrong": 0}

    def note(self, kind: Literal["missing", "stale", "wrong"], name: str) -> None:
        self._counts[kind] += 1
        if len(self._names[kind]) < AUDIT_NAMES_MAX:
            self._names[kind].append(name)

    def compare(self, table: str, expected: Mapping[K, V], installed: Mapping[K, V]) -> None:
        """Note how the installed rows of a table differ from the expected ones. There may be a
        million, mostly none of them different: only what differs is sorted."""
        if expected == installed:
            return
        for key in sorted(key for key in expected if key not in installed):
            self.note("missing", row_name(table, key))
        for key in sorted(key for key in installed if key not in expected):
            self.note("stale", row_name(table, key))
        differing = (
            key for key, row in expected.items() if key in installed and installed[key] != row
        )
        for key in sorted(differing):
            self.note("wrong", row_name(table, key))

    def report(self) -> AuditReport:
        return AuditReport(
            missing=tuple(self._names["missing"]),
            stale=tuple(self._names["stale"]),
            wrong=tuple(self._names["wrong"]),
            missing_count=self._counts["missing"],
            stale_count=self._counts["stale"],
            wrong_count=self._counts["wrong"],
        )


def row_name(table: str, key: object) -> str:
    """`table KEY`, the form in which audits name rows."""
    if isinstance(key, bytes):
        return f"{table} {endpoint_name(EndpointKey.unpack(key))}"
    if isinstance(key, EntitledKey):
        return f"{table} {entitled_name(key)}"
    if isinstance(key, SubnetKey):
        return f"{table} {subnet_name(key)}"
    return f"{table} {key}"
