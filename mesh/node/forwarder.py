"""From the compiled rows to the data plane: one worker thread, one batch at a time.

Whatever changed while a batch was being written goes out together with the next one. A data plane
that refuses rows costs nothing but these rows: it is told as a problem, and repaired by the audit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from dataplane.backend import (
    NEARLY_FULL,
    AuditReport,
    Backend,
    DataplaneError,
    Json,
    TableFull,
    Unavailable,
    Usage,
    open_backend,
)
from mesh.core.errors import NotReady
from mesh.core.forwarding import Forwarding
from mesh.node.config import Config
from mesh.node.drops import DropLog
from mesh.node.log import LimitedLog, event

ROWS_AT_ONCE = 8192
"""Endpoint rows in one batch: 5 ms to put them in order."""
AUDIT_PERIOD_S = 60.0
"""A full comparison with the kernel's maps; it costs a dump of the maps."""
AUDIT_SHARE_MAX = 0.05
"""Of the time that may go into audits: very large tables are compared less often."""
MEND_FIRST_S = 1.0
"""Until the first repair after a failure."""
ADJACENCY_PERIOD_S = 2.0
"""How soon a changed interface or link address of a peer is taken up where nothing tells of it, and
how often those are looked for that are not there."""
FOLLOWED_PERIOD_S = 10.0
"""How often all are looked at where the kernel tells of changes. It is silent about what paths
carry, which the same look finds out."""
ADJACENCY_PAUSE_S = 0.05
"""Between two looks at least: an interface that comes up is told of many times."""
ADJACENCY_SHARE_MAX = 0.05
"""Of the time that may go into looks, whatever is told."""

DROPS_PERIOD_S = 0.5
"""How soon drops are seen; between two looks the kernel holds several hundred."""

_logger = logging.getLogger("weft.dataplane")
T = TypeVar("T")


class Forwarder:
    """Owns the backend and keeps it equal to what `Forwarding` compiles."""

    def __init__(self, config: Config, forwarding: Forwarding) -> None:
        self._config = config
        self._forwarding = forwarding
        self._limiter = trio.CapacityLimiter(1)
        self._lock = trio.Lock()
        self._changed = trio.Event()
        self._log = LimitedLog(_logger, trio.current_time)
        self._backend: Backend | None = None
        self.drops = DropLog()
        self.reason = "not started"
        """the mode and why it was taken, in words"""
        self._full: TableFull | None = None
        """rows that wait for room: the backend writes them when there is some"""
        self._failed: str | None = None
        """what was not carried out, in words: to be mended by a repair"""
        self._mending = trio.Event()
        self.missing_interfaces: tuple[str, ...] = ()
        """attached interfaces that are not there"""
        self.synced = False
        """whether every compiled row has been handed to the backend"""

    @property
    def problem(self) -> str | None:
        """What keeps rows from being installed, in words."""
        return self._failed or (None if self._full is None else str(self._full))

    def nearly_full(self) -> dict[str, Usage]:
        """The tables that have less than a fifth of their room left for what is compiled."""
        tables = self._forwarding.tables()
        used = {
            name: Usage(len(getattr(tables, name)), room)
            for name, room in self.backend.capacities().items()
            if name != "peers"  # they follow from the gateways
        }
        return {name: u for name, u in used.items() if u.used > NEARLY_FULL * u.max}

    @property
    def backend(self) -> Backend:
        if self._backend is None:
            raise NotReady("the data plane is not started yet: try again in a second")
        return self._backend

    async def open(self) -> None:
        """Load or adopt the data plane and install all rows. Raises NotReady."""
        config = self._config
        if config.underlay is None:
            opener = partial(
                open_backend,
                "memory",
                instance=self._instance(),
                underlay="",
                capacity=config.capacity,
            )
        else:
            opener = partial(
                open_backend,
                config.dataplane_mode,  # type: ignore[arg-type]  # checked by the configuration
                instance=self._instance(),
                underlay=config.underlay,
                wan_ifname=config.wan_if,
                capacity=config.capacity,
                hook=config.hook,  # type: ignore[arg-type]  # likewise
            )
        try:
            backend, self.reason = await self._in_thread(opener)
        except Unavailable as error:
            raise NotReady(f"data plane: {error}") from None
        except DataplaneError as error:
            raise NotReady(f"data plane: {error}") from None
        self._backend = backend
        if config.underlay is None and config.dataplane_mode == "auto":
            self.reason = "memory: no underlay address is configured"
        event(_logger, "dataplane.open", mode=backend.mode, reason=self.reason)
        async with self._lock:
            self._forwarding.forget_delta()
            await self._attempt(backend.replace, self._forwarding.snapshot())

    def _instance(self) -> str:
        return f"{self._config.mesh_name}-{self._config.node_name}"

    def poke(self) -> None:
        """Rows may have changed."""
        self.synced = False
        self._changed.set()

    async def run(self) -> None:
        """Write batches as they come, and look after adjacency and drift, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            nursery.start_soon(self._refresh)
            nursery.start_soon(self._take_drops)
            nursery.start_soon(self._audit_regularly)
            nursery.start_soon(self._mend)

    async def close(self) -> None:
        """Let go; what is installed goes on forwarding."""
        if self._backend is not None:
            await self._in_thread(self._backend.close)

    async def audit(self, *, repair: bool = False) -> AuditReport:
        """Compare all installed rows with the compiled ones; with `repair`, make them so."""
        async with self._lock:
            await self._flush()
            tables = self._forwarding.snapshot()
            call = self.backend.repair if repair else self.backend.audit
            try:
                report = await self._in_thread(partial(call, tables))
            except DataplaneError as error:
                if repair:
                    self._note(error)
                raise NotReady(f"data plane: {error}") from None
            if repair:
                self._note(None)
            return report

    async def read(self, call: Callable[[Backend], T]) -> T:
        """Ask the backend something, between two batches. Raises NotReady."""
        async with self._lock:
            try:
                return await self._in_thread(partial(call, self.backend))
            except DataplaneError as error:
                raise NotReady(f"data plane: {error}") from None

    async def show(self) -> Json:
        return await self.read(lambda backend: backend.show())

    # ---- inner ----

    async def _write(self) -> None:
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            async with self._lock:
                await self._flush()

    async def _flush(self) -> None:
        while delta := self._forwarding.take_delta(ROWS_AT_ONCE):
            await self._attempt(self.backend.apply, delta)
        self._note_synced()

    async def _attempt(self, call: Callable[[T], None], rows: T) -> None:
        try:
            await self._in_thread(partial(call, rows))
        except DataplaneError as error:
            if self._failed is None:
                self._note(error)
        else:
            self._full = None
            self._note_synced()

    def _note(self, error: DataplaneError | None) -> None:
        """How a call that writes whole tables has ended, or one that failed."""
        self._full = error if isinstance(error, TableFull) else None
        self._failed = None if error is None or self._full is not None else str(error)
        if error is not None:
            self._log.event("dataplane.refused", level=logging.ERROR, reason=error)
        if self._failed is not None:
            self._mending.set()
        self._note_synced()

    def _note_synced(self) -> None:
        waiting = self._changed.is_set() or self._forwarding.behind
        self.synced = self.problem is None and not waiting

    async def _refresh(self) -> None:
        while True:
            pause_s, period_s = ADJACENCY_PAUSE_S, ADJACENCY_PERIOD_S
            try:
                unresolved, gone, spent_s = await self.read(_look_again)
                self._note_missing(gone)
                pause_s = max(pause_s, spent_s / ADJACENCY_SHARE_MAX)
                if self.backend.changes is not None and not unresolved:
                    period_s = FOLLOWED_PERIOD_S
            except NotReady as error:
                self._log.event("dataplane.adjacency_failed", reason=error)
            await trio.sleep(pause_s)
            with trio.move_on_after(period_s):
                await self._changed_outside()

    def _note_missing(self, gone: tuple[str, ...]) -> None:
        if gone != self.missing_interfaces:
            self.missing_interfaces = gone
            self._log.event(
                "dataplane.interfaces_gone", count=len(gone), interfaces=",".join(gone[:5])
            )

    async def _changed_outside(self) -> None:
        """Until the backend is told of a change; for ever where nobody tells it."""
        changes = self.backend.changes
        try:
            while changes is not None:
                if changes.take():
                    return
                await trio.lowlevel.wait_readable(changes.fileno())
        except OSError as error:
            self._log.event("dataplane.changes_unread", reason=error)
        await trio.sleep_forever()

    async def _take_drops(self) -> None:
        while True:
            await trio.sleep(DROPS_PERIOD_S)
            try:
                self.drops.add(await self.read(lambda backend: backend.take_drops()))
            except NotReady as error:
                self._log.event("dataplane.drops_unread", reason=error)

    async def _audit_regularly(self) -> None:
        pause_s = AUDIT_PERIOD_S
        while True:
            await trio.sleep(pause_s)
            begun_s = trio.current_time()
            try:
                report = await self.audit()
                pause_s = max(AUDIT_PERIOD_S, (trio.current_time() - begun_s) / AUDIT_SHARE_MAX)
                if not (report.clean or self._only_full(report)):
                    self._log.event(
                        "dataplane.drifted",
                        missing=report.missing_count,
                        stale=report.stale_count,
                        wrong=report.wrong_count,
                    )
                    await self.audit(repair=True)
            except NotReady as error:
                self._log.event("dataplane.audit_failed", reason=error)

    def _only_full(self, report: AuditReport) -> bool:
        """Whether nothing is missing but what has no room, which no repair gives it."""
        refused = 0 if self._full is None else self._full.refused_all
        return not (report.stale_count or report.wrong_count) and report.missing_count == refused

    async def _mend(self) -> None:
        """Repair after a failure, at once and then more and more seldom, until it succeeds."""
        while True:
            await self._mending.wait()
            pause_s = MEND_FIRST_S
            while self._failed is not None:
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, AUDIT_PERIOD_S)
                try:
                    await self.audit(repair=True)
                except NotReady as error:
                    self._log.event("dataplane.repair_failed", reason=error)
            self._mending = trio.Event()

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)


def _look_again(backend: Backend) -> tuple[int, tuple[str, ...], float]:
    """How many rows lack something of this machine, the interfaces that are not there, and what it
    cost to find out, in seconds of CPU."""
    begun_s = time.thread_time()
    unresolved = backend.refresh_adjacency()
    return unresolved, backend.missing_interfaces(), time.thread_time() - begun_s
