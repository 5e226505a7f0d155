"""One peer: three streams over one session, heartbeat, back-pressure.

`/weft/link/1` carries what the two ends have to say about the link itself; `/weft/push/1` and
`/weft/sync/1` carry the frames. Whoever dialled opens all three.

    both     HELLO observed low high instance
                                  at once when the three streams are there; what the other end's
                                  address is from here, the wire versions spoken, and which process
                                  of its node this is (twins.py)
    decider  ACTIVE or BYE        the end with the lower node id decides which connection counts
    both     BEAT ...             every 0.8 s, and in answer to PROBE: clocks, and soft
                                  state when it is not what it was
    either   VOUCH instance       another process says that it is you: VOUCHED, with a proof
    either   BYE                  the link ends, and why; a second process is shown the proof

Rules of this file
- Any byte received shows that the peer lives; silence is judged in pulse.py.
- A frame is written whole. What waits behind it is bounded, and dropped as a whole on overflow.
- A channel the peer does not read for STALL_S ends the link, and delays nothing else meanwhile.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgpack
import trio

from mesh.core.errors import BadInput, PeerError
from mesh.core.ops import NodeId
from mesh.core.wire import SPOKEN, Versions
from mesh.node.p2p.events import Channel
from mesh.node.p2p.framing import (
    FRAME_BYTES_MAX,
    READ_BYTES,
    SENDING_BYTES_MAX,
    FrameReader,
    Receiving,
    SendQueue,
    Tally,
    pack,
)
from mesh.node.p2p.session import Session, Stream
from mesh.node.p2p.tcp import Address, Conduit
from mesh.node.p2p.twins import INSTANCE_BYTES, Instance

LINK_PROTOCOL = "/weft/link/1"
CHANNEL_PROTOCOLS: Mapping[Channel, str] = MappingProxyType(
    {"push": "/weft/push/1", "sync": "/weft/sync/1"}
)
PROTOCOLS = frozenset({LINK_PROTOCOL, *CHANNEL_PROTOCOLS.values()})

SOFT_STATE_BYTES_MAX = 512
"""Soft state in a heartbeat: version, digests."""

STALL_S = 15
"""How long a peer may leave a channel unread. Longer than its node may be busy with a big
transaction; what piles up meanwhile is bounded by the queue."""

AGREE_S = 5
"""Time for HELLO and the decision, once the session is there."""

PROBE_S = 1
"""Time to answer a probe: some long round trips, and far below the silence that ends a link."""

_CONTROL_BYTES_MAX = 1024
_BYE_S = 0.2
_REASON_CHARS_MAX = 64
_RTT_MAX_NS = 60 * 10**9
_CLOCK_SAMPLES = 8
"""Of so many heartbeats, 6.4 s, the one with the shortest round trip tells the clocks' offset: its
error is half of what the two ways differ (the clock filter of NTP, RFC 5905 §10)."""
_VERSION: Final = 1
_HELLO: Final = 1
_ACTIVE: Final = 2
_BEAT: Final = 3
_PROBE: Final = 4
_BYE: Final = 5
_VOUCH: Final = 6
_VOUCHED: Final = 7
_VOUCH_GAP_NS: Final = 10**8
"""Each costs a signature: a peer with much to ask goes without, which is as good as no twin."""


def now_ns() -> int:
    """trio's clock in nanoseconds: monotonic, from an arbitrary start."""
    return int(trio.current_time() * 1e9)


DUPLICATE = "duplicate"
"""The reason given for ending a connection that is one too many."""

SECOND = "another process of this node has a link here"
"""The reason given to a process that is one too many."""

NOT_NEEDED = "not needed"
"""The reason given for ending a link of which neither end needs to win it back."""


class ByeError(PeerError):
    """The peer said BYE; the text is its reason."""


class DuplicateError(PeerError):
    """The connection is one too many; there is nothing wrong with the peer."""


class Crowd:
    """What all links of a node hold together, bounded."""

    def __init__(self, links: Mapping[NodeId, Link]) -> None:
        self._links = links
        self.receiving = Receiving()
        self.sending = Tally()

    def overflows(self, link: Link, channel: Channel, frame: bytes) -> bool:
        """Queue a frame; whether this link, or the one with most waiting, overflowed with it."""
        full = [] if link.send(channel, frame) else [link]
        if self.sending.bytes > SENDING_BYTES_MAX:
            full.append(max(self._links.values(), key=lambda link: link.queued_bytes))
        for each in full:
            each.forget_queued()
            each.overflowed = True
        return bool(full)


class Link:
    """The link to `node`. Made by `open` or `accept`, decided upon, then `run`."""

    def __init__(
        self,
        node: NodeId,
        session: Session,
        conduit: Conduit,
        crowd: Crowd,
        speaks: Versions,
        instance: Instance,
        *,
        inbound: bool,
    ) -> None:
        """`speaks`: the wire versions that this node does; `instance`: which process of it."""
        self.node = node
        self._speaks = speaks
        self._instance = instance
        self.their_instance = b""
        """Which process of its node the other end is; empty: it does not say."""
        self.theirs = SPOKEN
        """The wire versions that the other end speaks."""
        self.session = session
        self.conduit = conduit
        self.inbound = inbound
        self.announced = trio.Event()
        """Set by the owner when the node knows of the link."""
        self.gone = trio.Event()
        """Set by the owner when the link has ended and everybody has been told."""
        self.observed: Address | None = None
        """Our end of the connection as the other end sees it: behind a NAT, the NAT's."""
        self.soft_state = b""
        self._said = b""
        self.rtt_ns: int | None = None
        self._clocks: deque[tuple[int, int]] = deque(maxlen=_CLOCK_SAMPLES)
        """(round trip, offset) of the last heartbeats, ns"""
        self.overflowed = False
        self._streams: dict[str, Stream] = {}
        self._queues = {channel: SendQueue(crowd.sending) for channel in CHANNEL_PROTOCOLS}
        self._receiving = crowd.receiving
        self._beat_due = trio.Event()
        self._beat_heard = trio.Event()
        self._probe_due = False
        self._vouched: tuple[bytes, trio.Event] = b"", trio.Event()
        self._vouched_at_ns = -_VOUCH_GAP_NS
        self._peer_sent_ns = 0
        self._peer_heard_ns = 0

    @property
    def clock_offset_ns(self) -> int | None:
        """The peer's wall clock ahead of ours; None until the first echo."""
        return min(self._clocks)[1] if self._clocks else None

    async def open(self) -> None:
        """Open the three streams, all at once. Raises PeerError."""
        failures: list[Exception] = []

        async def one(protocol: str) -> None:
            try:
                self._streams[protocol] = await self.session.open_stream(protocol)
            except PeerError as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for protocol in sorted(PROTOCOLS):
                nursery.start_soon(one, protocol)
        if failures:
            raise failures[0]

    async def accept(self, first: Stream) -> None:
        """Take the rest of the three streams after `first`. Raises PeerError."""
        self._streams[first.protocol] = first
        while missing := PROTOCOLS - self._streams.keys():
            stream = await self.session.accept_stream(missing)
            self._streams[stream.protocol] = stream

    async def hello(self) -> None:
        """Exchange HELLO: both ends have all three streams. Raises ByeError, PeerError."""
        control = self._streams[LINK_PROTOCOL]
        self._control = FrameReader(control.read, _CONTROL_BYTES_MAX)
        own = self._instance.id
        await self._say([_HELLO, _VERSION, self.conduit.remote, *self._speaks, own])
        kind, fields = await self._hear()
        if kind != _HELLO or not fields or not isinstance(fields[0], int) or fields[0] < _VERSION:
            raise PeerError("no hello")
        if len(fields) > 1 and isinstance(fields[1], str):
            with contextlib.suppress(BadInput):  # as of a circuit, or whatever it made of it
                self.observed = Address.parse(fields[1])
        match fields[2:]:
            case [int(lowest), int(highest), *_] if 0 < lowest <= highest:
                self.theirs = Versions(lowest, highest)
            case []:
                self.theirs = Versions(1, 1)
            case _:
                raise PeerError("no hello")
        match fields[4:]:
            case [bytes(instance), *_] if len(instance) == INSTANCE_BYTES:
                self.their_instance = instance

    async def activate(self) -> None:
        """Tell the other end that this connection counts."""
        await self._say([_ACTIVE])

    async def activated(self) -> None:
        """Wait to be told. Raises DuplicateError when another connection counts, or PeerError."""
        try:
            kind, _ = await self._hear()
        except ByeError as error:
            too_many = str(error) in (DUPLICATE, SECOND)
            raise (DuplicateError if too_many else PeerError)(str(error)) from error
        if kind != _ACTIVE:
            raise PeerError("no decision")

    async def bye(self, reason: str, proof: bytes = b"") -> None:
        """Say why the link ends, if that goes quickly. The session is for the caller to leave."""
        with (
            trio.CancelScope(deadline=trio.current_time() + _BYE_S, shield=True),
            contextlib.suppress(PeerError),
        ):
            await self._say([_BYE, reason, *([proof] if proof else [])])

    async def part(self, reason: str) -> None:
        """Say why the link ends, and let the other end close when it has read it.

        What is still on its way here is not read, and would otherwise end the connection with a
        reset, which overtakes the reason.
        """
        await self.bye(reason)
        with (
            trio.CancelScope(deadline=trio.current_time() + _BYE_S, shield=True),
            contextlib.suppress(Exception),
        ):
            while await self.conduit.receive_some(READ_BYTES):
                pass

    def send(self, channel: Channel, frame: bytes) -> bool:
        """Queue a frame; False, and nothing is queued, when there is no room for it."""
        return self._queues[channel].put(frame)

    @property
    def queued_bytes(self) -> int:
        """What waits to be sent."""
        return sum(queue.bytes for queue in self._queues.values())

    def close(self) -> None:
        """Queue no more frames."""
        for queue in self._queues.values():
            queue.close()

    def forget_queued(self) -> None:
        """Send nothing of what waits."""
        for queue in self._queues.values():
            queue.clear()

    def beat(self) -> None:
        """Send a heartbeat as soon as the stream takes it; one at a time."""
        self._beat_due.set()

    async def probe(self) -> bool:
        """Ask whether the other end is still there; False after PROBE_S without an answer."""
        if self.session.ended:
            return False
        heard = self._beat_heard
        self._probe_due = True
        self._beat_due.set()
        with trio.move_on_after(PROBE_S):
            await heard.wait()
        return heard.is_set() and not self.session.ended

    async def vouch(self, instance: bytes) -> bytes:
        """The proof, made at the other end, for the process `instance` of its node that it is not
        the only one; empty: none came in PROBE_S."""
        self._vouched = b"", trio.Event()
        _, answered = self._vouched
        with trio.move_on_after(PROBE_S), contextlib.suppress(PeerError):
            await self._say([_VOUCH, instance])
            await answered.wait()
        proof, _ = self._vouched
        return proof if Instance.proves(self.session.key, instance, proof) else b""

    async def run(
        self,
        deliver: Callable[[Channel, bytes], Awaitable[None]],
        soft_state: Callable[[], bytes],
        wall_ns: Callable[[], int],
        serve: Mapping[str, Callable[[Stream], None]],
    ) -> None:
        """Carry frames until the session ends, which cancels this.

        `wall_ns` is the wall clock; `serve` takes streams of further protocols that the peer opens.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, self.session.serve_streams, serve)
            nursery.start_soon(self._guard, self._read_control, wall_ns)
            nursery.start_soon(self._guard, self._write_control, soft_state, wall_ns)
            for channel in sorted(CHANNEL_PROTOCOLS):
                nursery.start_soon(self._guard, self._read_frames, channel, deliver)
                nursery.start_soon(self._guard, self._write_frames, channel)

    async def _guard(self, task: Callable[..., Awaitable[None]], *args: object) -> None:
        # Whatever goes wrong on behalf of this peer ends its link and nothing else (B1).
        try:
            await task(*args)
        except EOFError:
            self.session.kill("closed by the peer")
        except ByeError as error:
            self.session.kill(f"peer: {error}")
        except PeerError as error:
            self.session.kill(str(error))
        except Exception as error:
            self.session.kill(f"internal: {error!r}")

    async def _read_frames(
        self, channel: Channel, deliver: Callable[[Channel, bytes], Awaitable[None]]
    ) -> None:
        reader = FrameReader(
            self._streams[CHANNEL_PROTOCOLS[channel]].read,
            FRAME_BYTES_MAX,
            self._receiving,
            lambda: self.session.kill("too long in the middle of a frame"),
        )
        try:
            while True:
                await deliver(channel, await reader.frame())
        finally:
            reader.close()

    async def _write_frames(self, channel: Channel) -> None:
        stream = self._streams[CHANNEL_PROTOCOLS[channel]]
        while True:
            await stream.write(await self._queues[channel].take(), STALL_S)

    async def _read_control(self, wall_ns: Callable[[], int]) -> None:
        while True:
            kind, fields = await self._hear()
            if kind == _BEAT:
                self._heard_beat(fields, wall_ns())
            elif kind == _PROBE:
                self.beat()
            elif kind == _VOUCH:
                await self._vouch(fields)
            elif kind == _VOUCHED:
                proof = fields[0] if fields and isinstance(fields[0], bytes) else b""
                _, answered = self._vouched
                self._vouched = proof, answered
                answered.set()

    async def _vouch(self, fields: list[object]) -> None:
        late_ns = now_ns() - _VOUCH_GAP_NS
        if fields and self._vouched_at_ns <= late_ns:
            self._vouched_at_ns = now_ns()
            await self._say([_VOUCHED, self._instance.vouch(fields[0])])

    async def _write_control(
        self, soft_state: Callable[[], bytes], wall_ns: Callable[[], int]
    ) -> None:
        while True:
            await self._beat_due.wait()
            self._beat_due = trio.Event()
            if self._probe_due:
                self._probe_due = False
                await self._say([_PROBE])
            sent_ns = now_ns()
            held_ns = sent_ns - self._peer_heard_ns if self._peer_heard_ns else 0
            echo = (self._peer_sent_ns, held_ns)
            said, now = self._said, soft_state()
            self._said = now
            await self._say([_BEAT, sent_ns, *echo, None if now == said else now, wall_ns()])

    def _heard_beat(self, fields: list[object], our_wall_ns: int) -> None:
        match fields:
            case [int(sent_ns), int(echo_ns), int(held_ns), None, int(wall_ns), *_]:
                soft_state = self.soft_state  # as before
            case [int(sent_ns), int(echo_ns), int(held_ns), bytes(soft_state), int(wall_ns), *_]:
                pass
            case _:
                raise PeerError("malformed heartbeat")
        if len(soft_state) > SOFT_STATE_BYTES_MAX:
            raise PeerError("soft state too long")
        self.soft_state = soft_state
        # The monotonic clocks appear only as differences of themselves, as in NTP (RFC 5905 §8).
        self._peer_sent_ns, self._peer_heard_ns = sent_ns, now_ns()
        rtt_ns = self._peer_heard_ns - echo_ns - held_ns
        if echo_ns and 0 <= rtt_ns <= _RTT_MAX_NS:
            # The smoothing of TCP (RFC 6298): one eighth of what is new.
            self.rtt_ns = rtt_ns if self.rtt_ns is None else (7 * self.rtt_ns + rtt_ns) // 8
            self._clocks.append((rtt_ns, wall_ns - (our_wall_ns - rtt_ns // 2)))
        self._beat_heard.set()
        self._beat_heard = trio.Event()

    async def _say(self, message: list[object]) -> None:
        await self._streams[LINK_PROTOCOL].write(pack(msgpack.packb(message)), STALL_S)

    async def _hear(self) -> tuple[int, list[object]]:
        """Return the kind and fields of the next message. Unknown kinds are the caller's to skip.

        Raises ByeError, PeerError.
        """
        try:
            message = msgpack.unpackb(await self._control.frame())
        except EOFError:
            raise PeerError("closed by the peer") from None
        except PeerError:
            raise
        except Exception as error:  # msgpack has half a dozen, not all of them its own
            raise PeerError("malformed control message") from error
        match message:
            case [int(kind), *fields]:
                pass
            case _:
                raise PeerError("malformed control message")
        if kind == _BYE:
            if len(fields) > 1:
                self._instance.shown(self.node, fields[1])
            reason = str(fields[0]) if fields else ""
            raise ByeError("".join(c for c in reason if c.isprintable())[:_REASON_CHARS_MAX])
        return kind, fields
