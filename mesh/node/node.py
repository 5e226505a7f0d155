"""The node: carries the replica's effects out under trio, and feeds it what happens.

One task each: events of the transport, effects, timers, the writer's housekeeping, the data plane,
the local API. Everything that decides is synchronous and elsewhere (`mesh.core`); between two
awaits the replica, the view and the compiled rows always agree.

The path of a local write: `submit` computes the operations from the view as it is, the replica and
the view take them at once, and `submit` returns when the store has them. Writes that arrive while
the store is busy are signed and stored together.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import secrets
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgpack
import trio

from mesh.core.clock import HybridClock
from mesh.core.errors import RequestError
from mesh.core.forwarding import ENDPOINTS_AT_ONCE, Forwarding
from mesh.core.interest import Interests, Policy
from mesh.core.keeping import follow
from mesh.core.ops import NodeId, Op
from mesh.core.replica import Replica
from mesh.core.view import View
from mesh.core.writer import Writer
from mesh.node import addresses
from mesh.node.boot import HEARS_FIRST, LACKS, boot
from mesh.node.carrying import Carrier
from mesh.node.config import Config, ConfigError
from mesh.node.discovery import Discovery
from mesh.node.forwarder import Forwarder
from mesh.node.inquiry import Inquiries
from mesh.node.joining import Joining
from mesh.node.log import LimitedLog, event
from mesh.node.memory import uncollected
from mesh.node.neighbours import Neighbours
from mesh.node.p2p.events import FrameIn, Overflow, PeerDown, PeerUp
from mesh.node.p2p.transport import Transport
from mesh.node.public import PublicPort
from mesh.node.reloading import Reloading
from mesh.node.retiring import Retiring
from mesh.node.rotating import OwnKey, Rotating
from mesh.node.salvage import REBUILT
from mesh.node.store import StoreError
from mesh.node.watching import Watches
from mesh.version import VERSION

if TYPE_CHECKING:
    from trio_typing import TaskStatus

HOUSEKEEPING_S = 1.0
HOUSE_ENDPOINTS = 1024
"""Changed endpoints that housekeeping looks at in one go: 2 ms, and 20 where all have moved."""
TOUCHED_AT_ONCE = 2048
"""Records of one chain of another node that the view takes up in one go: 2 ms."""
SOFT_STATE_S = 1.0
HOLD_S = 0.7
"""How long a command about a VPC that is not kept here waits for peers; it answers within 1 s."""
HOST_ADDRS_S = 30.0
"""How old our own addresses may be; a look costs some 15 ms of CPU."""
STORE_REBUILT = "store.rebuilt"
MOVES_HELD = "endpoint.moves_held"
HELD_NAMED_MAX = 5

_logger = logging.getLogger("weft.node")


class Node:
    """One running node. Everything here is used from trio's thread only."""

    def __init__(self, config: Config) -> None:
        """Read key and store. Raises BadInput or NotReady; nothing is started yet."""
        self.public = PublicPort()
        self.reloading = Reloading(config, self.public, self._use_mesh)
        with uncollected():
            booted = boot(config)
        self.store = booted.store
        self.id: NodeId = booted.member.node
        self.member = booted.member
        self.damaged_branches = booted.damaged
        self.clock = HybridClock()
        key = OwnKey(booted.seed)
        self.replica = Replica(
            self.id,
            booted.roster,
            booted.lattice,
            sign=key.sign,
            nonce=secrets.token_bytes,
            jitter=random.random,
            now_ns=time.monotonic_ns(),
            hears_first=booted.hears_first,
            lacks=booted.lacks,
        )
        self.view = View(self.replica.holdings)
        self.writer = Writer(self.id, self.member.site, self.view, self.clock, secrets.token_bytes)
        self.interests = Interests(
            self.id, self.member.site, self.view, self.replica.writes, _policy(config.interest)
        )
        self._attached: dict[str, str] = {}
        """ifname -> VPC"""
        self._gateways_seen = self.view.reader(brief=True)
        self.watches = Watches(self.view)
        self.forwarding = Forwarding(self.id, self.member.site, self.view)
        self.forwarder = Forwarder(config, self.forwarding)
        self.joining = Joining(key, self.replica, self.store, self.advertised_addrs, self.durable)
        self.rotating = Rotating(
            key, config.node_key_path, self.replica, self.store, self.durable, self._key_changed
        )
        self.retiring = Retiring(self.id, key, self.replica, self.view, self.durable)
        self.transport = Transport(
            self.id,
            booted.seed,
            config.listen,
            self._identify,
            self.joining.handle,
            take_shown=self._take_shown,
            rng=random.Random(secrets.randbits(64)),  # noqa: S311  # spreads load, hides nothing
            key_of=self._key_of,
            cloned=self._met_clone,
        )
        self.discovery = Discovery(
            lambda: key.public,
            self.advertised_addrs,
            self._identify,
            lambda: self.neighbours.dial_members(),
        )
        self.neighbours = Neighbours(
            self.id,
            self.replica,
            self.view,
            self.store,
            self.transport,
            lambda node: self.discovery.found.get(node, ()),
        )
        self.inquiries = Inquiries(
            self.replica, lambda node, frame: self.transport.send(node, frame, "sync")
        )
        self.started_ns = time.time_ns()
        self.alarms: dict[str, str] = {}
        """alarm event -> its last fields in words, for `status`"""
        self._lacks = booted.lacks
        if aside := self.store.get_meta(REBUILT):
            self.alarms[STORE_REBUILT] = f"the damaged file is {aside.decode()}"
        self._log = LimitedLog(_logger, trio.current_time)
        self._absorbed = trio.Event()
        self._timer_changed = trio.Event()
        self._behind = trio.Event()
        self._carrier = Carrier(
            self.id,
            self.replica,
            self.store,
            self.transport,
            self._log,
            self.alarms,
            self.name_of,
            self._members_changed,
        )
        self._key = key
        self._show_key()
        self._host_addrs: list[str] = []
        self._host_addrs_at_s = 0.0

    # ---- what the API asks ----

    @property
    def config(self) -> Config:
        """The configuration in use."""
        return self.reloading.config

    def advertised_addrs(self) -> list[str]:
        """Multiaddrs at which other nodes can dial this one."""
        own = addresses.advertised(self.transport.listen_addrs(), self._host_addrs)
        return [*own, *self.transport.circuit_addrs()]

    async def submit(self, make_ops: Callable[[], Sequence[Op]]) -> bool:
        """Run `make_ops` against the view as it is, write what it returns, wait until it is stored.

        Returns whether anything was written. Raises what `make_ops` raises, Refused or NotReady:
        nothing was written then, unless the store failed with this very write, which says so.
        """
        if self._carrier.failure is not None:
            raise StoreError(f"{self._carrier.failure}; nothing was written")
        ops = make_ops()
        wrote = bool(ops) and self.replica.local(ops, time.monotonic_ns())
        if wrote:
            self._absorb()
        if wrote or self._carrier.awaited:
            await self.durable()
        return wrote

    async def durable(self) -> None:
        """Return when everything written until now is on disk. Raises StoreError."""
        await self._carrier.durable()

    def attach(self, ifname: str, vpc_id: str, ip: str, mac: str) -> None:
        """Install the local port of an endpoint. The caller has stored it."""
        self.forwarding.attach(ifname, vpc_id, ip, mac)
        self._lead_to(ifname, vpc_id)
        self._absorb()

    def detach(self, ifname: str) -> None:
        self.forwarding.detach(ifname)
        self._lead_to(ifname, None)
        self._absorb()

    @asynccontextmanager
    async def holding(self, vpc_id: str) -> AsyncIterator[None]:
        """Keep the VPC's shard meanwhile, so that what is asked or written is judged by what there
        is. Entered once peers have told what they have of it, or after `HOLD_S` without."""
        news = not self.replica.keeps(vpc_id)
        self.interests.attach(vpc_id)
        self._absorb()
        try:
            if news and self.replica.peers():
                with trio.move_on_after(HOLD_S):
                    while not (self.replica.told and self._meets_holder(vpc_id)):
                        self._absorbed = trio.Event()
                        await self._absorbed.wait()
            yield
        finally:
            self.interests.detach(vpc_id)
            self._absorb()

    def _meets_holder(self, vpc_id: str) -> bool:
        """Whether a linked peer keeps the VPC, too, or nobody says that he does; and the view has
        what came of it."""
        if self.replica.holdings.touched:
            return False
        if not self.interests.holders.get(vpc_id):
            return True
        return any(self.replica.compares(peer, vpc_id) for peer in self.replica.peers())

    def _lead_to(self, ifname: str, vpc_id: str | None) -> None:
        """What is attached here is a reason to keep a VPC."""
        before = self._attached.pop(ifname, None)
        if vpc_id is not None:
            self._attached[ifname] = vpc_id
            self.interests.attach(vpc_id)
        if before is not None:
            self.interests.detach(before)

    # ---- running ----

    async def run(
        self,
        serve_api: Callable[..., Awaitable[None]],
        *,
        task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run until cancelled. `serve_api(node, task_status=…)` is started with `nursery.start`.

        Started when links and API are open and the data plane has every stored row.
        """
        try:
            await self._look_up_addresses()
            with uncollected():
                await self._load_view()
                await self.forwarder.open()
            # What is there now stays: a full collection that went through it all would stop the
            # loop for 80 ms with a million endpoints.
            gc.collect()
            gc.freeze()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.forwarder.run)
                await nursery.start(self.transport.run)
                self._use_mesh(self.config)
                self._members_changed()
                nursery.start_soon(self._take_events)
                nursery.start_soon(self._carrier.run)
                nursery.start_soon(self.neighbours.run)
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._keep_house)
                nursery.start_soon(self._catch_up)
                nursery.start_soon(self._tell_soft_state)
                nursery.start_soon(self.discovery.run)
                await nursery.start(serve_api, self)
                event(_logger, "node.started", node=self.id, site=self.member.site)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True):
                await self.forwarder.close()
                self.store.close()
            event(_logger, "node.stopped", node=self.id)

    def _use_mesh(self, config: Config) -> None:
        self.transport.set_bootstrap(config.bootstrap)
        self.transport.carry_others(config.relay)
        self.discovery.use(config.mdns)
        self.interests.set_policy(_policy(config.interest))
        self._absorb()

    async def _load_view(self) -> None:
        """Read everything stored, so that forwarding starts before any peer is met."""
        self.view.set_members(self.replica.roster.members())
        for touched in self.replica.holdings.everything():
            self.view.update((touched,))
            self.forwarding.update()
            self.forwarding.forget_delta()  # the data plane is given all rows at once
            await trio.lowlevel.checkpoint()
        for attachment in self.store.attachments():
            self.forwarding.attach(attachment.ifname, attachment.vpc, attachment.ip, attachment.mac)
            self._lead_to(attachment.ifname, attachment.vpc)
        self.interests.members_changed()
        self._follow()
        self.forwarding.update()

    async def _take_events(self) -> None:
        async for happened in self.transport.events:
            now_ns = time.monotonic_ns()
            match happened:
                case PeerUp():
                    event(_logger, "peer.up", peer=self.name_of(happened.node))
                    self.neighbours.met(happened)
                    self.replica.peer_up(happened.node, now_ns, happened.speaks)
                    self.forwarding.set_live(happened.node, True)
                case PeerDown():
                    event(
                        _logger,
                        "peer.down",
                        peer=self.name_of(happened.node),
                        reason=happened.reason,
                    )
                    self.replica.peer_down(happened.node, now_ns)
                    self.forwarding.set_live(happened.node, False)
                case FrameIn():
                    self.inquiries.note(happened.node, happened.frame)
                    self.replica.receive(happened.node, happened.frame, now_ns)
                case Overflow():
                    self.replica.peer_lagging(happened.node, now_ns)
            self._absorb()

    def _met_clone(self, peer: NodeId) -> None:
        self.replica.met_clone(peer)
        self._carrier.wake()

    def _absorb(self) -> None:
        """Bring the view and the rows up to what the replica holds now."""
        if touched := self.replica.take_touched(TOUCHED_AT_ONCE):
            self.view.update(touched)
        self._follow()
        self._update_rows()
        self.watches.wake()
        self._absorbed.set()
        self._carrier.wake()
        self._timer_changed.set()

    def _update_rows(self) -> None:
        if self.forwarding.update(ENDPOINTS_AT_ONCE):
            self.forwarder.poke()
        if self.forwarding.behind or self.replica.holdings.touched:
            self._behind.set()

    async def _catch_up(self) -> None:
        """Many records come at once, or many rows change by one word, such as a VPC's sites: a few
        at a time, so that nothing else waits for them."""
        while True:
            await self._behind.wait()
            self._behind = trio.Event()
            await trio.lowlevel.checkpoint()
            self._absorb()

    def _follow(self) -> None:
        """Keep the shards that the view as it is calls for, and no others."""
        while follow(self.interests, self.replica, self.writer):
            self.view.update(self.replica.take_touched(TOUCHED_AT_ONCE))
        self.neighbours.note_holders(self.interests)

    async def _keep_time(self) -> None:
        while True:
            self._timer_changed = trio.Event()
            deadline_ns = self.replica.next_deadline_ns()
            wait_s = HOUSEKEEPING_S
            if deadline_ns is not None:
                wait_s = min(wait_s, max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9))
            with trio.move_on_after(wait_s):
                await self._timer_changed.wait()
            now_ns = time.monotonic_ns()
            if deadline_ns is not None and now_ns >= deadline_ns:
                self.replica.timer(now_ns)
                self._absorb()

    async def _keep_house(self) -> None:
        """Own registration, withdrawals, evictions that concern this node; open invitations."""
        while True:
            if self.replica.writable:
                await self._tend()
                if self._lacks and not self.replica.lacks:
                    await self._heard()
            self._note_held_moves()
            self.watches.expire()
            try:
                self.transport.open_joining(await self.joining.is_open())
            except StoreError as error:
                self._log.event("store.unread", reason=error)
            if trio.current_time() - self._host_addrs_at_s >= HOST_ADDRS_S:
                await self._look_up_addresses()
            if self._gateways_seen.take().gateways:
                self.neighbours.dial_members()
            await trio.sleep(HOUSEKEEPING_S)

    async def _tend(self) -> None:
        """Carry out what is due by itself, a little at a time."""
        try:
            await self.submit(self._house_ops)
            while self.writer.housekeeping_behind:
                await trio.lowlevel.checkpoint()
                await self.submit(self._house_ops)
        except RequestError as error:
            self._log.event("node.housekeeping_refused", reason=error)

    async def _look_up_addresses(self) -> None:
        """The machine's addresses come and go; what has changed is registered by housekeeping."""
        self._host_addrs = await addresses.of_host(self.config.underlay)
        self._host_addrs_at_s = trio.current_time()

    async def _heard(self) -> None:
        """Peers have told what was lost here with the store, and that is stored."""
        try:
            await self.durable()
            for key in (REBUILT, HEARS_FIRST, LACKS):
                await trio.to_thread.run_sync(self.store.set_meta, key, b"")
        except StoreError:
            return  # in `status` already
        self._lacks = False
        self.alarms.pop(STORE_REBUILT, None)

    def _note_held_moves(self) -> None:
        """Endpoints that moved too often, in `status` while their moves are held."""
        held = self.writer.held(time.time_ns())
        if not held:
            self.alarms.pop(MOVES_HELD, None)
            return
        named = ", ".join(
            f"{self.view.names.vpc_text(h.vpc)}/{h.ip}" for h in held[:HELD_NAMED_MAX]
        )
        self.alarms[MOVES_HELD] = f"{len(held)} endpoints, such as {named}"
        self._log.event(MOVES_HELD, count=len(held), endpoints=named)

    def _house_ops(self) -> list[Op]:
        now_ns = time.time_ns()
        registration = self.writer.register_gateway(
            self.config.underlay or "",
            self.advertised_addrs(),
            VERSION,
            self.config.encapsulation,
            now_ns=now_ns,
        )
        return [*registration, *self.writer.housekeeping(now_ns, HOUSE_ENDPOINTS)]

    async def _tell_soft_state(self) -> None:
        while True:
            digest = self.replica.lattice.digest("mesh")[:8]
            self.transport.set_soft_state(msgpack.packb([2, VERSION, digest]))
            await trio.sleep(SOFT_STATE_S)

    # ---- members ----

    def name_of(self, node: NodeId) -> str:
        """A member's name, or the start of an unknown id."""
        member = self.replica.roster.members().get(node)
        return member.name if member else node.hex()[:8]

    def _identify(self, key: bytes) -> NodeId | None:
        """The active member with public key `key`, or one that is linked and just retired."""
        node = self.replica.roster.node_of_key(key)
        if node is None:
            return None
        known = self.replica.roster.active(node) is not None or self.replica.parting(node)
        return node if known else None

    def _key_of(self, node: NodeId) -> bytes | None:
        member = self.replica.roster.members().get(node)
        return member.key if member else None

    def _take_shown(self, shown: Sequence[bytes]) -> None:
        if not shown:
            return
        self.rotating.take_shown(shown)
        self._absorb()

    def _show_key(self) -> None:
        roster = self.replica.roster
        self.transport.set_identity(
            self._key.seed, roster.rotations(self.id), roster.admission(self.id)
        )

    def _key_changed(self) -> None:
        self._show_key()
        self._absorb()

    def _members_changed(self) -> None:
        members = self.replica.roster.members()
        self.view.set_members(members)
        self.interests.members_changed()
        self._absorb()
        self.neighbours.dial_members()


def _policy(text: str) -> Policy:
    return "all" if text == "all" else "hosted"


async def run(config: Config) -> None:
    """`weft run`: a node until SIGTERM or SIGINT; its data plane stays. Raises RequestError, alone
    or in groups."""
    from mesh.node.api import serve

    node = Node(config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_heed_signals, node, nursery.cancel_scope)
        await nursery.start(node.run, serve)
        _notify_ready()


async def _heed_signals(node: Node, scope: trio.CancelScope) -> None:
    """SIGHUP: read the configuration again. SIGTERM, SIGINT: stop in order."""
    with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            if number == signal.SIGHUP:
                try:
                    await node.reloading.reload()
                except ConfigError as error:
                    event(_logger, "config.refused", level=logging.ERROR, reason=error)
                continue
            event(_logger, "node.stopping", signal=signal.Signals(number).name)
            scope.cancel()
            return


def _notify_ready() -> None:
    """Tell a service manager that asked for it (sd_notify(3))."""
    path = os.environ.get("NOTIFY_SOCKET")
    if not path:
        return
    address = "\0" + path[1:] if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(b"READY=1", address)
        except OSError as error:
            event(_logger, "node.notify_failed", level=logging.WARNING, reason=error)
