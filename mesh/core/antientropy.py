"""Anti-entropy: the conversation with each linked peer that closes what pushes have missed.

- When a link comes up, both tell the digest of every shard (SYNC). Of two that cross, the lower
  node id answers, with the heads of all chains of the shards that differ, and TOLD; the other sends
  what that node lacks, asks for what it lacks itself, and says TOLD when it has.
- From then on, a PROBE now and then: one digest of everything. In a busy mesh it never is equal,
  since something is always on its way. So both name the chains that changed last (RECENT) and
  compare the sum of all others: when that is equal, only named chains differ, and only their heads
  are told; otherwise all is told as when the link came up. What was said is compared as of the
  moment at which it was said.
- Who is behind asks with WANT, naming what it holds; the peer answers with DELTAS and PARTs,
  `WINDOW` chunks ahead and one more for each MORE, then DONE. So the receiver sets the pace, and a
  big answer never queues up in the sender. An answer freezes the interval it began with; nothing is
  applied before the last part is there.

It knows nothing of what a delta does once it is whole, nor of the roster but its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from crdt.delta import Delta, Puts
from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core import sync, wire
from mesh.core.bounds import shard_is_known
from mesh.core.errors import PeerError
from mesh.core.ops import NodeId
from mesh.core.roster import Roster

SECOND_NS = 1_000_000_000
PERIOD_NS = 10 * SECOND_NS
AGAIN_NS = SECOND_NS
"""After an answer brought news, the other peers are asked this soon: it may be news to them."""
RECENT_MAX = wire.NAMED_MAX // 2
"""Chains that one side names: 1.6 s of 20 updates a second, and several round trips."""
WANT_CHAINS_MAX = 2048
"""Chains asked for at once: what a whole partition has changed in one round trip, and small enough
that several peers share a bootstrap."""
WANT_TIMEOUT_NS = 10 * SECOND_NS
FETCH_QUEUE_MAX = 100_000
"""Chains waiting to be asked for from one peer; the next exchange finds what is left out."""

_MODULUS = 1 << 8 * wire.DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class Host:
    """What the conversation needs of the replica that has it."""

    send: Callable[[NodeId, wire.Frame], None]
    take_delta: Callable[[NodeId, Delta, int], None]
    """a delta that came whole, and when; raises PeerError"""
    tell_roster: Callable[[NodeId], None]
    """the peer's roster differs: have both brought together"""


@dataclass(slots=True)
class Fetch:
    """What this node is asking one peer for."""

    queue: dict[bytes, None] = field(default_factory=dict)
    """chains still to ask for, in order"""
    fresh: set[bytes] = field(default_factory=set)
    """of those, the ones to ask for whole: what is held is no prefix of what the peer has"""
    want: int | None = None
    asked: tuple[bytes, ...] = ()
    deadline_ns: int = 0
    staged: Delta | None = None
    staged_puts: Puts = field(default_factory=dict)
    parts: int = 0
    """pieces taken of the answer under way"""
    advanced: bool = False
    """whether anything was applied since the last exchange began"""

    def stage(self, part: wire.Part, puts_max: int) -> Delta | None:
        """Add a piece; the whole delta once it is there. Raises PeerError."""
        self.parts += 1
        if self.staged is not None and self.staged.header != part.delta.header:
            self.staged, self.staged_puts = None, {}
        self.staged = part.delta
        self.staged_puts.update(part.delta.puts)
        if len(self.staged_puts) > puts_max:
            raise PeerError(f"answer of more than {puts_max} records")
        if part.more:
            return None
        whole = replace(part.delta, puts=self.staged_puts, payload=b"")
        self.staged, self.staged_puts = None, {}
        try:
            whole.check()
        except ValueError as error:
            raise PeerError(f"delta: {error}") from None
        return whole

    def reset(self) -> None:
        self.want, self.asked, self.parts = None, (), 0
        self.staged, self.staged_puts = None, {}


@dataclass(frozen=True, slots=True)
class Named:
    """What the last RECENT to a peer said, and when, as a count of the lattice's changes."""

    weights: dict[bytes, int]
    total: int
    changes: int


@dataclass(slots=True)
class Peer:
    """The conversation with one linked peer."""

    sync_at_ns: int
    period_ns: int = AGAIN_NS
    """doubles up to PERIOD_NS: a new link is found equal, or not, soon"""
    whole: bool = True
    """whether the next exchange tells all shards: the link is new"""
    asked: bool = False
    """whether a SYNC of ours is not answered yet: one that is lost is sent again"""
    named: Named | None = None
    fetch: Fetch = field(default_factory=Fetch)
    serving: sync.Serving | None = None
    told: bool = False
    """whether it has told all that it holds since the link came up"""
    in_sync_ns: int | None = None
    """when its digests last were equal to ours"""


class AntiEntropy:
    """All conversations of one node. Times are those of the replica.

    Args:
        jitter: a number in [0, 1), different each time.
    """

    def __init__(
        self,
        node: NodeId,
        lattice: Lattice,
        roster: Roster,
        host: Host,
        jitter: Callable[[], float],
    ) -> None:
        self._node = node
        self._lattice = lattice
        self._roster = roster
        self._host = host
        self._jitter = jitter
        self._peers: dict[NodeId, Peer] = {}
        self._wanted: dict[bytes, NodeId] = {}
        self._next_want = 1

    # ---- what the replica asks ----

    def __contains__(self, peer: NodeId) -> bool:
        return peer in self._peers

    def __len__(self) -> int:
        return len(self._peers)

    def peers(self) -> list[NodeId]:
        return sorted(self._peers)

    def in_sync_ns(self, peer: NodeId) -> int | None:
        """When the peer's digests last were equal to ours; None: not since the link came up."""
        state = self._peers.get(peer)
        return state.in_sync_ns if state else None

    def all_told(self) -> bool:
        """Whether there are peers, and each has told and given all that it holds."""
        return bool(self._peers) and all(
            state.told and state.fetch.want is None for state in self._peers.values()
        )

    def asked(self, peer: NodeId, short: bytes) -> bool:
        """Whether a delta of the chain is the peer's answer to a question of ours."""
        return self._wanted.get(short) == peer

    def question(self, *, must: bool) -> wire.Sync:
        """What this node holds, in digests."""
        digests = {shard: self._digest(shard) for shard in self._lattice.shards()}
        return wire.Sync(self._roster.mesh_id, self._roster_digest(), digests, must)

    # ---- inputs ----

    def up(self, peer: NodeId, now_ns: int) -> None:
        state = self._peers[peer] = Peer(now_ns)
        self._start(peer, state, now_ns)

    def down(self, peer: NodeId, now_ns: int) -> None:
        """What was asked of the peer is free to be asked of others, soon."""
        state = self._peers.pop(peer, None)
        if state is None:
            return
        if state.fetch.want is not None:
            for other in self._peers.values():
                self._hasten(other, now_ns)
        self._release(peer, state)

    def lagging(self, peer: NodeId, now_ns: int) -> None:
        """Frames to the peer were dropped: compare soon."""
        if state := self._peers.get(peer):
            self._hasten(state, now_ns)

    def timer(self, now_ns: int) -> None:
        for peer, state in sorted(self._peers.items()):
            if state.fetch.want is not None and now_ns >= state.fetch.deadline_ns:
                self._give_up(peer, state, now_ns)
            if now_ns >= state.sync_at_ns:
                self._start(peer, state, now_ns)

    def next_deadline_ns(self) -> int | None:
        due = [state.sync_at_ns for state in self._peers.values()]
        due += [s.fetch.deadline_ns for s in self._peers.values() if s.fetch.want is not None]
        return min(due, default=None)

    def receive(self, peer: NodeId, frame: wire.Frame, now_ns: int) -> None:
        """Take a frame of this conversation; others are ignored. Raises PeerError."""
        state = self._peers[peer]
        match frame:
            case wire.Sync():
                self._answer_sync(peer, state, frame, now_ns)
            case wire.Probe():
                self._answer_probe(peer, state, frame, now_ns)
            case wire.Recent():
                self._take_recent(peer, state, frame)
            case wire.Same():
                state.told, state.whole, state.asked = True, False, False
                state.in_sync_ns = now_ns
            case wire.Told():
                self._pump(peer, state, now_ns)
                if not frame.must:
                    self._end_sync(peer, state)
            case wire.Heads():
                self._take_heads(peer, state, frame, now_ns)
            case wire.Want():
                state.serving = sync.Serving(frame.id, self._lattice, frame.vector)
                self._serve(peer, state)
            case wire.More():
                if state.serving is not None and state.serving.want == frame.id:
                    state.serving.credit = min(state.serving.credit + 1, sync.WINDOW)
                    self._serve(peer, state)
            case wire.Part():
                self._take_part(peer, state, frame, now_ns)
            case wire.Done():
                self._take_done(peer, state, frame, now_ns)

    def taken(self, peer: NodeId, now_ns: int, *, advanced: bool = False) -> None:
        """A delta of the peer came: what was asked is on its way, and may be news to others."""
        if state := self._peers.get(peer):
            state.fetch.deadline_ns = now_ns + WANT_TIMEOUT_NS
            state.fetch.advanced |= advanced

    def ask(self, peer: NodeId, id: ChainId, now_ns: int, *, fresh: bool) -> None:
        """Ask the peer for what is lacking of a chain, or for the whole of it."""
        state, short = self._peers.get(peer), id.short()
        if state is None or self.asked(peer, short):
            return
        self._enqueue(state, short, fresh)
        self._pump(peer, state, now_ns)

    # ---- comparing ----

    def _start(self, peer: NodeId, state: Peer, now_ns: int) -> None:
        state.sync_at_ns = now_ns + state.period_ns // 2 + self._spread(state.period_ns)
        state.period_ns = min(2 * state.period_ns, PERIOD_NS)
        self._pump(peer, state, now_ns)
        if state.fetch.want is not None:
            return  # the answer under way closes what would be found
        if state.whole:
            self._tell_shards(peer, state)
        else:
            self._host.send(peer, wire.Probe(self._probe()))

    def _tell_shards(self, peer: NodeId, state: Peer) -> None:
        state.asked = True
        self._host.send(peer, self.question(must=False))

    def _answer_sync(self, peer: NodeId, state: Peer, frame: wire.Sync, now_ns: int) -> None:
        if frame.mesh != self._roster.mesh_id:
            raise PeerError("sync of another mesh")
        known = {shard for shard in frame.shards if shard_is_known(shard)}
        shards = sorted(known | set(self._lattice.shards()))
        nothing = bytes(wire.DIGEST_BYTES)
        differing = [s for s in shards if frame.shards.get(s, nothing) != self._digest(s)]
        same_roster = frame.roster == self._roster_digest()
        crossing = state.asked and self._node > peer and not frame.must
        if crossing and (differing or not same_roster):
            return  # TOLD follows at the end of ours
        if not same_roster:
            self._host.tell_roster(peer)
        for shard in differing:
            for heads in sync.heads(self._lattice, shard):
                self._host.send(peer, heads)
        if differing or not same_roster:
            self._host.send(peer, wire.Told(frame.must))
        else:
            self._host.send(peer, wire.Same())
            state.told = True
            state.in_sync_ns = now_ns

    def _end_sync(self, peer: NodeId, state: Peer) -> None:
        """The peer has answered; all that it tells of its heads has come."""
        asked, state.asked = state.asked, False
        state.told, state.whole = True, False
        if asked and self._node > peer:
            self._host.send(peer, wire.Told(False))

    def _answer_probe(self, peer: NodeId, state: Peer, frame: wire.Probe, now_ns: int) -> None:
        if frame.digest == self._probe():
            state.in_sync_ns = now_ns
            self._host.send(peer, wire.Same())
            return
        weights = {id.short(): self._weight(id) for id in self._recent()}
        total = self._total()
        state.named = Named(weights, total, self._lattice.changes)
        rest = (total - sum(weights.values())) % _MODULUS
        self._send_recent(peer, rest, weights, reply=False)

    def _take_recent(self, peer: NodeId, state: Peer, frame: wire.Recent) -> None:
        if frame.reply:
            self._compare_named(peer, state, frame)
            return
        if frame.roster != self._roster_digest():
            self._host.tell_roster(peer)
        mine = {short: self._weight_of(short) for short in frame.named}
        rest = (self._total() - sum(mine.values())) % _MODULUS
        if rest == _number(frame.rest):
            self._tell_differing(peer, mine, frame.named)
            return
        others = {
            short: self._weight(id) for id in self._recent() if (short := id.short()) not in mine
        }
        if not others:
            self._tell_shards(peer, state)
            return
        rest = (rest - sum(others.values())) % _MODULUS
        differing = {s: w for s, w in mine.items() if w != frame.named[s]}
        self._send_recent(peer, rest, {**differing, **others}, reply=True)

    def _compare_named(self, peer: NodeId, state: Peer, frame: wire.Recent) -> None:
        """The reply to our RECENT: compare with what was here when that was sent."""
        named, state.named = state.named, None
        before = self._lattice.before(named.changes) if named else None
        if named is None or before is None:
            return  # it comes far too late, or was never asked for: the next probe is soon enough
        then = {id.short(): weight % _MODULUS for id, weight in before.items()}
        union = {
            short: then.get(short, self._weight_of(short))
            for short in (*named.weights, *frame.named)
        }
        if (named.total - sum(union.values())) % _MODULUS != _number(frame.rest):
            self._tell_shards(peer, state)
            return
        theirs = {**named.weights, **frame.named}
        mine = {short: self._weight_of(short) for short in theirs}
        self._tell_differing(peer, mine, theirs)

    def _tell_differing(
        self, peer: NodeId, mine: dict[bytes, int], theirs: dict[bytes, int]
    ) -> None:
        """Only these chains can differ: tell the heads of those that do, held here or not."""
        shorts = sorted(short for short, weight in mine.items() if weight != theirs[short])
        if not shorts:
            return  # what differed was on its way, and has come
        ids = {short: self._lattice.by_short(short) for short in shorts}
        vector = sync.vector_of(self._lattice, [id for id in ids.values() if id is not None])
        vector.update({short: () for short, id in ids.items() if id is None})
        for heads in sync.some_heads(vector):
            self._host.send(peer, heads)

    def _send_recent(
        self, peer: NodeId, rest: int, named: dict[bytes, int], *, reply: bool
    ) -> None:
        rest_bytes = rest.to_bytes(wire.DIGEST_BYTES, "big")
        self._host.send(peer, wire.Recent(self._roster_digest(), rest_bytes, named, reply))

    def _recent(self) -> Iterable[ChainId]:
        return self._lattice.recent(RECENT_MAX)

    def _weight(self, id: ChainId) -> int:
        return self._lattice.weight(id) % _MODULUS

    def _weight_of(self, short: bytes) -> int:
        id = self._lattice.by_short(short)
        return self._weight(id) if id else 0

    def _total(self) -> int:
        return sum(_number(self._digest(shard)) for shard in self._lattice.shards()) % _MODULUS

    def _probe(self) -> bytes:
        """One digest over the chains and the roster."""
        total = (self._total() + _number(self._roster_digest())) % _MODULUS
        return total.to_bytes(wire.DIGEST_BYTES, "big")

    def _digest(self, shard: str) -> bytes:
        return self._lattice.digest(shard)[-wire.DIGEST_BYTES :]

    def _roster_digest(self) -> bytes:
        return self._roster.digest()[-wire.DIGEST_BYTES :]

    # ---- heads, and answers to them ----

    def _take_heads(self, peer: NodeId, state: Peer, frame: wire.Heads, now_ns: int) -> None:
        if not frame.shard:
            found = ((short, self._lattice.by_short(short)) for short in frame.vector)
            mine = {short: id for short, id in found if id is not None}
        elif shard_is_known(frame.shard):
            mine = {id.short(): id for id in self._lattice.chains(frame.shard)}
        else:
            return
        for short, theirs in frame.vector.items():
            id = mine.get(short)
            if sync.behind(self._lattice.branches(id) if id else [], theirs):
                self._enqueue(state, short)
        lacking = [
            id
            for short, id in sorted(mine.items())
            if short not in state.fetch.queue
            and (short in frame.vector or frame.first < short <= frame.last)
        ]
        for offered in sync.offer(self._lattice, frame.vector, lacking):
            self._host.send(peer, offered)
        if not frame.shard:  # of whole shards more may come: TOLD ends them
            self._pump(peer, state, now_ns)

    def _serve(self, peer: NodeId, state: Peer) -> None:
        assert state.serving is not None
        for frame in state.serving.frames():
            self._host.send(peer, frame)
            if isinstance(frame, wire.Done):
                state.serving = None
                return

    # ---- asking ----

    def _enqueue(self, state: Peer, short: bytes, fresh: bool = False) -> None:
        fetch = state.fetch
        if fresh:
            fetch.fresh.add(short)
        if short in self._wanted or len(fetch.queue) >= FETCH_QUEUE_MAX:
            return
        fetch.queue[short] = None

    def _pump(self, peer: NodeId, state: Peer, now_ns: int) -> None:
        """Ask for the next chains, unless an answer is under way."""
        fetch = state.fetch
        if fetch.want is not None:
            return
        asked: dict[bytes, tuple[wire.Held, ...]] = {}
        while fetch.queue and len(asked) < WANT_CHAINS_MAX:
            short = next(iter(fetch.queue))
            del fetch.queue[short]
            if short in self._wanted:
                continue
            id = self._lattice.by_short(short)
            if id is None or short in fetch.fresh:
                asked[short] = ()
            else:
                asked.update(sync.vector_of(self._lattice, [id]))
            fetch.fresh.discard(short)
        if not asked:
            return
        fetch.want, self._next_want = self._next_want, self._next_want + 1
        fetch.asked = tuple(asked)
        fetch.deadline_ns = now_ns + WANT_TIMEOUT_NS
        self._wanted.update(dict.fromkeys(asked, peer))
        self._host.send(peer, wire.Want(fetch.want, asked))

    def _take_part(self, peer: NodeId, state: Peer, part: wire.Part, now_ns: int) -> None:
        fetch = state.fetch
        if fetch.want != part.id or part.index < fetch.parts:
            return
        if part.index > fetch.parts:  # a piece was lost on the way: ask for all of them again
            self._give_up(peer, state, now_ns)
            return
        fetch.deadline_ns = now_ns + WANT_TIMEOUT_NS
        self._host.send(peer, wire.More(part.id))
        whole = fetch.stage(part, self._roster.quota(*part.delta.header.chain))
        if whole is not None:
            self._host.take_delta(peer, whole, now_ns)

    def _take_done(self, peer: NodeId, state: Peer, done: wire.Done, now_ns: int) -> None:
        fetch = state.fetch
        if fetch.want != done.id:
            return
        self._release(peer, state, keep_queue=True)
        self._pump(peer, state, now_ns)
        if fetch.want is None and fetch.advanced:
            fetch.advanced = False
            for other, theirs in self._peers.items():
                if other != peer:
                    self._hasten(theirs, now_ns)

    def _give_up(self, peer: NodeId, state: Peer, now_ns: int) -> None:
        """An answer came not at all or not whole: begin anew soon."""
        self._release(peer, state)
        self._hasten(state, now_ns)

    def _release(self, peer: NodeId, state: Peer, keep_queue: bool = False) -> None:
        """Give up what is under way with a peer."""
        for short in state.fetch.asked:
            if self._wanted.get(short) == peer:
                del self._wanted[short]
        state.fetch.reset()
        if not keep_queue:
            state.fetch.queue.clear()
            state.fetch.fresh.clear()

    # ---- inner ----

    def _hasten(self, state: Peer, now_ns: int) -> None:
        state.sync_at_ns = min(state.sync_at_ns, now_ns + self._spread(AGAIN_NS))

    def _spread(self, span_ns: int) -> int:
        return int(span_ns * self._jitter())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big")
