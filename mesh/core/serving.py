"""Answering what peers ask for, a few of them at once.

- An answer freezes what it gives and goes ahead of its peer by `sync.WINDOW` chunks, so each costs
  memory until it is over. SERVED_MAX are under way at once, the others wait in the order in which
  they asked: a crowd that comes back together is served one after the other (consul#4511: 3,000 at
  once took 7 GB).
- While others wait nobody keeps a turn for long: an answer that its peer does not go on with, or
  that has had TURN_NS, is broken off. What came of it stays staged there, and it is gone on with at
  the next turn, or at any other peer.
- Who has waited so long that it has given up is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from crdt.lattice import Lattice
from mesh.core import sync, wire
from mesh.core.ops import NodeId

SECOND_NS: Final = 1_000_000_000
SERVED_MAX: Final = 8
"""Answers under way. All of a mesh that is linked completely, or twice the links of a shard."""
TURN_NS: Final = 20 * SECOND_NS
STALLED_NS: Final = 10 * SECOND_NS
"""How long who asks waits for a piece (`fetching.WANT_TIMEOUT_NS`)."""

Shards: TypeAlias = frozenset[str] | None
"""None: all."""


@dataclass(slots=True)
class _Turn:
    serving: sync.Serving
    since_ns: int
    moved_ns: int
    """when the peer last asked for more"""


@dataclass(frozen=True, slots=True)
class _Asked:
    want: wire.Want
    shards: Shards
    at_ns: int


class Answers:
    """All answers that one node is giving. Times are those of the replica."""

    def __init__(self, lattice: Lattice, send: Callable[[NodeId, wire.Frame], None]) -> None:
        self._lattice = lattice
        self._send = send
        self._turns: dict[NodeId, _Turn] = {}
        self._waiting: dict[NodeId, _Asked] = {}

    def want(self, peer: NodeId, want: wire.Want, shards: Shards, now_ns: int) -> None:
        """Answer the peer, in place of what it asked for before. `shards`: what it may have."""
        asked = _Asked(want, shards, now_ns)
        turn = self._turns.get(peer)
        if turn is not None:
            self._begin(peer, asked, turn.since_ns, now_ns)
        else:
            self._waiting[peer] = asked
            self._next(now_ns)

    def more(self, peer: NodeId, want: int, now_ns: int) -> None:
        """The peer has taken a chunk of the answer to its question of that number."""
        turn = self._turns.get(peer)
        if turn is not None and turn.serving.want == want:
            turn.serving.credit = min(turn.serving.credit + 1, sync.WINDOW)
            turn.moved_ns = now_ns
            self._go_on(peer, turn, now_ns)

    def down(self, peer: NodeId, now_ns: int) -> None:
        self._waiting.pop(peer, None)
        if self._turns.pop(peer, None) is not None:
            self._next(now_ns)

    def timer(self, now_ns: int) -> None:
        while self._waiting and (peer := self._overdue(now_ns)) is not None:
            self._send(peer, wire.Done(self._turns.pop(peer).serving.want))
            self._next(now_ns)

    def next_deadline_ns(self) -> int | None:
        if not self._waiting:
            return None
        return min((_ends_ns(turn) for turn in self._turns.values()), default=None)

    # ---- inner ----

    def _overdue(self, now_ns: int) -> NodeId | None:
        """Of those whose turns are to end, the one that has had it longest."""
        over = [(t.since_ns, p) for p, t in self._turns.items() if now_ns >= _ends_ns(t)]
        return min(over)[1] if over else None

    def _next(self, now_ns: int) -> None:
        while self._waiting and len(self._turns) < SERVED_MAX:
            peer = next(iter(self._waiting))
            asked = self._waiting.pop(peer)
            if now_ns - asked.at_ns < STALLED_NS:
                self._begin(peer, asked, now_ns, now_ns)

    def _begin(self, peer: NodeId, asked: _Asked, since_ns: int, now_ns: int) -> None:
        serving = sync.Serving(asked.want, self._lattice, asked.shards)
        self._turns[peer] = turn = _Turn(serving, since_ns, now_ns)
        self._go_on(peer, turn, now_ns)

    def _go_on(self, peer: NodeId, turn: _Turn, now_ns: int) -> None:
        for frame in turn.serving.frames():
            self._send(peer, frame)
            if isinstance(frame, wire.Done):
                del self._turns[peer]
                self._next(now_ns)
                return


def _ends_ns(turn: _Turn) -> int:
    """When it ends if others wait."""
    return min(turn.since_ns + TURN_NS, turn.moved_ns + STALLED_NS)
