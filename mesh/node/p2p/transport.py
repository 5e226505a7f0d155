"""All links of a node: accepting, dialling, exactly one link per peer, and what it costs nobody.

Rules of this file
- What is done on a peer's behalf runs guarded: it may cost that peer its link, nothing else (B1).
- Of two connections between the same nodes the end with the lower id decides. A second connection
  is a doubt about the first, so the first is asked: if it answers it stays. That settles dials that
  cross, and a peer that lost a link before we noticed; of a copy of a node that runs elsewhere it
  keeps one process out, which is told so (twins.py).
- Events are handed over through one bounded channel; who fills it waits, the others queue in turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from random import Random
from typing import TYPE_CHECKING, Any

import trio

from mesh.core.errors import PeerError
from mesh.core.ops import NodeId
from mesh.core.wire import SPOKEN, Versions
from mesh.node.log import LimitedLog
from mesh.node.p2p.dialler import Attempt, Dialler
from mesh.node.p2p.events import (
    Channel,
    Event,
    FrameIn,
    Overflow,
    PeerDown,
    PeerInfo,
    PeerUp,
)
from mesh.node.p2p.framing import FRAME_BYTES_MAX
from mesh.node.p2p.join import JOIN_PROTOCOL, JoinHandler
from mesh.node.p2p.link import (
    AGREE_S,
    DUPLICATE,
    NOT_NEEDED,
    SECOND,
    SOFT_STATE_BYTES_MAX,
    Crowd,
    DuplicateError,
    Link,
    now_ns,
)
from mesh.node.p2p.overlay import LINKS_MAX
from mesh.node.p2p.pulse import Pulse
from mesh.node.p2p.session import Identity, Keys, NotAdmittedError, Stream, open_session
from mesh.node.p2p.strangers import Strangers
from mesh.node.p2p.tcp import Address, Conduit, Listener, Net, NoFamily, TcpNet
from mesh.node.p2p.traversal import Traversal
from mesh.node.p2p.twins import Instance, Twins

SETUP_S = 15
"""Bound on a handshake: ten round trips of a bad satellite link. Silence ends it much earlier."""

PENDING_MAX = 32
"""Inbound connections that have not become a link yet; the oldest makes room for a new one."""

PENDING_GRACE_S = 3.0
"""For so long nobody who is heard of has to make room. A crowd that comes at once (everybody's
neighbour has been restarted) waits in the kernel's queue and is let in one after the other; without
it each would push another out before it has had its turn, and all would come again."""

EVENTS_MAX = 32

if TYPE_CHECKING:
    from trio_typing import TaskStatus

LET_GO_S = 10.0
LET_GO_WAIT_S = 1.0
_ACCEPT_PAUSE_S = 0.1
_logger = logging.getLogger("weft.p2p")


class Transport:
    """The node's end of all links.

    `run` it, once; read `events`; call the rest from the same trio loop at any time.
    """

    def __init__(
        self,
        node: NodeId,
        private_key: bytes,
        listen: Sequence[str],
        identify: Callable[[bytes], NodeId | None],
        join_handler: JoinHandler | None = None,
        *,
        take_shown: Callable[[Sequence[bytes]], None] = lambda shown: None,
        rng: Random,
        key_of: Callable[[NodeId], bytes | None] = lambda _: None,
        net: Net | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        speaks: Versions = SPOKEN,
        cloned: Callable[[NodeId], None] = lambda _: None,
    ) -> None:
        """
        Args:
            node: our own id.
            private_key: our Ed25519 seed, 32 bytes.
            listen: multiaddrs to listen on; port 0 takes any free one.
            identify: which member a public key belongs to; None is refused, both ways.
            join_handler: answers those who are not members yet, see `open_joining`.
            key_of: a member's public key; who has none is not reached through others.
            take_shown: takes in statements that a peer shows, after which `identify` may know it;
                PeerError: they do not hold.
            clock_ns: the wall clock, told to peers and compared with theirs, for `PeerInfo` only.
            speaks: the wire versions that peers are told of.
            cloned: called when a peer has proved that another process runs as this node.
        """
        self._node = node
        self._identity = Identity(private_key)
        self._instance = Instance(lambda: self._identity, cloned)
        self._listen = tuple(listen)
        self._identify_key = identify
        self._keys = Keys(lambda key: self._identify(key) is not None, take_shown, set())
        self._net: Net = net or TcpNet()
        self._clock_ns = clock_ns
        self._speaks = speaks
        self._log = LimitedLog(_logger, trio.current_time, burst=20, interval_s=1)
        self._dialler = Dialler(node, self._net, rng, self._log, self._converse, self._guard)
        self._overlay = self._dialler.overlay
        self._links: dict[NodeId, Link] = {}
        self.traversal = Traversal(
            node,
            self._links,
            self._identify,
            key_of,
            self._dialler,
            self._spawn,
            self._converse,
            self._receive,
            rng,
            self._log,
        )
        self._dialler.detours = self.traversal.detours
        self._crowd = Crowd(self._links)
        self._up_since_ns: dict[NodeId, int] = {}
        self._claims: dict[NodeId, trio.Lock] = {}
        self._pulse = Pulse()
        self._strangers = Strangers(join_handler, self._pulse, self._log)
        self._pending: dict[Conduit, tuple[trio.CancelScope, float]] = {}
        """scope, and since when by trio's clock"""
        self._pending_fewer = trio.Event()
        self._addrs: tuple[str, ...] = ()
        self._soft_state = b""
        self._wake_reporter = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._emit_channel: trio.MemorySendChannel[Event]
        self.events: trio.MemoryReceiveChannel[Event]
        self._emit_channel, self.events = trio.open_memory_channel[Event](EVENTS_MAX)

    # -- what the node calls --------------------------------------------------------------------

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and keep the links until cancelled; started when every address is listened on.

        Raises BadInput or NotReady when one of them cannot be had. Ends `events` when it returns.
        """
        listeners: list[Listener] = []
        try:
            for text in self._listen:
                listeners += await self._open(Address.parse(text))
            self._addrs = tuple(listener.addr for listener in listeners)
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                for listener in listeners:
                    nursery.start_soon(self._accept, listener)
                nursery.start_soon(self._pulse.run, self._beat)
                nursery.start_soon(self._dialler.run)
                nursery.start_soon(self._let_go)
                nursery.start_soon(self._report_overflows)
                task_status.started()
        finally:
            self._nursery = None
            for listener in listeners:
                listener.close()
            self._emit_channel.close()

    def send(self, node: NodeId, frame: bytes, channel: Channel = "push") -> None:
        """Queue `frame` for `node`; without a link it is dropped. Never waits.

        If it does not fit, everything queued for that peer is dropped and Overflow follows.
        Raises ValueError for a frame that is empty or larger than FRAME_BYTES_MAX.
        """
        if not 0 < len(frame) <= FRAME_BYTES_MAX:
            raise ValueError(f"frame of {len(frame)} bytes")
        link = self._links.get(node)
        if link is not None and self._crowd.overflows(link, channel, frame):
            self._wake_reporter.set()

    def set_identity(
        self, private_key: bytes, shown: Sequence[bytes], admission: bytes | None = None
    ) -> None:
        """Make handshakes with this key from now on; see `Identity` for what is shown in them."""
        self._identity = Identity(private_key, shown, admission)

    def set_targets(self, targets: Mapping[NodeId, Sequence[str]]) -> None:
        """Say which members there are to dial, and where. Ends links with who is no member now."""
        self._dialler.set_targets(targets)
        self.traversal.forget(self._dialler.targets)
        for node, lock in list(self._claims.items()):
            if node not in self._dialler.targets and not lock.locked():
                del self._claims[node]
        for link in list(self._links.values()):
            if self._identify(link.session.key) != link.node:
                link.session.kill("no longer a member")

    def set_bootstrap(self, addrs: Sequence[str]) -> None:
        """Also dial these multiaddrs, whichever member is there. Raises BadInput."""
        self._dialler.set_bootstrap(addrs, lambda node: node in self._links)

    def carry_others(self, willing: bool) -> None:
        """Whether links between members that do not reach each other may go through here."""
        self.traversal.relay.willing = willing

    def set_holders(self, holders: Mapping[str, Set[NodeId]]) -> None:
        """Say for each shard that this node holds which other members do, so that each has links.

        Empty, as at the start: all members hold all.
        """
        self._overlay.set_holders(holders)
        self._dialler.wake()

    def drop(self, node: NodeId, reason: str, backoff_s: float) -> None:
        """End the link to `node` at once; neither dial nor accept it for `backoff_s`."""
        self._overlay.block(node, now_ns() + int(backoff_s * 1e9))
        self._dialler.cancel(node)
        if (link := self._links.get(node)) is not None:
            link.session.kill(reason)
        self._dialler.wake()

    def peers(self) -> list[PeerInfo]:
        """The links there are, by node id; whoever has read PeerUp finds the link here."""
        wall_ns = self._clock_ns()
        infos = []
        for node, link in sorted(self._links.items()):
            if link.session.ended:
                continue
            silent_s = self._pulse.watches[link.conduit].silent_s
            infos.append(
                PeerInfo(
                    node=node,
                    addr=link.conduit.remote,
                    path=link.conduit.path,
                    inbound=link.inbound,
                    rtt_ms=None if link.rtt_ns is None else link.rtt_ns / 1e6,
                    clock_offset_ns=link.clock_offset_ns,
                    connected_since_ns=self._up_since_ns[node],
                    last_rx_ns=wall_ns - int(silent_s * 1e9),
                    soft_state=link.soft_state,
                )
            )
        return infos

    def twins(self) -> dict[NodeId, Twins]:
        """Members of which a second process was refused here of late."""
        return self._instance.twins()

    def listen_addrs(self) -> tuple[str, ...]:
        """The multiaddrs really listened on, in the order asked for."""
        return self._addrs

    def circuit_addrs(self) -> list[str]:
        """Multiaddrs through relays, when this node is behind a NAT."""
        return self.traversal.circuit_addrs()

    def open_joining(self, allowed: bool) -> None:
        """Let unknown keys in, to `/weft/join/1` and nothing else, or stop doing so."""
        self._strangers.open(allowed)

    def set_soft_state(self, soft_state: bytes) -> None:
        """What our next heartbeats say. Raises ValueError beyond SOFT_STATE_BYTES_MAX bytes."""
        if len(soft_state) > SOFT_STATE_BYTES_MAX:
            raise ValueError(f"soft state of {len(soft_state)} bytes")
        self._soft_state = soft_state

    async def _open(self, address: Address) -> list[Listener]:
        """Listen on an address. "Every IPv6 address" of a machine that has none is nothing."""
        try:
            return [await self._net.listen(address)]
        except NoFamily:
            if not address.is_wildcard:
                raise
            self._log.event("p2p.no_family", level=logging.INFO, addr=address)
            return []

    # -- accepting ------------------------------------------------------------------------------

    async def _accept(self, listener: Listener) -> None:
        assert self._nursery is not None
        while True:
            try:
                conduit = await listener.accept()
            except OSError as error:  # out of file descriptors, most likely: some will come back
                self._log.event("p2p.accept_failed", addr=listener.addr, error=error)
                await trio.sleep(_ACCEPT_PAUSE_S)
                continue
            try:
                await self._make_room()
            except BaseException:
                conduit.close()
                raise
            self._receive(conduit)

    def _receive(self, conduit: Conduit, sender: NodeId | None = None) -> None:
        """Go on with a connection that came to us, if `sender` is given from that member only."""
        if self._nursery is None or len(self._pending) >= 2 * PENDING_MAX:
            conduit.abort()
            return
        scope = trio.CancelScope()
        self._pending[conduit] = scope, trio.current_time()
        self._nursery.start_soon(self._guard, self._inbound, conduit, scope, sender)

    async def _make_room(self) -> None:
        """Wait until there is room for one more that is no link yet."""
        while len(self._pending) >= PENDING_MAX:
            late_s = trio.current_time() - PENDING_GRACE_S
            for conduit, (scope, since_s) in self._pending.items():
                watch = self._pulse.watches.get(conduit)
                if since_s < late_s or (watch is not None and not watch.moving):
                    del self._pending[conduit]
                    scope.cancel()
                    self._log.event("p2p.pending_evicted", addr=conduit.remote)
                    break
            else:
                with trio.move_on_after(_ACCEPT_PAUSE_S):
                    await self._pending_fewer.wait()

    def _not_pending(self, conduit: Conduit) -> None:
        self._pending.pop(conduit, None)
        self._pending_fewer.set()
        self._pending_fewer = trio.Event()

    async def _inbound(
        self, conduit: Conduit, scope: trio.CancelScope, sender: NodeId | None
    ) -> None:
        try:
            with scope:
                await self._converse(conduit, None, sender)
        finally:
            self._not_pending(conduit)
            conduit.close()

    # -- one connection, from the handshake to its end ------------------------------------------

    async def _converse(
        self, conduit: Conduit, attempt: Attempt | None, sender: NodeId | None = None
    ) -> None:
        """Everything that happens on `conduit`. `attempt`: what dialled it; None: it came to us,
        from whoever it is unless it must be `sender`.

        Raises PeerError when it does not become a link; returns when the link has ended.
        """
        watch = self._pulse.watch(conduit)
        if attempt is not None:
            attempt.watch = watch
        link: Link | None = None
        stranger = False

        def admit(key: bytes) -> bool:
            nonlocal stranger
            node = self._identify(key)
            if sender is not None and node != sender:
                return False
            if node is None:
                stranger = attempt is None and self._strangers.admit()
                return stranger
            if attempt is not None:
                self._dialler.found(attempt, node)
                if attempt.node not in (None, node):
                    return False
            return node != self._node and not self._overlay.blocked(node, now_ns())

        try:
            async with open_session(
                conduit,
                self._identity,
                admit,
                initiator=attempt is not None,
                setup_s=SETUP_S,
                keys=self._keys,
            ) as session:
                watch.kill = session.kill
                if stranger:
                    await self._strangers.serve(session, conduit)
                    return
                first = None if attempt else await self._strangers.first_stream(session)
                if first is not None and first.protocol == JOIN_PROTOCOL:
                    await self._strangers.answer(session, first, conduit)
                    return
                node = self._identify(session.key)
                if node is None:
                    raise PeerError("no longer a member")
                link = Link(
                    node,
                    session,
                    conduit,
                    self._crowd,
                    self._speaks,
                    self._instance,
                    inbound=attempt is None,
                )
                await self._agree(link, first)
                self._keys.unheard.discard(session.key)
                if attempt is not None:
                    attempt.linked = True
                    if conduit.path == "direct":
                        self._dialler.good(node, conduit.remote)
                    self._dialler.done(attempt)
                await self._carry(link)
        finally:
            self._pulse.forget(conduit)
            if stranger:
                self._strangers.leave()
            if link is not None and self._links.get(link.node) is link:
                await self._take_down(link)
        if attempt is not None and not attempt.linked:
            # The end of a session cancels what goes on in it, without a word.
            raise PeerError(f"ended before there was a link: {session.ended}")

    async def _agree(self, link: Link, first: Stream | None) -> None:
        """Make `link` the link to its node, with the consent of both ends, or raise PeerError."""
        decider = self._node < link.node
        with trio.move_on_after(AGREE_S):
            if first is None:
                await link.open()
            else:
                await link.accept(first)
                if len(self._links) >= LINKS_MAX and link.node not in self._links:
                    await link.bye("full")
                    raise PeerError("no room for another link")
            await link.hello()
            if not decider:
                await link.activated()
            refusal, proof = await self._claim(link)
            if refusal:
                await link.bye(refusal, proof)
                raise DuplicateError(refusal)
            if decider:
                await link.activate()
            return
        raise PeerError("no agreement about the link")

    async def _claim(self, link: Link) -> tuple[str, bytes]:
        """Enter `link` among the links; returns why not, empty if it was, and what proves that."""
        async with self._claims.setdefault(link.node, trio.Lock()):
            if (present := self._links.get(link.node)) is not None:
                better = present.conduit.path == "relayed" and link.conduit.path == "direct"
                twin = b"" not in (ids := {present.their_instance, link.their_instance})
                if twin and len(ids) > 1 and (proof := await present.vouch(link.their_instance)):
                    self._note_twins(present, link)
                    return SECOND, proof
                if not better and await present.probe():
                    return DUPLICATE, b""
                present.session.kill("replaced")
                await present.gone.wait()
            if self._overlay.blocked(link.node, now_ns()):
                return "not now", b""
            if self._identify(link.session.key) != link.node:
                return "not a member", b""
            self._links[link.node] = link
            self._up_since_ns[link.node] = self._clock_ns()
            self._overlay.up(link.node, now_ns(), dialled=not link.inbound)
            self._not_pending(link.conduit)
            return "", b""

    def _note_twins(self, present: Link, link: Link) -> None:
        twins = Twins(present.conduit.remote, link.conduit.remote)
        self._instance.note(link.node, twins)
        self._event("p2p.second_process", link, linked=twins.linked)

    async def _carry(self, link: Link) -> None:
        """Announce the link and carry frames until it ends."""
        self._dialler.cancel(link.node)  # the link is there, and both ends agree that it counts

        async def deliver(channel: Channel, frame: bytes) -> None:
            await link.announced.wait()
            await self._emit(FrameIn(link.node, frame, channel))

        try:
            async with trio.open_nursery() as nursery:
                # Running before it is announced: a probe is answered even while nobody reads.
                nursery.start_soon(
                    link.run,
                    deliver,
                    lambda: self._soft_state,
                    self._clock_ns,
                    self.traversal.serves(link),
                )
                self.traversal.linked(link)
                conduit = link.conduit
                await self._emit(
                    PeerUp(link.node, conduit.remote, link.inbound, conduit.path, link.theirs)
                )
                link.announced.set()
                if link.overflowed:  # whoever read PeerUp was faster than we are
                    self._wake_reporter.set()
                self._event("p2p.link_up", link, inbound=link.inbound)
                link.beat()
        finally:
            if not link.session.ended:
                await link.part("shutting down")

    async def _take_down(self, link: Link) -> None:
        reason = link.session.ended
        try:
            if link.announced.is_set():
                self._event("p2p.link_down", link, reason=reason)
                await self._emit(PeerDown(link.node, reason))
        finally:
            del self._links[link.node]
            link.close()
            del self._up_since_ns[link.node]
            link.gone.set()
            if link.rtt_ns is not None:
                self._overlay.measured(link.node, link.rtt_ns)
            self._overlay.down(link.node, now_ns(), lost=NOT_NEEDED not in reason)
            self._dialler.wake()

    # -- standing tasks -------------------------------------------------------------------------

    def _beat(self) -> None:
        for link in self._links.values():
            link.beat()

    async def _let_go(self) -> None:
        """End links that are more than any shard needs, one at a time."""
        while True:
            await trio.sleep(LET_GO_S)
            node = self._overlay.surplus(now_ns(), self.traversal.in_use())
            if node is not None and (link := self._links.get(node)) is not None:
                await self._let_go_of(link)

    async def _let_go_of(self, link: Link) -> None:
        link.session.ended = link.session.ended or NOT_NEEDED
        await link.bye(NOT_NEEDED)
        with trio.move_on_after(LET_GO_WAIT_S):
            await link.gone.wait()  # the other end closes when it has read why
        link.session.kill(NOT_NEEDED)

    async def _report_overflows(self) -> None:
        while True:
            await self._wake_reporter.wait()
            self._wake_reporter = trio.Event()
            for node, link in sorted(self._links.items()):
                if link.overflowed and link.announced.is_set():
                    link.overflowed = False
                    self._event("p2p.overflow", link)
                    await self._emit(Overflow(node))

    def _spawn(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run a task that ends with the transport, and with nothing else."""
        if self._nursery is not None:
            self._nursery.start_soon(self._guard, task, *args)

    async def _guard(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run what serves one peer; whatever it raises ends there (B1)."""
        try:
            await task(*args)
        except NotAdmittedError as error:
            self._log.event("p2p.not_admitted", key=error.key)
        except PeerError as error:
            if not isinstance(error, DuplicateError):
                self._log.event("p2p.inbound_failed", level=logging.INFO, error=error)
        except Exception as error:
            # A mistake of ours that a peer has found a way to.
            if self._log.event("p2p.internal_error", level=logging.ERROR, error=repr(error)):
                _logger.error("p2p.internal_error", exc_info=error)

    # -- small things ---------------------------------------------------------------------------

    async def _emit(self, what: Event) -> None:
        try:
            await self._emit_channel.send(what)
        except trio.BrokenResourceError:
            # Nobody reads any more. That is the node's business; the links stay as they are.
            self._log.event("p2p.events_unread", level=logging.ERROR)

    def _identify(self, key: bytes) -> NodeId | None:
        try:
            return self._identify_key(key)
        except Exception as error:
            self._log.event("p2p.identify_failed", level=logging.ERROR, error=repr(error))
            return None

    def _event(self, name: str, link: Link, **fields: object) -> None:
        self._log.event(
            name, level=logging.INFO, peer=link.node, addr=link.conduit.remote, **fields
        )
