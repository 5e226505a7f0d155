"""Anti-entropy: the conversation with each linked peer that closes what pushes have missed.

- When a link comes up, both tell the digest of every shard that they keep and that the other may
  have (SYNC): those that both have told are what the two talk of, and push to each other. Of two
  that cross, the lower node id answers, with the heads of all chains of the shards that differ, and
  TOLD; the other sends what that node lacks, asks for what it lacks itself, and says TOLD, too.
- From then on, a PROBE now and then: one digest of everything. In a busy mesh it never is equal,
  since something is always on its way. So both name the chains that changed last (RECENT) and
  compare the sum of all others: when that is equal, only named chains differ, and only their heads
  are told; otherwise all is told as when the link came up. What was said is compared as of the
  moment at which it was said.
- On which links news are pushed besides is `eager`'s to say; it looks at a link with each PROBE.
- Who is behind asks (`fetching`). An answer freezes the interval it began with (`serving`).
- When many links come up together, a few of them are told all shards at once, and the others as
  those have answered. A peer that tells its own is answered at once: it keeps the same rule.

It knows nothing of what a delta does once it is whole, nor of the roster but its digest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core import sync, wire
from mesh.core.bounds import shard_is_known
from mesh.core.eager import EagerLinks
from mesh.core.errors import PeerError
from mesh.core.fetching import Fetching, Host
from mesh.core.ops import MESH_SHARD, NodeId
from mesh.core.roster import Roster
from mesh.core.serving import Answers

SECOND_NS: Final = 1_000_000_000
PERIOD_NS: Final = 10 * SECOND_NS
AGAIN_NS: Final = SECOND_NS
"""After an answer brought news, the other peers are asked this soon: it may be news to them."""
EXCHANGES_MAX: Final = 8
"""Links that are told all shards at once and have not answered yet: each may be answered with the
heads of every chain."""
ANSWER_NS: Final = 2 * SECOND_NS
"""Who has not answered after so long is not waited for by the others."""
BUSY_NS: Final = SECOND_NS // 4
"""How soon a link that has to wait is looked at again, at most."""
RECENT_MAX: Final = wire.NAMED_MAX // 2
"""Chains that one side names: 1.6 s of 20 updates a second, and several round trips."""
Shards: TypeAlias = frozenset[str] | None
"""None: all."""
Entitled: TypeAlias = Callable[[NodeId, str], bool]
"""(node, shard) -> whether it may be given it"""

_MODULUS: Final = 1 << 8 * wire.DIGEST_BYTES


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
    mine: Shards = frozenset()
    """what it was last told that this node keeps for it"""
    theirs: Shards = frozenset()
    """what it last told; empty before it has"""
    heard: bool = False
    """whether it has told anything since the link came up"""
    whole: bool = True
    """whether the next exchange tells all shards: the link is new"""
    asked: int = 0
    """the number of our last SYNC until that is answered: when it is lost it is said again"""
    asked_ns: int = -ANSWER_NS
    """when the first of them was sent, if it was of our accord"""
    number: int = 0
    """of its last SYNC"""

    @property
    def untold(self) -> bool:
        """Whether it has not been told anything since the link came up."""
        return self.whole and not self.asked

    def common(self, shard: str) -> bool:
        """Whether both have told that they keep the shard."""
        mine, theirs = self.mine, self.theirs
        return (mine is None or shard in mine) and (theirs is None or shard in theirs)

    def hears(self, shard: str) -> bool:
        """Whether it is told of what is new in the shard: of the mesh's before anything is said."""
        return shard == MESH_SHARD or self.common(shard)

    @property
    def everything(self) -> bool:
        """Whether both have told that they keep every shard."""
        return self.mine is None and self.theirs is None

    def both(self) -> Shards:
        """What both have told that they keep."""
        if self.mine is None or self.theirs is None:
            return self.theirs if self.mine is None else self.mine
        return self.mine & self.theirs

    named: Named | None = None
    told: bool = False
    """whether it has told all that it holds since the link came up"""
    in_sync_ns: int | None = None
    """when its digests last were equal to ours"""


class AntiEntropy:
    """All conversations of one node. Times are those of the replica.

    It keeps every shard, for everybody, until it is told otherwise.

    Args:
        tell_roster: a peer's roster differs: have both brought together.
        jitter: a number in [0, 1), different each time.
    """

    def __init__(
        self,
        node: NodeId,
        lattice: Lattice,
        roster: Roster,
        host: Host,
        tell_roster: Callable[[NodeId], None],
        jitter: Callable[[], float],
    ) -> None:
        self._node = node
        self._lattice = lattice
        self._roster = roster
        self._send = host.send
        self._tell_roster = tell_roster
        self._jitter = jitter
        self._peers: dict[NodeId, Peer] = {}
        self._heard: set[NodeId] = set()
        """who once has told and given all that it held, over a link that is no more, or anew now"""
        self._next_number = 1
        self._interest: Shards = None
        self._entitled: Entitled | None = None
        self._fetching = Fetching(lattice, roster, host)
        self._answers = Answers(lattice, host.send)
        self._due_ns: int | None = None
        self._due_known = False
        """whether that is still so"""
        self.eager = EagerLinks(
            host.send, lambda peer: self._peers[peer].both(), lambda: len(roster.members())
        )

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
            state.told and not self._fetching.busy(peer) for peer, state in self._peers.items()
        )

    def heard(self, peer: NodeId) -> bool:
        """Whether the peer has once told and given this process all that it held."""
        state = self._peers.get(peer)
        return peer in self._heard or (
            state is not None and state.told and not self._fetching.busy(peer)
        )

    def keeps(self, shard: str) -> bool:
        """Whether this node keeps what others write in the shard."""
        return self._interest is None or shard in self._interest

    def pushed(self) -> list[tuple[NodeId, Peer]]:
        """The peers that are told at once of what is new, in order."""
        return [(peer, self._peers[peer]) for peer in self.eager.awake()]

    def compares(self, peer: NodeId, shard: str) -> bool:
        """Whether both this node and the linked peer keep the shard."""
        state = self._peers.get(peer)
        return state is not None and state.common(shard)

    def question(self, peer: NodeId, *, must: bool) -> wire.Sync:
        """What this node keeps and the peer may have, in digests; of too much of it a part. Who
        keeps everything is then told of more than differs, and finds nothing new in it."""
        mine = self._peers[peer].mine = self._for(peer)
        shards = _within_bounds(self._lattice.shards()) if mine is None else sorted(mine)
        digests = {shard: self._digest(shard) for shard in shards}
        number, self._next_number = self._next_number, self._next_number + 1
        mesh, roster = self._roster.mesh_id, self._roster_digest()
        return wire.Sync(mesh, roster, digests, mine is None, must, number)

    def _for(self, peer: NodeId) -> Shards:
        if self._entitled is None:
            return self._interest
        kept = self._lattice.shards() if self._interest is None else self._interest
        entitled = [s for s in {MESH_SHARD, *kept} if self._entitled(peer, s)]
        return frozenset(_within_bounds(entitled))

    # ---- inputs ----

    def up(self, peer: NodeId, now_ns: int) -> None:
        self._due_known = False
        state = self._peers[peer] = Peer(now_ns)
        self._fetching.up(peer)
        self.eager.up(peer)
        self._start(peer, state, now_ns)

    def down(self, peer: NodeId, now_ns: int) -> None:
        """What was asked of the peer is free to be asked of others, soon."""
        self._due_known = False
        self._note_heard(peer)
        if self._peers.pop(peer, None) is None:
            return
        self.eager.down(peer)
        if self._fetching.busy(peer):
            for other in self._peers.values():
                self._hasten(other, now_ns)
        self._fetching.down(peer, now_ns)
        self._answers.down(peer, now_ns)

    def set_interest(self, shards: Shards, entitled: Entitled | None) -> None:
        """What this node keeps, and who may have what: peers for whom that differs are told."""
        self._due_known = False
        self._interest, self._entitled = shards, entitled
        for peer, state in sorted(self._peers.items()):
            if not state.untold and self._for(peer) != state.mine:
                self._tell_shards(peer, state)

    def lagging(self, peer: NodeId, now_ns: int) -> None:
        """Frames to the peer were dropped: compare soon."""
        self._due_known = False
        if state := self._peers.get(peer):
            self._hasten(state, now_ns)

    def timer(self, now_ns: int) -> None:
        self._due_known = False
        if self._fetching.any_busy:
            for peer in self._fetching.overdue(now_ns):
                self._give_up(peer, now_ns)
        self._answers.timer(now_ns)
        for peer in sorted(p for p, state in self._peers.items() if now_ns >= state.sync_at_ns):
            self._start(peer, self._peers[peer], now_ns)

    def next_deadline_ns(self) -> int | None:
        """When `timer` has something to do. Most frames are pushes, which change nothing of it."""
        if not self._due_known:
            due_ns = self._answers.next_deadline_ns()
            for state in self._peers.values():
                if due_ns is None or state.sync_at_ns < due_ns:
                    due_ns = state.sync_at_ns
            if self._fetching.any_busy:
                for late_ns in self._fetching.deadlines_ns():
                    if due_ns is None or late_ns < due_ns:
                        due_ns = late_ns
            self._due_ns, self._due_known = due_ns, True
        return self._due_ns

    def receive(self, peer: NodeId, frame: wire.Frame, now_ns: int) -> None:
        """Take a frame of this conversation; others are ignored. Raises PeerError."""
        self._due_known = False
        state = self._peers[peer]
        match frame:
            case wire.Sync():
                self._answer_sync(peer, state, frame, now_ns)
            case wire.Probe():
                self._answer_probe(peer, state, frame, now_ns)
            case wire.Recent():
                self._take_recent(peer, state, frame)
            case wire.Same():
                self._answered(state, frame.number)
                state.in_sync_ns = now_ns
            case wire.Told():
                self._fetching.pump(peer, now_ns)
                if self._answered(state, frame.number) and state.heard and self._node > peer:
                    self._send(peer, wire.Told(state.number))
            case wire.Heads():
                self._take_heads(peer, state, frame, now_ns)
            case wire.Want():
                self._answers.want(peer, frame, state.mine, now_ns)
            case wire.More():
                self._answers.more(peer, frame.id, now_ns)
            case wire.Rest() | wire.Wake():
                self.eager.receive(peer, frame)
            case wire.Part() | wire.Done():
                if not self._fetching.postpones(peer, frame):
                    self._take_answer(peer, frame, now_ns)

    def _take_answer(self, peer: NodeId, frame: wire.Part | wire.Done, now_ns: int) -> None:
        if isinstance(frame, wire.Done):
            if self._fetching.done(peer, frame, now_ns):
                self._spread_news(peer, now_ns)
        elif not self._fetching.part(peer, frame, now_ns):
            self._give_up(peer, now_ns)

    def given(self, peer: NodeId, answer: wire.Answer) -> None:
        """Whole deltas have come that the peer says were asked for."""
        self._fetching.given(peer, answer)

    def given_in_1(self, peer: NodeId, deltas: wire.Deltas) -> None:
        """The same in version 1, or a push."""
        if self._fetching.any_busy:
            self._fetching.given_in_1(peer, deltas)

    def verifying(self) -> list[NodeId]:
        """Peers of which a large chain is being verified: `verify` goes on with it."""
        return self._fetching.verifying()

    def verify(self, peer: NodeId, now_ns: int) -> None:
        """Go on verifying what the peer has given, if it is time. Raises PeerError."""
        self._due_known = False
        for frame in self._fetching.verify(peer, now_ns):
            if peer in self._peers and not self._fetching.postpones(peer, frame):
                self._take_answer(peer, frame, now_ns)

    def taken(self, peer: NodeId, short: bytes, now_ns: int) -> bool:
        """A delta of the peer advanced a chain. Whether it was asked for it."""
        self._due_known = self._due_known and not self._fetching.any_busy
        return self._fetching.taken(peer, short, now_ns)

    def ask(self, peer: NodeId, id: ChainId, now_ns: int, *, fresh: bool) -> None:
        """Ask the peer for what is lacking of a chain, or for the whole of it."""
        self._due_known = False
        if peer in self._peers:
            self._fetching.enqueue(peer, id.short(), fresh=fresh)
            self._fetching.pump(peer, now_ns)

    # ---- comparing ----

    def _start(self, peer: NodeId, state: Peer, now_ns: int) -> None:
        if state.untold and self._asking(now_ns) >= EXCHANGES_MAX:
            state.sync_at_ns = now_ns + 1 + self._spread(BUSY_NS)
            return
        state.sync_at_ns = now_ns + state.period_ns // 2 + self._spread(state.period_ns)
        state.period_ns = min(2 * state.period_ns, PERIOD_NS)
        self._fetching.pump(peer, now_ns)
        if self._fetching.busy(peer):
            return  # the answer under way closes what would be found
        if state.whole:
            if state.untold:
                state.asked_ns = now_ns
            self._tell_shards(peer, state)
        else:
            self._send(peer, wire.Probe(self._probe(state)))
            self.eager.look(peer)

    def _asking(self, now_ns: int) -> int:
        """Links that were told all shards and may be about to answer."""
        late_ns = now_ns - ANSWER_NS
        return sum(s.asked != 0 and s.asked_ns > late_ns for s in self._peers.values())

    def _note_heard(self, peer: NodeId) -> None:
        """Before that is to be seen no more."""
        if self.heard(peer):
            self._heard.add(peer)

    def _tell_shards(self, peer: NodeId, state: Peer) -> None:
        self._note_heard(peer)
        question = self.question(peer, must=False)
        state.asked, state.told, state.whole = question.number, False, True
        self._send(peer, question)

    def _answer_sync(self, peer: NodeId, state: Peer, frame: wire.Sync, now_ns: int) -> None:
        if frame.mesh != self._roster.mesh_id:
            raise PeerError("sync of another mesh")
        if state.untold:
            self._tell_shards(peer, state)  # it has had to wait: what both keep decides the answer
        first, state.heard = not state.heard, True
        state.number = frame.number
        state.theirs = None if frame.every else frozenset(frame.shards)
        known = {shard for shard in frame.shards if shard_is_known(shard)}
        shards = filter(state.common, sorted(known | set(self._lattice.shards())))
        nothing = bytes(wire.DIGEST_BYTES)
        differing = [s for s in shards if frame.shards.get(s, nothing) != self._digest(s)]
        same_roster = frame.roster == self._roster_digest()
        crossing = first and state.asked and self._node > peer and not frame.must
        if crossing and (differing or not same_roster):
            return  # TOLD follows at the end of ours
        if not same_roster:
            self._tell_roster(peer)
        for shard in differing:
            for heads in sync.heads(self._lattice, shard):
                self._send(peer, heads)
        if differing or not same_roster:
            self._send(peer, wire.Told(frame.number))
        else:
            self._send(peer, wire.Same(frame.number))
            state.told |= not state.asked
            state.in_sync_ns = now_ns

    @staticmethod
    def _answered(state: Peer, number: int) -> bool:
        """The peer has answered a SYNC; whether our last one: then all is told."""
        if not number or number != state.asked:
            return False
        state.asked, state.told, state.whole = 0, True, False
        return True

    def _answer_probe(self, peer: NodeId, state: Peer, frame: wire.Probe, now_ns: int) -> None:
        if frame.digest == self._probe(state):
            state.in_sync_ns = now_ns
            self._send(peer, wire.Same())
            return
        weights = self._recent_weights(state)
        total = self._total(state)
        state.named = Named(weights, total, self._lattice.changes)
        rest = (total - sum(weights.values())) % _MODULUS
        self._send_recent(peer, rest, weights, reply=False)

    def _take_recent(self, peer: NodeId, state: Peer, frame: wire.Recent) -> None:
        if frame.reply:
            self._compare_named(peer, state, frame)
            return
        if frame.roster != self._roster_digest():
            self._tell_roster(peer)
        mine = self._weights_of(state, frame.named)
        rest = (self._total(state) - sum(mine.values())) % _MODULUS
        if rest == _number(frame.rest):
            self._tell_differing(peer, state, mine, frame.named)
            return
        others = {s: w for s, w in self._recent_weights(state).items() if s not in mine}
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
        theirs = {**named.weights, **frame.named}
        mine = self._weights_of(state, theirs)
        then = {id.short(): weight % _MODULUS for id, weight in before.items()}
        union = {short: then.get(short, weight) for short, weight in mine.items()}
        if (named.total - sum(union.values())) % _MODULUS != _number(frame.rest):
            self._tell_shards(peer, state)
            return
        self._tell_differing(peer, state, mine, theirs)

    def _tell_differing(
        self, peer: NodeId, state: Peer, mine: dict[bytes, int], theirs: dict[bytes, int]
    ) -> None:
        """Only these chains can differ: tell the heads of those that do, held here or not."""
        shorts = sorted(short for short, weight in mine.items() if weight != theirs[short])
        if not shorts:
            return  # what differed was on its way, and has come
        ids = {short: self._known(state, short) for short in shorts}
        vector = sync.vector_of(self._lattice, [id for id in ids.values() if id is not None])
        vector.update({short: () for short, id in ids.items() if id is None})
        for heads in sync.some_heads(vector):
            self._send(peer, heads)

    def _send_recent(
        self, peer: NodeId, rest: int, named: dict[bytes, int], *, reply: bool
    ) -> None:
        rest_bytes = rest.to_bytes(wire.DIGEST_BYTES, "big")
        self._send(peer, wire.Recent(self._roster_digest(), rest_bytes, named, reply))

    def _recent_weights(self, state: Peer) -> dict[bytes, int]:
        """The weights of the chains of both that changed last."""
        recent = self._lattice.recent()
        if not state.everything:
            recent = (id for id in recent if state.common(id.shard))
        weight = self._lattice.weight
        return {id.short(): weight(id) % _MODULUS for id in islice(recent, RECENT_MAX)}

    def _known(self, state: Peer, short: bytes) -> ChainId | None:
        """A chain that is held here and of which the peer may know."""
        id = self._lattice.by_short(short)
        return id if id is not None and state.common(id.shard) else None

    def _weights_of(self, state: Peer, shorts: Iterable[bytes]) -> dict[bytes, int]:
        """What these chains weigh here; 0 where they are not held, or not for the peer."""
        by_short, weight = self._lattice.by_short, self._lattice.weight
        everything = state.everything
        weights: dict[bytes, int] = {}
        for short in shorts:
            id = by_short(short)
            shared = id is not None and (everything or state.common(id.shard))
            weights[short] = weight(id) % _MODULUS if id is not None and shared else 0
        return weights

    def _total(self, state: Peer) -> int:
        """The sum of what both keep."""
        lattice, shards = self._lattice, state.both()
        if shards is None:
            return lattice.total % _MODULUS
        return sum(map(lattice.sum_of, shards)) % _MODULUS

    def _probe(self, state: Peer) -> bytes:
        """One digest over what both keep and the roster."""
        total = (self._total(state) + _number(self._roster_digest())) % _MODULUS
        return total.to_bytes(wire.DIGEST_BYTES, "big")

    def _digest(self, shard: str) -> bytes:
        return self._lattice.digest(shard)[-wire.DIGEST_BYTES :]

    def _roster_digest(self) -> bytes:
        return self._roster.digest()[-wire.DIGEST_BYTES :]

    # ---- heads, and answers to them ----

    def _take_heads(self, peer: NodeId, state: Peer, frame: wire.Heads, now_ns: int) -> None:
        if not frame.shard:
            found = ((short, self._known(state, short)) for short in frame.vector)
            mine = {short: id for short, id in found if id is not None}
        elif shard_is_known(frame.shard) and state.common(frame.shard):
            mine = {id.short(): id for id in self._lattice.chains(frame.shard)}
        else:
            return
        for short, theirs in frame.vector.items():
            id = mine.get(short)
            if sync.behind(self._lattice.branches(id) if id else [], theirs):
                self._fetching.enqueue(peer, short)
        lacking = [
            id
            for short, id in sorted(mine.items())
            if not self._fetching.queued(peer, short)
            and (short in frame.vector or frame.first < short <= frame.last)
        ]
        for offered in sync.offer(self._lattice, frame.vector, lacking):
            self._send(peer, offered)
        if not frame.shard:  # of whole shards more may come: TOLD ends them
            self._fetching.pump(peer, now_ns)

    # ---- inner ----

    def _give_up(self, peer: NodeId, now_ns: int) -> None:
        """An answer came not at all or not whole: begin anew soon."""
        self._fetching.give_up(peer, now_ns)
        self._hasten(self._peers[peer], now_ns)

    def _spread_news(self, peer: NodeId, now_ns: int) -> None:
        for other, state in self._peers.items():
            if other != peer:
                self._hasten(state, now_ns)

    def _hasten(self, state: Peer, now_ns: int) -> None:
        state.sync_at_ns = min(state.sync_at_ns, now_ns + self._spread(AGAIN_NS))

    def _spread(self, span_ns: int) -> int:
        return int(span_ns * self._jitter())


def _within_bounds(shards: list[str]) -> list[str]:
    """Of these as many as a SYNC may name: the mesh's shard, and the first of the others."""
    if len(shards) <= wire.SHARDS_MAX:
        return shards
    return sorted(shards, key=lambda shard: (shard != MESH_SHARD, shard))[: wire.SHARDS_MAX]


def _number(digest: bytes) -> int:
    return int.from_bytes(digest, "big")
