"""Asking a linked peer what it holds, for `weft state diff`.

The question is an ordinary start of anti-entropy (a SYNC with our digests) that must be answered;
the answer is the heads of every shard that differs and then TOLD, or SAME. Whichever exchange a
SAME belongs to, it is true. The frames reach the replica as well, which uses them to close the very
difference that is shown.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from mesh.core import wire
from mesh.core.errors import NotReady, PeerError
from mesh.core.ops import NodeId
from mesh.core.replica import Replica
from mesh.core.vectors import Vector

ANSWER_S: Final = 5.0
"""Several round trips of a bad link; a vector of heads is 64 B a chain."""


class _Inquiry:
    def __init__(self, number: int) -> None:
        self.number = number
        self.heads: dict[str, Vector] = {}
        self.done = trio.Event()


class Inquiries:
    """One per node, told of every frame before the replica takes it."""

    def __init__(self, replica: Replica, send: Callable[[NodeId, bytes], None]) -> None:
        """`send` gives a frame to a linked peer, on its channel for anti-entropy."""
        self._replica = replica
        self._send = send
        self._open: dict[NodeId, list[_Inquiry]] = {}

    def note(self, peer: NodeId, frame: bytes) -> None:
        """A frame of a peer has come. Costs nothing while nobody asks."""
        waiting = self._open.get(peer)
        if not waiting:
            return
        try:
            decoded = wire.decode(frame)
        except PeerError:
            return  # the replica sees it, too, and judges it
        if isinstance(decoded, wire.Heads) and decoded.shard:
            for inquiry in waiting:
                inquiry.heads.setdefault(decoded.shard, {}).update(decoded.vector)
        elif isinstance(decoded, wire.Same | wire.Told):
            for inquiry in waiting:
                if isinstance(decoded, wire.Same) or decoded.number == inquiry.number:
                    inquiry.done.set()

    async def ask(self, peer: NodeId) -> dict[str, Vector]:
        """What the peer holds of each shard that is not the same there and here.

        Raises NotReady: not linked, or no answer in time.
        """
        if peer not in self._replica.peers():
            raise NotReady("no link to that peer: see weft members")
        question = self._replica.question(peer)
        inquiry = _Inquiry(question.number)
        self._open.setdefault(peer, []).append(inquiry)
        try:
            self._send(peer, self._replica.encoded(peer, question))
            with trio.move_on_after(ANSWER_S):
                await inquiry.done.wait()
                return inquiry.heads
        finally:
            self._open[peer].remove(inquiry)
            if not self._open[peer]:
                del self._open[peer]
        raise NotReady(f"no answer of that peer within {ANSWER_S:g} s: try again")
