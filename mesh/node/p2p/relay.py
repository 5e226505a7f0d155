"""Carrying circuits between members that cannot reach each other.

Rules of this file
- Members only, and only between two that have a direct link to here: a circuit inside a circuit
  would let one frame cost everybody.
- Circuits are bounded in number, for each member and in all, and so is what is asked for.
- Bytes are bounded twice: what is in flight by the windows of the two streams (CIRCUIT_BYTES_MAX
  each way, see session.py), and each member's rate by a bucket, however many circuits it has.
- What is carried is not looked at: it is the two ends' Noise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio
from libp2p.relay.circuit_v2.pb.circuit_pb2 import HopMessage, Reservation, Status

from mesh.core.errors import PeerError
from mesh.core.ops import NodeId
from mesh.node.log import LimitedLog
from mesh.node.p2p import circuit
from mesh.node.p2p.circuit import ANSWER_S, Messages, Spawn, StreamConduit
from mesh.node.p2p.framing import READ_BYTES
from mesh.node.p2p.link import Link
from mesh.node.p2p.session import Stream, key_of

CIRCUITS_MAX = 64
"""Circuits through here in all: 32 MiB of windows at the worst, both ways."""

CIRCUITS_PER_MEMBER_MAX = 16
"""Circuits with one member at either end: twice the links that a node needs."""

RATE_BYTES_PER_S = 4 << 20
BURST_BYTES = 4 << 20
"""What a member may send through here: a million endpoints pass in a minute, and a relay that is
somebody's gateway has most of its capacity left."""

_HALF_CLOSED_S = 5.0


class Bucket:
    """Bytes that a member may still send."""

    def __init__(self) -> None:
        self._bytes, self._at_s = float(BURST_BYTES), trio.current_time()

    async def take(self, size: int) -> None:
        """Wait until there are `size` bytes."""
        now_s = trio.current_time()
        earned = (now_s - self._at_s) * RATE_BYTES_PER_S
        self._bytes = min(float(BURST_BYTES), self._bytes + earned) - size
        self._at_s = now_s
        if self._bytes < 0:
            await trio.sleep(-self._bytes / RATE_BYTES_PER_S)


class Relay:
    """The circuits through one node."""

    def __init__(
        self,
        link_of: Callable[[bytes], Link | None],
        spawn: Spawn,
        log: LimitedLog,
    ) -> None:
        """`link_of(key)`: the direct link to the member with that key, if there is one."""
        self.willing = True
        """Whether circuits are carried; else who asks is told so."""
        self._link_of = link_of
        self._spawn = spawn
        self._log = log
        self._counts: dict[NodeId, int] = {}
        """circuits with that member at either end"""
        self._buckets: dict[NodeId, Bucket] = {}
        self.circuits = 0
        self.carried_bytes = 0

    def members(self) -> set[NodeId]:
        """Who is at an end of a circuit."""
        return set(self._counts)

    async def serve(self, link: Link, stream: Stream) -> None:
        """Answer what the peer of `link` asks on a hop stream. Raises PeerError."""
        messages = Messages(stream)
        joined = False
        try:
            with trio.move_on_after(ANSWER_S):
                asked = await messages.read(HopMessage)
                if not self.willing:
                    await messages.write(_status(Status.PERMISSION_DENIED))
                elif asked.type == HopMessage.RESERVE:
                    await messages.write(_reserved())
                elif asked.type != HopMessage.CONNECT:
                    await messages.write(_status(Status.UNEXPECTED_MESSAGE))
                else:
                    joined = await self._connect(link, stream, messages, asked.peer.id)
        finally:
            if not joined:
                self._spawn(_end_slowly, stream)

    async def _connect(
        self, link: Link, stream: Stream, messages: Messages, peer_id: bytes
    ) -> bool:
        try:
            target = self._link_of(key_of(peer_id))
        except PeerError:
            await messages.write(_status(Status.MALFORMED_MESSAGE))
            return False
        if target is None or target.node == link.node or link.conduit.path != "direct":
            await messages.write(_status(Status.NO_RESERVATION))
            return False
        ends = (link.node, target.node)
        if self.circuits >= CIRCUITS_MAX or any(
            self._counts.get(end, 0) >= CIRCUITS_PER_MEMBER_MAX for end in ends
        ):
            self._log.event("p2p.relay_full", peer=link.node, circuits=self.circuits)
            await messages.write(_status(Status.RESOURCE_LIMIT_EXCEEDED))
            return False
        self._count(ends, 1)
        try:
            far, rest = await circuit.ask_stop(target.session, link.session.key)
            await messages.write(_status(Status.OK))
        except BaseException as error:
            self._count(ends, -1)
            if isinstance(error, PeerError):
                await messages.write(_status(Status.CONNECTION_FAILED))
                return False
            raise
        link.session.carry_circuit(stream)
        target.session.carry_circuit(far)
        self._spawn(
            self._join,
            ends,
            StreamConduit(stream, link.conduit.remote, self._spawn, messages.rest()),
            StreamConduit(far, target.conduit.remote, self._spawn, rest),
        )
        return True

    async def _join(
        self, ends: tuple[NodeId, NodeId], near: StreamConduit, far: StreamConduit
    ) -> None:
        """Carry bytes both ways until one end is gone."""
        self._log.event("p2p.circuit_up", level=logging.INFO, a=ends[0], b=ends[1])
        try:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump, ends[0], near, far, scope)
                    nursery.start_soon(self._pump, ends[1], far, near, scope)
        finally:
            near.abort()
            far.abort()
            self._count(ends, -1)
            self._log.event("p2p.circuit_down", level=logging.INFO, a=ends[0], b=ends[1])

    async def _pump(
        self, sender: NodeId, source: StreamConduit, sink: StreamConduit, both: trio.CancelScope
    ) -> None:
        bucket = self._buckets[sender]
        try:
            while data := await source.receive_some(READ_BYTES):
                await bucket.take(len(data))
                self.carried_bytes += len(data)
                await sink.send_all(data)
            sink.close()
            both.deadline = min(both.deadline, trio.current_time() + _HALF_CLOSED_S)
        except OSError:
            both.cancel()

    def _count(self, ends: tuple[NodeId, NodeId], step: int) -> None:
        self.circuits += step
        for end in ends:
            count = self._counts.get(end, 0) + step
            if count:
                self._counts[end] = count
                self._buckets.setdefault(end, Bucket())
            else:
                del self._counts[end], self._buckets[end]


def _status(status: Status.ValueType) -> HopMessage:
    return HopMessage(type=HopMessage.STATUS, status=status)


def _reserved() -> HopMessage:
    # The standard wants a Unix time; it is never looked at here, where the link is what counts.
    reservation = Reservation(expire=2**32 - 1)
    return HopMessage(type=HopMessage.STATUS, status=Status.OK, reservation=reservation)


async def _end_slowly(stream: Stream) -> None:
    """Close a stream so that the answer on it is read before it is gone."""
    await stream.finish()
    await trio.sleep(1)
    await stream.reset()
