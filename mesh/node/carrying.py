"""Carrying the replica's effects out: what is stored, what is sent, and in which order.

- What this node wrote is durable before it is acknowledged or sent: a batch with anything of it
  goes to the store in one transaction, and on only then.
- What others wrote is passed on at once, since others have it, and stored beside that: a node that
  fetches a million records goes on asking for more while what has come is written. How much may
  wait for the store is bounded; beyond it nothing is asked for or passed on.
- Transactions come one after the other, in the order of the effects.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Final

import trio

from mesh.core.effects import (
    Alarm,
    AlarmOver,
    DropBranches,
    DropPeer,
    Effect,
    MembersChanged,
    Persist,
    Send,
    Stored,
)
from mesh.core.ops import NodeId
from mesh.core.pacing import Pace
from mesh.core.replica import Replica
from mesh.core.spool import Spool
from mesh.node.log import LimitedLog, event
from mesh.node.p2p.events import Channel
from mesh.node.p2p.transport import Transport
from mesh.node.store import Store, StoreError

MISBEHAVED_BACKOFF_S: Final = 30.0
"""A peer that broke the protocol is not dialled or accepted for so long."""
UNSTORED_RECORDS_MAX: Final = 300_000
"""Records of others that wait for the store: two chains of the largest size that is usual; they are
held anyway, and waiting costs 100 B each."""
STORE_FAILED: Final = "store.failed"

_logger = logging.getLogger("weft.node")


class Carrier:
    """One per node. `run` it; `wake` it when the replica has effects."""

    def __init__(
        self,
        node: NodeId,
        replica: Replica,
        store: Store,
        transport: Transport,
        log: LimitedLog,
        alarms: dict[str, str],
        name_of: Callable[[NodeId], str],
        members_changed: Callable[[], None],
    ) -> None:
        """`alarms` is what `status` shows: event -> fields in words. `members_changed` is called
        when the roster has grown."""
        self._node = node
        self._replica = replica
        self._store = store
        self._transport = transport
        self._log = log
        self._alarms = alarms
        self._name_of = name_of
        self._members_changed = members_changed
        self._spool = Spool(node, replica.lattice, replica.roster)
        self.failure: StoreError | None = None
        """why the store could not be written; None since it could"""
        self._work = trio.Event()
        self._hurry = trio.Event()
        self._pace = Pace()
        self._waiting: list[trio.Event] = []
        self._unstored: list[Stored] = []
        """what others wrote, to be stored beside everything else"""
        self._unstored_records = 0
        self._store_wait = trio.Event()
        self._stored = trio.Event()
        self._stored.set()

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for what was written to be stored."""
        return bool(self._waiting)

    def wake(self) -> None:
        """There may be effects."""
        self._work.set()
        if self._replica.pressing:
            self._hurry.set()

    async def durable(self) -> None:
        """Return when everything given to the replica until now is on disk. Raises StoreError."""
        done = trio.Event()
        self._waiting.append(done)
        self._work.set()
        self._hurry.set()
        await done.wait()
        if self.failure is not None:
            raise StoreError(f"{self.failure}; what was written counts once it can be stored")

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._store_what_others_wrote)
            while True:
                retry_ns = self._spool.retry_ns
                wait_s = math.inf if retry_ns is None else (retry_ns - time.monotonic_ns()) / 1e9
                with trio.move_on_after(max(0.0, wait_s)):
                    await self._work.wait()
                await self._gather()
                self._work = trio.Event()
                waiting, self._waiting = self._waiting, []
                try:
                    await self._carry_out(self._replica.drain(), at_once=bool(waiting))
                finally:
                    for done in waiting:
                        done.set()

    async def _gather(self) -> None:
        """In a busy mesh, let more come to be passed on together. Whoever waits for a write to be
        stored, or a peer for an answer, does not wait for this."""
        wait_ns = self._pace.wait_ns(time.monotonic_ns())
        if wait_ns and not self._waiting and not self._replica.pressing:
            self._hurry = trio.Event()
            with trio.move_on_after(wait_ns / 1e9):
                await self._hurry.wait()
        self._pace.spend(time.monotonic_ns())

    async def _carry_out(self, effects: Sequence[Effect], *, at_once: bool) -> None:
        """In order; what belongs to the store goes there before any send that relies on it.
        `at_once`: all of it is to be stored on return."""
        others = [effect for effect in effects if isinstance(effect, Stored)]
        if at_once or self._spool.retry_ns is not None or not all(map(self._waits, others)):
            await self._stored.wait()
            await self._to_store(effects)
            self._perform(self._spool.allowed())
            return
        if others:
            self._unstored += others
            self._unstored_records += sum(map(_records, others))
            self._stored = trio.Event()
            self._store_wait.set()
        self._perform(effects)
        if self._unstored_records > UNSTORED_RECORDS_MAX:
            await self._stored.wait()

    def _waits(self, effect: Stored) -> bool:
        """Whether what is sent does not rely on it."""
        return isinstance(effect, Persist | DropBranches) and effect.chain.node != self._node

    async def _store_what_others_wrote(self) -> None:
        while True:
            await self._store_wait.wait()
            self._store_wait = trio.Event()
            while self._unstored:
                batch, self._unstored = self._unstored, []
                await self._to_store(batch)
                self._unstored_records -= sum(map(_records, batch))
            self._stored.set()

    async def _to_store(self, effects: Sequence[Effect]) -> None:
        """What of a batch belongs to the store, in one transaction."""
        batch = self._spool.take(effects, time.monotonic_ns())
        if not batch:
            return
        try:
            await trio.to_thread.run_sync(self._store.apply, batch)
        except StoreError as error:
            self._spool.failed(time.monotonic_ns())
            self.failure = error
            self._alarms[STORE_FAILED] = str(error)
            self._log.event(STORE_FAILED, level=logging.CRITICAL, reason=error)
        else:
            self._note_stored()

    def _note_stored(self) -> None:
        withheld = self._spool.stored()
        if self.failure is None:
            return
        self.failure = None
        self._alarms.pop(STORE_FAILED, None)
        event(_logger, "store.recovered")
        if withheld:
            for peer in self._replica.peers():
                self._replica.peer_lagging(peer, time.monotonic_ns())

    def _perform(self, effects: Sequence[Effect]) -> None:
        """Everything but what belongs to the store."""
        for effect in effects:
            match effect:
                case Send():
                    channel: Channel = "push" if effect.push else "sync"
                    self._transport.send(effect.peer, effect.frame, channel)
                case MembersChanged():
                    self._members_changed()
                case DropPeer():
                    self._transport.drop(effect.peer, effect.reason, MISBEHAVED_BACKOFF_S)
                case Alarm():
                    self._note_alarm(effect)
                case AlarmOver():
                    self._alarms.pop(effect.event, None)
                    self._log.event(f"{effect.event}.over", level=logging.WARNING)

    def _note_alarm(self, alarm: Alarm) -> None:
        fields = {
            name: self._name_of(value) if isinstance(value, bytes) else value
            for name, value in alarm.fields.items()
        }
        self._alarms[alarm.event] = " ".join(f"{name}={value}" for name, value in fields.items())
        self._log.event(alarm.event, level=logging.ERROR, **fields)


def _records(effect: Stored) -> int:
    return len(effect.puts) + len(effect.deletes) if isinstance(effect, Persist) else 0
