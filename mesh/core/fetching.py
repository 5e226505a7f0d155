"""Asking peers for what is lacking, and taking their answers.

- A chain is asked of one peer at a time. WANT names what is held of each chain, and what is staged
  of it; the answer is whole deltas and PARTs, `sync.WINDOW` chunks ahead and one more for each
  MORE, then DONE. So the receiver sets the pace, and a big answer never queues up in the sender.
- A few peers are asked at once, the next one when one of those is done; one that is long about it
  is not waited for.
- Nothing of a large answer is applied before its last piece is there. When it breaks off, what has
  come is staged, and whoever is asked next goes on from there (`staging`).
- The root of a large chain that has come whole is computed in steps, and what else comes of its
  answer waits meanwhile: a hundred thousand records would keep everything else waiting for 0.1 s.
- What was staged of several peers and does not verify is nobody's proven lie: it is dropped, the
  chain is asked for afresh, and each peer that had a part in it stages for itself alone until an
  answer of its own verifies. What came of one peer and does not verify costs it the link.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from crdt.delta import RECORD_BYTES_MAX, BadDelta, Delta
from crdt.header import Header
from crdt.lattice import Lattice
from crdt.root import BucketOverflow, Building, Plan
from mesh.core import sync, wire
from mesh.core.errors import PeerError
from mesh.core.ops import NodeId
from mesh.core.roster import Roster
from mesh.core.staging import Stage, Stages
from mesh.core.vectors import Cursor, Held

WANT_CHAINS_MAX: Final = 2048
"""Chains asked for at once: what a whole partition has changed in one round trip, and small enough
that several peers share a bootstrap."""
ASKED_MAX: Final = 8
"""Peers asked at once."""
WANT_TIMEOUT_NS: Final = 10_000_000_000
VERIFY_KEYS = 4096
"""Keys in one step of verifying a whole chain: 3 ms."""
VERIFY_STEP_NS: Final = 1_000_000
"""What is left to others between two steps."""
QUEUE_MAX: Final = 100_000
"""Chains waiting to be asked for from one peer; the next exchange finds what is left out."""


@dataclass(frozen=True, slots=True)
class Host:
    """What asking needs of the replica."""

    send: Callable[[NodeId, wire.Frame], None]
    take_delta: Callable[[NodeId, Delta, bool, int, Plan | None], bool]
    """Take a whole delta: its sender, itself, whether all of it came of that peer, when, and the
    index of a snapshot if that is made already. False: it did not verify, and the chain is asked
    for afresh. Raises PeerError."""


@dataclass(slots=True)
class Verifying:
    """A whole chain, while its root is being computed."""

    short: bytes
    whole: Delta
    index: Building
    next_ns: int
    made: Plan | None = None
    """the index, once it is done: to take the chain is a step of its own"""
    waiting: deque[wire.Part | wire.Done] = field(default_factory=deque)
    """what has come of the answer meanwhile"""


@dataclass(slots=True)
class Fetch:
    """What is asked of one peer."""

    queue: dict[bytes, None] = field(default_factory=dict)
    """chains still to ask for, in order"""
    fresh: set[bytes] = field(default_factory=set)
    """of those, the ones to ask for whole: what is held is no prefix of what the peer has"""
    want: int | None = None
    asked: dict[bytes, tuple[Held, ...]] = field(default_factory=dict)
    """chains of the WANT under way, and what it said is held of each"""
    stages: dict[bytes, Stage] = field(default_factory=dict)
    filling: Header | None = None
    """of the answer whose pieces are coming"""
    verifying: Verifying | None = None
    parts: int = 0
    """pieces taken of the answer under way"""
    begun_ns: int = 0
    deadline_ns: int = 0
    advanced: bool = False
    """whether anything was applied since nothing was asked"""


class Fetching:
    """All that one node is asking for. Times are those of the replica."""

    def __init__(self, lattice: Lattice, roster: Roster, host: Host) -> None:
        self._lattice = lattice
        self._roster = roster
        self._host = host
        self._fetches: dict[NodeId, Fetch] = {}
        self._wanted: dict[bytes, NodeId] = {}
        self._stages = Stages()
        self._suspects: set[NodeId] = set()
        self._next_want = 1
        self._turns: dict[NodeId, None] = {}
        """peers with something to be asked for, in the order of their turns"""

    # ---- reading ----

    def asked(self, peer: NodeId, short: bytes) -> bool:
        """Whether the peer is being asked for the chain."""
        return self._wanted.get(short) == peer

    def busy(self, peer: NodeId) -> bool:
        """Whether an answer of the peer is awaited, or it is to be asked when there is room."""
        return self._fetches[peer].want is not None or peer in self._turns

    def queued(self, peer: NodeId, short: bytes) -> bool:
        return short in self._fetches[peer].queue

    @property
    def any_busy(self) -> bool:
        """Whether an answer of anybody is awaited."""
        return bool(self._wanted)

    def deadlines_ns(self) -> list[int]:
        return [
            fetch.verifying.next_ns if fetch.verifying else fetch.deadline_ns
            for fetch in self._fetches.values()
            if fetch.want is not None
        ]

    def overdue(self, now_ns: int) -> list[NodeId]:
        """The peers whose answers have not gone on for too long."""
        fetches = sorted(self._fetches.items())
        return [p for p, f in fetches if f.want is not None and now_ns >= f.deadline_ns]

    def verifying(self) -> list[NodeId]:
        """Peers of which a chain is being verified, a step at each call of `verify`."""
        return sorted(peer for peer, fetch in self._fetches.items() if fetch.verifying)

    # ---- links ----

    def up(self, peer: NodeId) -> None:
        self._fetches[peer] = Fetch()

    def down(self, peer: NodeId, now_ns: int) -> None:
        """What was asked of the peer is free to be asked of others."""
        self.give_up(peer, now_ns)
        del self._fetches[peer]

    def give_up(self, peer: NodeId, now_ns: int) -> None:
        """Ask nothing more of the peer for now; what has come of its answer stays staged."""
        fetch = self._fetches[peer]
        self._release(peer, fetch, now_ns)
        fetch.queue.clear()
        fetch.fresh.clear()
        self._turns.pop(peer, None)
        self._next(now_ns)

    # ---- asking ----

    def enqueue(self, peer: NodeId, short: bytes, *, fresh: bool = False) -> None:
        """Ask the peer for the chain, or for the whole of it, with the next WANT: if it is being
        asked for it already, for what it has written since."""
        fetch = self._fetches[peer]
        if self._wanted.get(short, peer) != peer:
            return
        if len(fetch.queue) < QUEUE_MAX:
            fetch.queue[short] = None
            if fresh:
                fetch.fresh.add(short)

    def pump(self, peer: NodeId, now_ns: int) -> None:
        """Ask for the next chains, unless an answer is under way; if there is no room, later."""
        fetch = self._fetches[peer]
        if fetch.want is not None or not fetch.queue:
            return
        self._turns[peer] = None
        self._next(now_ns)

    def _next(self, now_ns: int) -> None:
        """Ask those whose turn it is."""
        recent_ns = now_ns - WANT_TIMEOUT_NS
        asked = sum(f.want is not None and f.begun_ns > recent_ns for f in self._fetches.values())
        while self._turns and asked < ASKED_MAX:
            peer = next(iter(self._turns))
            del self._turns[peer]
            asked += self._ask(peer, self._fetches[peer], now_ns)

    def _ask(self, peer: NodeId, fetch: Fetch, now_ns: int) -> bool:
        """Whether there was anything to ask for that is not asked of another one."""
        staged: dict[bytes, Cursor] = {}
        while fetch.queue and len(fetch.asked) < WANT_CHAINS_MAX:
            short = next(iter(fetch.queue))
            del fetch.queue[short]
            if short in self._wanted:
                continue
            fetch.asked[short] = held = () if short in fetch.fresh else self._held(short)
            self._wanted[short] = peer
            fetch.fresh.discard(short)
            owner = peer if peer in self._suspects else None
            stage = self._stages.take(short, owner, held, now_ns)
            if stage is not None:
                fetch.stages[short] = stage
                staged[short] = Cursor(stage.epoch, stage.cursor)
        if fetch.asked:
            fetch.want, self._next_want = self._next_want, self._next_want + 1
            fetch.begun_ns, fetch.deadline_ns = now_ns, now_ns + WANT_TIMEOUT_NS
            self._host.send(peer, wire.Want(fetch.want, dict(fetch.asked), staged))
        return bool(fetch.asked)

    # ---- answers ----

    def taken(self, peer: NodeId, short: bytes, now_ns: int) -> bool:
        """A delta of the peer advanced a chain. Whether it is its answer to a question of ours."""
        fetch = self._fetches.get(peer)
        if fetch is None:
            return False
        fetch.advanced = True
        if self._wanted.get(short) != peer:
            return False
        fetch.deadline_ns = now_ns + WANT_TIMEOUT_NS
        return True

    def given(self, peer: NodeId, answer: wire.Answer) -> None:
        """Whole deltas of an answer have come: there is room for one more frame of it."""
        if self._fetches[peer].want == answer.id:
            self._host.send(peer, wire.More(answer.id))

    def given_in_1(self, peer: NodeId, deltas: wire.Deltas) -> None:
        """The same where a frame does not say that it is of an answer: a push of a chain that is
        asked for is taken for one, and the peer gets ahead by it."""
        fetch = self._fetches[peer]
        if fetch.want is not None and any(
            delta.header.chain.short() in fetch.asked for delta in deltas.deltas
        ):
            self._host.send(peer, wire.More(fetch.want))

    def postpones(self, peer: NodeId, frame: wire.Part | wire.Done) -> bool:
        """Whether the frame is to wait for a chain that is being verified. Raises PeerError."""
        verifying = self._fetches[peer].verifying
        if verifying is None:
            return False
        verifying.waiting.append(frame)
        if len(verifying.waiting) > sync.WINDOW:
            raise PeerError("more of an answer than was asked for")
        return True

    def verify(self, peer: NodeId, now_ns: int) -> deque[wire.Part | wire.Done]:
        """Go on verifying what the peer has given; what has waited for it, once it is done. Raises
        PeerError."""
        fetch = self._fetches[peer]
        verifying = fetch.verifying
        if verifying is None or now_ns < verifying.next_ns:
            return deque()
        verifying.next_ns = now_ns + VERIFY_STEP_NS
        fetch.deadline_ns = now_ns + WANT_TIMEOUT_NS
        stage = fetch.stages[verifying.short]
        try:
            if verifying.made is None:
                verifying.made = verifying.index.step(VERIFY_KEYS)
                return deque()
        except BucketOverflow as error:
            self._failed(peer, stage, verifying.short, f"delta: {error}")
        else:
            self._conclude(peer, stage, verifying.short, verifying.whole, verifying.made, now_ns)
        fetch.verifying = None
        fetch.stages.pop(verifying.short, None)
        return verifying.waiting

    def part(self, peer: NodeId, part: wire.Part, now_ns: int) -> bool:
        """Take a piece; False when one before it was lost. Raises PeerError."""
        fetch = self._fetches[peer]
        if fetch.want != part.id or part.index < fetch.parts:
            return True
        if part.index > fetch.parts:
            return False
        fetch.parts += 1
        self._check_piece(fetch, part)
        fetch.deadline_ns = now_ns + WANT_TIMEOUT_NS
        self._host.send(peer, wire.More(part.id))
        short = part.delta.header.chain.short()
        self._stage(peer, fetch, short, part.delta)
        if not part.more:
            self._finish(peer, fetch, short, part.delta, now_ns)
        return True

    def done(self, peer: NodeId, done: wire.Done, now_ns: int) -> bool:
        """An answer is complete; whether there is nothing more to ask for, and it brought news."""
        fetch = self._fetches[peer]
        if fetch.want != done.id:
            return False
        self._release(peer, fetch, now_ns)
        self.pump(peer, now_ns)
        self._next(now_ns)
        if self.busy(peer) or not fetch.advanced:
            return False
        fetch.advanced = False
        return True

    # ---- inner ----

    def _held(self, short: bytes) -> tuple[Held, ...]:
        id = self._lattice.by_short(short)
        return sync.vector_of(self._lattice, [id])[short] if id else ()

    @staticmethod
    def _check_piece(fetch: Fetch, part: wire.Part) -> None:
        delta = part.delta
        if delta.header.chain.short() not in fetch.asked:
            raise PeerError("a piece of a chain that was not asked for")
        if fetch.filling is not None and (
            delta.header != fetch.filling or delta.deletes or delta.keep is not None
        ):
            raise PeerError("pieces that do not belong together")
        # Who sends crumbs could hold a chain up for as long as it likes.
        if part.more and wire.size_of(delta) < wire.CHUNK_BYTES // 2 - RECORD_BYTES_MAX:
            raise PeerError("a crumb of an answer")

    def _stage(self, peer: NodeId, fetch: Fetch, short: bytes, delta: Delta) -> None:
        try:
            if fetch.filling is None:
                fetch.filling = delta.header
                stage = fetch.stages.get(short)
                if stage is not None and stage.goes_on(delta):
                    stage.go_on(delta)
                else:
                    fetch.stages[short] = Stage.of(delta, fetch.asked[short])
            id = delta.header.chain
            quota, quota_bytes = self._roster.quota(*id), self._roster.quota_bytes(*id)
            fetch.stages[short].add(delta, peer, quota, quota_bytes)
        except BadDelta as error:
            raise PeerError(f"delta: {error}") from None

    def _finish(self, peer: NodeId, fetch: Fetch, short: bytes, last: Delta, now_ns: int) -> None:
        """All pieces are there: take them as one delta."""
        fetch.filling = None
        stage = fetch.stages[short]
        whole = stage.finished(last, self._lattice.branch(last.header.chain, stage.base))
        if whole is None:
            del fetch.stages[short]
            self._failed(peer, stage, short, "")
            return
        if stage.whole and len(whole.puts) > VERIFY_KEYS:
            try:
                index = Building(whole.puts, whole.puts, {}, whole.header.bits)
            except BucketOverflow as error:
                self._failed(peer, stage, short, f"delta: {error}")
            else:
                fetch.verifying = Verifying(short, whole, index, now_ns + VERIFY_STEP_NS)
                return
            del fetch.stages[short]
            return
        del fetch.stages[short]
        try:
            if not stage.whole:  # else it was checked piece by piece
                whole.check()
        except BadDelta as error:
            self._failed(peer, stage, short, f"delta: {error}")
        else:
            self._conclude(peer, stage, short, whole, None, now_ns)

    def _conclude(
        self,
        peer: NodeId,
        stage: Stage,
        short: bytes,
        whole: Delta,
        made: Plan | None,
        now_ns: int,
    ) -> None:
        alone = stage.senders == {peer}
        if not self._host.take_delta(peer, whole, alone, now_ns, made):
            self._failed(peer, stage, short, "")
        elif alone:
            self._suspects.discard(peer)

    def _failed(self, peer: NodeId, stage: Stage, short: bytes, mistake: str) -> None:
        """What was staged is of no use. Raises PeerError where it is this peer's `mistake`."""
        if stage.senders != {peer}:
            self._suspects |= stage.senders
            self.enqueue(peer, short, fresh=True)
        elif mistake:
            raise PeerError(mistake)

    def _release(self, peer: NodeId, fetch: Fetch, now_ns: int) -> None:
        """The WANT under way is over: keep what has come of chains that did not come whole."""
        for short in fetch.asked:
            if self._wanted.get(short) == peer:
                del self._wanted[short]
        for short, stage in fetch.stages.items():
            if peer not in self._suspects or peer not in stage.senders:
                self._stages.keep(short, None, stage, now_ns)
            elif stage.senders == {peer}:
                self._stages.keep(short, peer, stage, now_ns)
        fetch.want, fetch.filling, fetch.verifying, fetch.parts = None, None, None, 0
        fetch.asked, fetch.stages = {}, {}
