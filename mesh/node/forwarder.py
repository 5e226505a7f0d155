"""From the compiled rows to the data plane: one worker thread, one batch at a time.

Whatever changed while a batch was being written goes out together with the next one. A data plane
that refuses rows costs nothing but these rows: it is told as a problem, and repaired by the audit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import trio

from dataplane.backend import AuditReport, Backend, DataplaneError, Json, Unavailable, open_backend
from mesh.core.errors import NotReady
from mesh.core.forwarding import Forwarding
from mesh.node.config import Config
from mesh.node.drops import DropLog
from mesh.node.log import LimitedLog, event

AUDIT_PERIOD_S = 60.0
"""A full comparison with the kernel's maps; it costs a dump of the maps."""
ADJACENCY_PERIOD_S = 2.0
"""How soon a changed interface or link address of a peer is taken up."""

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
        self.problem: str | None = None
        """what keeps rows from being installed, in words"""
        self.synced = False
        """whether every compiled row has been handed to the backend"""

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
                endpoints_max=config.endpoints_max,
            )
        else:
            opener = partial(
                open_backend,
                config.dataplane_mode,  # type: ignore[arg-type]  # checked by the configuration
                instance=self._instance(),
                underlay=config.underlay,
                wan_ifname=config.wan_if,
                endpoints_max=config.endpoints_max,
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
            self._forwarding.take_delta()
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
                raise NotReady(f"data plane: {error}") from None
            if repair:
                self.problem = None
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
        delta = self._forwarding.take_delta()
        if delta:
            await self._attempt(self.backend.apply, delta)
        elif self.problem is None:
            self.synced = not self._forwarding.behind

    async def _attempt(self, call: Callable[[T], None], rows: T) -> None:
        try:
            await self._in_thread(partial(call, rows))
        except DataplaneError as error:
            self.problem = str(error)
            self._log.event("dataplane.refused", level=logging.ERROR, reason=error)
        else:
            waiting = self._changed.is_set() or self._forwarding.behind
            self.synced = self.problem is None and not waiting

    async def _refresh(self) -> None:
        while True:
            await trio.sleep(ADJACENCY_PERIOD_S)
            try:
                await self.read(lambda backend: backend.refresh_adjacency())
            except NotReady as error:
                self._log.event("dataplane.adjacency_failed", reason=error)

    async def _take_drops(self) -> None:
        while True:
            await trio.sleep(DROPS_PERIOD_S)
            try:
                self.drops.add(await self.read(lambda backend: backend.take_drops()))
            except NotReady as error:
                self._log.event("dataplane.drops_unread", reason=error)

    async def _audit_regularly(self) -> None:
        while True:
            await trio.sleep(AUDIT_PERIOD_S)
            try:
                report = await self.audit()
                if not report.clean:
                    self._log.event(
                        "dataplane.drifted",
                        missing=report.missing_count,
                        stale=report.stale_count,
                        wrong=report.wrong_count,
                    )
                    await self.audit(repair=True)
            except NotReady as error:
                self._log.event("dataplane.audit_failed", reason=error)

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)
