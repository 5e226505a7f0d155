"""The replica: one synchronous object that decides everything about replication.

It takes frames, local writes and the time, and returns effects; the node carries them out from
trio, the simulator from one heap. It knows chains, not what their records mean.

- Own writes are applied at once and signed together at the next call of `drain` (or before anything
  is answered to a peer): one signature a flush, and a durable write before any send.
- What advanced a head is forwarded to the linked peers but those that have sent it (BP+RR, Enes et
  al. 2019), on the links that do not rest (`eager`).
- Anti-entropy (`antientropy`) runs when a link comes up, after a gap or an overflow, and now and
  then.
- A retired node is told so and its link is cut; a forgotten node's link is cut at once, its chains
  are dropped, and refused from everybody.
- What a replaced key has signed beyond what its node's rotation names is refused, and dropped where
  it is held.
- A header that contradicts the one held proves that its author signed two histories: the proof
  becomes a statement of the roster.
- A frame that breaks the protocol costs its sender the link; the state is as before the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from typing import Final

from crdt.chain import Chain, Disproved, Oversize, RootMismatch
from crdt.delta import RECORD_BYTES_MAX, BadDelta, Delta
from crdt.entry import SEQ_BYTES
from crdt.header import ChainId, Epoch, Header, Sign
from crdt.lattice import KEYS_MAX, Applied, Lattice
from crdt.root import Plan
from mesh.core import ed25519, wire
from mesh.core.antientropy import AntiEntropy, Entitled
from mesh.core.bounds import CHAINS_PER_NODE_MAX, shard_is_known
from mesh.core.clones import Clones
from mesh.core.effects import (
    Alarm,
    DropBranches,
    DropPeer,
    Effect,
    Forget,
    MembersChanged,
    Persist,
    PersistStatements,
    Send,
)
from mesh.core.errors import NotReady, PeerError, Refused
from mesh.core.fetching import Host
from mesh.core.holdings import Holdings
from mesh.core.members import Member
from mesh.core.ops import MESH_SHARD, NodeId, Op, Put, Touched
from mesh.core.own import OwnChains
from mesh.core.persisting import stored_header
from mesh.core.roster import Roster, Verify
from mesh.core.rotations import heads_signed, unheard
from mesh.core.statements import contradict, forks, rotations_among, turned

SECOND_NS: Final = 1_000_000_000
NEVER_NS: Final = 1 << 62
OPENING_NS: Final = 2 * SECOND_NS
"""How long a starting node waits for peers to tell what they hold of its own chains."""
FAREWELL_NS: Final = SECOND_NS
"""How long a linked node that was retired is left to hear of it."""
PROVE_AFTER_NS: Final = SECOND_NS
"""How long flushes that were taken on their authors' word are gathered before roots are recomputed:
many flushes of a chain cost little more than one."""
PROVE_KEYS, PROVE_STEP_NS = 1024, SECOND_NS // 200
"""Changed keys in one step, about 10 ms where each is in a bucket of its own, and what is left to
others between two steps."""
UNSIGNED_MAX: Final = 4096
"""Headers of one link that no key signs which counts here, before they are taken for forged: every
chain of a node that has just changed its key."""
PEERS_MAX: Final = 1024
STUBS_MAX: Final = 100_000
"""Chains dropped with their shards that are remembered, the last ones: 20 MB."""


class Replica:
    """One node's state of the mesh. See the module's header for the rules.

    Args:
        node: this node's id; it must be a member of `roster`.
        roster: who is in the mesh; the replica adds statements to it.
        lattice: what was stored, restored.
        sign: signs with this node's key in use, as it is in `roster` at the start.
        nonce: fresh random bytes of the length asked for.
        jitter: a number in [0, 1), different each time.
        now_ns: monotonic or virtual time; all later times are of the same clock.
        hears_first: what this node wrote before may be lost here: it writes nothing before its
            peers have told what they have of it, however long that takes.
        lacks: what others wrote may be lost here: before that nothing is dropped as not kept.
    """

    def __init__(
        self,
        node: NodeId,
        roster: Roster,
        lattice: Lattice,
        *,
        sign: Sign,
        nonce: Callable[[int], bytes],
        jitter: Callable[[], float],
        now_ns: int,
        verify: Verify = ed25519.verify,
        codec: wire.Codec = wire.CODEC,
        hears_first: bool = False,
        lacks: bool = False,
    ) -> None:
        self.node = node
        self.roster = roster
        self.lattice = lattice
        self._own = OwnChains(node, roster.mesh_id, lattice, sign, nonce)
        self._clones = Clones(self._own, lattice, self._tell)
        self.holdings = Holdings(lattice, self._own)
        self._verify = verify
        self._codec = codec
        self._versions: dict[NodeId, int] = {}
        """linked peer -> the wire version spoken with it"""
        self._key = member.key if (member := roster.members().get(node)) else b""
        host = Host(self._send, self._take_delta)
        self._sync = AntiEntropy(node, lattice, roster, host, self._tell_roster, jitter)
        self._eager = self._sync.eager
        self._cut_at_ns: dict[NodeId, int] = {}
        """when the links of nodes that were retired are cut"""
        self._unsigned: dict[NodeId, int] = {}
        """linked peer -> headers of it that no key that counts has signed"""
        self._last_sync_ns: dict[NodeId, int] = {}
        """of members whose links have ended"""
        self._effects: list[Effect] = []
        self.pressing = False
        """whether a peer waits for what `drain` has for it, as opposed to what is passed on"""
        self._prove_at_ns: int | None = None
        self._outbox: dict[bytes, tuple[Delta, set[NodeId]]] = {}
        """signature of a flush that is news -> the delta, and who has sent it meanwhile"""
        self._lacks = lacks
        self._drops_late = False
        """whether anything is held that is not kept, since this node lacks something"""
        self._stubs: dict[ChainId, tuple[Epoch, int]] = {}
        """chains that were dropped: the epoch and the head that were held"""
        self._forgotten: set[NodeId] = set()
        self._drop_forgotten()
        others = any(
            member.state == "active" and member.node != node for member in roster.members().values()
        )
        opens_at_ns = NEVER_NS if hears_first else now_ns + OPENING_NS
        self._opens_at_ns: int | None = opens_at_ns if others else None

    # ---- what people and the node ask ----

    @property
    def writable(self) -> bool:
        """Whether `local` takes writes: peers were asked for own chains, and no clone was met."""
        return (
            self._opens_at_ns is None
            and not self._own.cloned
            and not self.retired
            and not self.ousted
        )

    @property
    def opening(self) -> bool:
        """Whether peers are still to tell what they hold of own chains."""
        return self._opens_at_ns is not None

    @property
    def retired(self) -> bool:
        """Whether this node is known here to be retired or forgotten."""
        return self.roster.active(self.node) is None

    @property
    def ousted(self) -> bool:
        """Whether another key than this node's is in use for it: what it signs does not count."""
        member = self.roster.members().get(self.node)
        return member is not None and member.key != self._key

    def parting(self, peer: NodeId) -> bool:
        """Whether a linked peer was retired and is being told so."""
        return peer in self._cut_at_ns

    @property
    def cloned(self) -> bool:
        """Whether another process was seen writing as this node."""
        return self._own.cloned

    def in_sync_ns(self, peer: NodeId) -> int | None:
        """When the peer's digests last were equal to ours; None: not since the link came up."""
        return self._sync.in_sync_ns(peer)

    def question(self, peer: NodeId) -> wire.Sync:
        """A frame that a linked peer answers with the heads of what differs there, and TOLD."""
        return self._sync.question(peer, must=True)

    def encoded(self, peer: NodeId, frame: wire.Frame) -> bytes:
        """The bytes of a frame for a linked peer."""
        return self._codec.encode(frame, self._versions[peer])

    def keeps(self, shard: str) -> bool:
        """Whether this node keeps what others write in the shard."""
        return self._sync.keeps(shard)

    def compares(self, peer: NodeId, shard: str) -> bool:
        """Whether both this node and the linked peer keep the shard."""
        return self._sync.compares(peer, shard)

    @property
    def told(self) -> bool:
        """Whether there are peers, and each has told and given what it has of what is kept here."""
        return self._sync.all_told()

    def writes(self, shard: str) -> bool:
        """Whether this node has a chain of its own in the shard, unsealed writes included."""
        latest = self.lattice.latest(ChainId(self.node, shard))
        return latest is not None or self._own.opened(shard) is not None

    def last_sync_ns(self, peer: NodeId) -> int | None:
        """When the peer's digests last were equal to ours, over any link of this process."""
        current_ns = self.in_sync_ns(peer)
        return self._last_sync_ns.get(peer) if current_ns is None else current_ns

    @property
    def copies(self) -> int:
        """Deltas that peers have sent, news or not."""
        return self._eager.copies

    def peers(self) -> list[NodeId]:
        return self._sync.peers()

    def record(self, shard: str, key: bytes) -> bytes | None:
        """This node's own record under `key`, writes that are not drained yet included."""
        return self._own.record(shard, key)

    # ---- inputs ----

    def local(self, ops: Sequence[Op], now_ns: int) -> bool:
        """Apply own writes, all or none; whether they changed anything. `drain` signs them.

        Raises NotReady while starting, when a clone was met or this node was retired, and Refused
        beyond the quota.
        """
        if self.retired:
            raise NotReady("this node was retired from the mesh: join with a new directory")
        if self.ousted:
            raise NotReady(
                "this node's key was replaced by one that it does not have: have an admin retire"
                " the node as compromised, and join with a new directory"
            )
        if self._own.cloned:
            raise NotReady(
                "another process writes as this node: stop one; the other goes on a minute later"
            )
        if self._opens_at_ns is not None:
            raise NotReady(
                "this node's store was damaged: it takes writes once a peer has told what it wrote"
                if self._opens_at_ns == NEVER_NS
                else "still asking peers for what this node wrote before: try again in 2 s"
            )
        self._check_quotas(ops)
        wrote = self._own.write_all(ops)
        self._note_own_changes()
        return wrote

    def _check_quotas(self, ops: Sequence[Op]) -> None:
        """Raises Refused where own chains would hold more than everybody takes."""
        puts: dict[str, list[bytes]] = {}
        put_bytes: dict[str, int] = {}
        for op in ops:
            if isinstance(op, Put):
                if len(op.record) > RECORD_BYTES_MAX:
                    size = f"{len(op.record)} bytes, and {RECORD_BYTES_MAX} is the limit"
                    raise Refused(f"the record would have {size}: use fewer or shorter fields")
                puts.setdefault(op.shard, []).append(op.key)
                size_bytes = SEQ_BYTES + len(op.key) + len(op.record)
                put_bytes[op.shard] = put_bytes.get(op.shard, 0) + size_bytes
        for shard, keys in puts.items():
            quota, count = self.roster.quota(self.node, shard), len(keys)
            if self._own.count(shard) + count > quota:  # unless some of them are there already
                count = sum(self._own.record(shard, key) is None for key in keys)
            if self._own.count(shard) + count > quota:
                raise Refused(
                    f"more than {quota} records of this node in shard {shard}: remove some, or"
                    " spread them over more gateways"
                )
            quota_bytes = self.roster.quota_bytes(self.node, shard)
            more_bytes = put_bytes[shard]
            if self._own.size_bytes(shard) + more_bytes > quota_bytes:
                held = ((key, self._own.record(shard, key)) for key in set(keys))
                more_bytes -= sum(SEQ_BYTES + len(k) + len(r) for k, r in held if r is not None)
            if self._own.size_bytes(shard) + more_bytes > quota_bytes:
                raise Refused(
                    f"more than {quota_bytes} bytes of records of this node in shard {shard}:"
                    " remove some, or use shorter names and labels"
                )

    def receive(self, peer: NodeId, data: bytes, now_ns: int) -> None:
        """Take a frame of a linked peer."""
        if peer not in self._sync:
            return
        if self._own.dirty:
            self._seal()
        try:
            frame = self._codec.decode(data)
            if type(frame) is wire.Deltas:  # most of all
                if self._versions[peer] == 1:
                    self._sync.given_in_1(peer, frame)
                for delta in frame.deltas:
                    self._take_delta(peer, delta, True, now_ns)
            elif frame is not None:
                self._dispatch(peer, frame, now_ns)
        except PeerError as error:
            self._misbehaved(peer, error, now_ns)
        if self._opens_at_ns is not None:
            self._maybe_open(now_ns)

    def peer_up(self, peer: NodeId, now_ns: int, speaks: wire.Versions = wire.SPOKEN) -> None:
        """A link to a member is there, which speaks these versions. The transport has
        authenticated it."""
        if peer in self._sync or len(self._sync) >= PEERS_MAX:
            return
        if self.roster.active(peer) is None:
            self._effects.append(DropPeer(peer, "no active member"))
            return
        ours = self._codec.speaks
        version = ours.common(speaks)
        if version is None:
            reason = f"it speaks wire version {speaks}, this node {ours}: upgrade the older one"
            self._effects.append(Alarm("peer.incompatible", {"peer": peer, "reason": reason}))
            self._effects.append(DropPeer(peer, "no wire version in common"))
            return
        self._versions[peer] = version
        self._seal()
        self._sync.up(peer, now_ns)

    def peer_down(self, peer: NodeId, now_ns: int) -> None:
        """The link is gone; what was asked of the peer is free to be asked of others."""
        synced_ns = self._sync.in_sync_ns(peer)
        if synced_ns is not None:
            self._last_sync_ns[peer] = synced_ns
        self._cut_at_ns.pop(peer, None)
        self._unsigned.pop(peer, None)
        self._sync.down(peer, now_ns)
        self._maybe_open(now_ns)

    def peer_lagging(self, peer: NodeId, now_ns: int) -> None:
        """Frames to the peer were dropped: compare soon."""
        self._sync.lagging(peer, now_ns)

    def timer(self, now_ns: int) -> None:
        """Do what is due. Call it at `next_deadline_ns`, or any time."""
        self._seal()
        if self._clones.due_ns is not None:
            self._clones.timer(now_ns, self.told)
        if self._prove_at_ns is not None and now_ns >= self._prove_at_ns:
            self._prove(now_ns, PROVE_KEYS)
        if self._opens_at_ns is not None and now_ns >= self._opens_at_ns:
            self._opens_at_ns = None
        for peer, cut_at_ns in sorted(self._cut_at_ns.items()):
            if now_ns >= cut_at_ns:
                self._cut(peer, now_ns)
        for peer in self._sync.verifying():
            try:
                self._sync.verify(peer, now_ns)
            except PeerError as error:
                self._misbehaved(peer, error, now_ns)
        self._sync.timer(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When `timer` has something to do next."""
        due_ns = self._sync.next_deadline_ns()
        if self._prove_at_ns is not None and (due_ns is None or self._prove_at_ns < due_ns):
            due_ns = self._prove_at_ns
        clones_ns = self._clones.due_ns
        if clones_ns is not None and (due_ns is None or clones_ns < due_ns):
            due_ns = clones_ns
        if not self._cut_at_ns and self._opens_at_ns is None:
            return due_ns
        due = [*self._cut_at_ns.values(), *([] if due_ns is None else [due_ns])]
        if self._opens_at_ns is not None and self._opens_at_ns != NEVER_NS:
            due.append(self._opens_at_ns)
        return min(due, default=None)

    def set_interest(self, vpcs: Set[str], entitled: Entitled) -> None:
        """Keep `mesh` and the shards of these VPCs and no others, and give peers what they may
        have. To be called again when either differs.

        What others wrote in a shard that is kept no longer is dropped. Where each chain stood is
        remembered: should the shard be kept again while its writer is linked, nothing older is
        taken. While this node `lacks` something all stays: it may be kept by what is lacking, and
        what a writer has lost as well may be held nowhere else.
        """
        shards = frozenset((MESH_SHARD, *vpcs))
        self._seal()
        lacks, self._drops_late = self.lacks, False
        for shard in self.lattice.shards():
            if shard not in shards:
                for id in list(self.lattice.chains(shard)):
                    if id.node != self.node:
                        if lacks:
                            self._drops_late = True
                        else:
                            self._drop(id)
        self._sync.set_interest(shards, entitled)

    @property
    def lacks(self) -> bool:
        """Whether chains were left out at the start, and peers have not told yet what they have, or
        the view has not read it."""
        if self._lacks and not self.holdings.touched:
            self._lacks = not self._sync.all_told()
        return self._lacks

    @property
    def drops_late(self) -> bool:
        """Whether `set_interest` is to be called again, for what it has left."""
        return self._drops_late and not self.lacks

    def unheard(self) -> list[Member]:
        """Members that may hold what this node has written and lost with its disk: see
        `rotations.unheard`."""
        return unheard(self.node, self.roster.members(), self.peers(), self._sync.heard)

    def rotation(self, seed: bytes, new_seed: bytes) -> list[bytes]:
        """The statements by which this node replaces its key `seed` by `new_seed`. Raises Refused
        or NotReady.

        Everything that it has signed until now goes on counting: its chains, with the earlier
        epochs that they cover, as others may hold them, and its statements.
        """
        self.local((), 0)  # whoever may not write may not do this
        self._seal()
        heads = heads_signed(self.lattice, self.node)
        return self.roster.rotate(seed, new_seed, heads)

    def rotated(self, blobs: Iterable[bytes], new_key: bytes, now_ns: int) -> None:
        """Go on under `new_key`, by the statements that `rotation` has just made.

        From here on `sign` signs with it; own chains are signed anew.
        """
        self._key = new_key
        self._take_statements(blobs, None, now_ns)
        self._own.sign_anew()

    def add_statements(self, blobs: Iterable[bytes], now_ns: int) -> None:
        """Add this node's own or a founding roster statement, and tell peers."""
        self._seal()
        self._take_statements(blobs, None, now_ns)

    # ---- outputs ----

    @property
    def has_news(self) -> bool:
        """Whether there is anything to take: most frames bring what has come before."""
        news = self._effects or self._outbox or self.holdings.touched
        return bool(news) or self._drops_late

    def take_touched(self, bulk_max: int | None = None) -> list[Touched]:
        """The records touched since the last call, for the view, which reads `holdings`.

        Apart from `drain`, because the next local write needs a view that has this one in it, long
        before this one is durable.
        """
        return self.holdings.take_touched(bulk_max)

    def read(self, node: NodeId, shard: str, key: bytes) -> bytes | None:
        """A node's effective record under `key`, own writes that are not drained yet included."""
        return self.holdings.read(node, shard, key)

    def drain(self) -> list[Effect]:
        """The effects since the last call, in order; own writes are signed here."""
        self._seal()
        if self._outbox:
            self._push()
        effects, self._effects = self._effects, []
        self.pressing = False
        return effects

    def _push(self) -> None:
        """Send each peer what is news to it. Most are sent the same frames: these are made once."""
        outbox = [*self._outbox.values()]
        self._outbox.clear()
        made: dict[tuple[int, tuple[int, ...]], list[bytes]] = {}
        for peer, state in self._sync.pushed():
            everything = state.everything
            news = tuple(
                [
                    i
                    for i, (delta, senders) in enumerate(outbox)
                    if peer not in senders and (everything or state.hears(delta.header.chain.shard))
                ]
            )
            if not news:
                continue
            version = self._versions[peer]
            frames = made.get((version, news))
            if frames is None:
                frames = made[version, news] = self._frames_of(
                    [outbox[i][0] for i in news], version
                )
            self._effects += [Send(peer, frame, True) for frame in frames]

    def _frames_of(self, deltas: Sequence[Delta], version: int) -> list[bytes]:
        """As many frames as it takes."""
        encode = self._codec.encode
        if len(deltas) == 1:
            return [encode(wire.Deltas((*deltas,)), version)]
        groups = wire.chunks((delta, wire.size_of(delta)) for delta in deltas)
        return [encode(wire.Deltas(tuple(group)), version) for group in groups]

    # ---- frames ----

    def _dispatch(self, peer: NodeId, frame: wire.Frame, now_ns: int) -> None:
        match frame:
            case wire.Have():
                self._answer_have(peer, frame)
            case wire.Ask():
                blobs = [blob for h in frame.hashes if (blob := self.roster.get(h)) is not None]
                self._send_statements(peer, blobs)
            case wire.Statements():
                self._take_statements(frame.blobs, peer, now_ns)
            case wire.Answer():
                self._sync.given(peer, frame)
                for delta in frame.deltas:
                    self._take_delta(peer, delta, True, now_ns)
            case _:
                self._sync.receive(peer, frame, now_ns)

    # ---- deltas ----

    def _take_delta(
        self, peer: NodeId, delta: Delta, alone: bool, now_ns: int, made: Plan | None = None
    ) -> bool:
        """Join a delta of a peer; False when it does not verify. See `fetching.Host`."""
        header = delta.header
        id = header.chain
        held = self.lattice.branch(id, header.epoch)
        if held is not None and held.header is not None and held.header.is_same(header):
            # It has come by another way: who has sent it, too, need not be told of it.
            self._eager.again(peer)
            waiting = self._outbox.get(header.signature)
            if waiting is not None:
                waiting[1].add(peer)
            return True
        if not self._admissible(peer, delta, held, now_ns):
            return True
        if id.node == self.node:
            refused = self._clones.refuses(delta)
            self._note_own_changes()
            if refused:
                return True
        try:
            result = self.lattice.apply(delta, made, self.roster.quota_bytes(*id))
        except Oversize:
            self._effects.append(Alarm("chain.over_quota", {"node": id.node, "shard": id.shard}))
            return True
        except RootMismatch:
            if alone and delta.lo == 0 and delta.keep is not None:
                raise PeerError("snapshot does not verify") from None
            self._effects.append(Alarm("chain.mismatch", {"node": id.node, "shard": id.shard}))
            self._sync.ask(peer, id, now_ns, fresh=True)
            return False
        except Disproved:
            self._prove(now_ns)
            self._sync.ask(peer, id, now_ns, fresh=True)
            return False
        except BadDelta as error:
            if alone:
                raise PeerError(f"delta: {error}") from None
            return False
        if isinstance(result, Applied):
            asked = self._sync.taken(peer, result.chain.short, now_ns)
            self._applied(peer, delta, result, asked=asked)
            if self._prove_at_ns is None and self.lattice.unproved:
                self._prove_at_ns = now_ns + PROVE_AFTER_NS
        elif result.reason != "known":
            self._sync.ask(peer, id, now_ns, fresh=result.reason == "snapshot")
        return True

    def _prove(self, now_ns: int, keys_max: int = KEYS_MAX) -> None:
        """Recompute the roots that flushes were taken for. Where an author signed what its flushes
        do not lead to, the branch is dropped, and whatever a peer can prove is asked for."""
        disproofs = self.lattice.prove(keys_max)
        self._prove_at_ns = now_ns + PROVE_STEP_NS if self.lattice.unproved else None
        for disproof in disproofs:
            id = disproof.id
            self._effects.append(Alarm("chain.disproved", {"node": id.node, "shard": id.shard}))
            self._effects.append(DropBranches(id, (disproof.epoch,)))
            self.holdings.touch(id, disproof.changed)
            for peer in self._sync.peers():
                self._sync.lagging(peer, now_ns)

    def _admissible(self, peer: NodeId, delta: Delta, branch: Chain | None, now_ns: int) -> bool:
        """Whether the delta is of a member, within its quota, news, and signed by it. `branch`: of
        its epoch, as it is held."""
        header = delta.header
        id = header.chain
        member = self.roster.members().get(id.node)
        if not shard_is_known(id.shard) or (self._stubs and self._is_stale(header)):
            return False
        if id.node != self.node and not self._sync.keeps(id.shard):
            return False  # the peer has not heard yet what is kept here
        if member is None or member.state == "forgotten":
            # The next exchange brings both, or one of us the word that it is to be forgotten.
            self.peer_lagging(peer, now_ns)
            return False
        if header.entries > self.roster.quota(*id) or (
            branch is None
            and self.lattice.latest(id) is None
            and self.lattice.chains_of(id.node) >= CHAINS_PER_NODE_MAX
        ):
            self._effects.append(Alarm("chain.over_quota", {"node": id.node, "shard": id.shard}))
            return False
        if branch and branch.header and not member.forked and contradict(branch.header, header):
            proof = self.roster.fork_proof(branch.header, header)
            if proof is not None:
                self._take_statements((proof,), None, now_ns)
        if branch and (branch.head, branch.root) >= (header.hi, header.root):
            self._eager.again(peer)
            return False
        if self.roster.signed(header, self._verify):
            return True
        self._unsigned[peer] = self._unsigned.get(peer, 0) + 1
        agreed = not member.rotations and self._sync.in_sync_ns(peer) is not None
        if agreed or self._unsigned[peer] > UNSIGNED_MAX:
            raise PeerError(f"forged header of {id.node.hex()}")
        # By a key that does not count for it any more, or does not yet: a rotation may be on its
        # way. The next exchange brings one of us the other's statements.
        self.peer_lagging(peer, now_ns)
        return False

    def _drop(self, id: ChainId) -> None:
        """Forget a chain that another node wrote, but for where it stood."""
        latest = self.lattice.latest(id)
        if latest is not None and latest.header is not None:
            self._stubs.pop(id, None)
            self._stubs[id] = (latest.header.epoch, latest.header.hi)
            if len(self._stubs) > STUBS_MAX:
                del self._stubs[next(iter(self._stubs))]
        self.holdings.touch(id, tuple(key for key, *_ in self.lattice.entries(id)))
        epochs = tuple(branch.epoch for branch in self.lattice.branches(id))
        self._effects.append(DropBranches(id, epochs))
        self.lattice.discard(id)

    def _is_stale(self, header: Header) -> bool:
        """Whether more of the chain was held before it was dropped, and its writer, who is linked
        and keeps the shard, has that to give. Without the writer what others have is all there is:
        it may have been lost with it."""
        id = header.chain
        stub = self._stubs.get(id)
        if stub is None or self.lattice.latest(id) is not None:
            return False
        if not self._sync.compares(*id):
            return False
        epoch, head = stub
        return header.epoch < epoch if header.epoch != epoch else header.hi < head

    def met_clone(self, peer: NodeId) -> None:
        """A peer has proved that another process runs as this node: this one writes no more."""
        self._clones.proved(peer)
        self._note_own_changes()

    def _applied(self, peer: NodeId, delta: Delta, result: Applied, *, asked: bool) -> None:
        header = delta.header
        id = header.chain
        previous = result.previous if result.previous != header.epoch else None
        self._effects.append(
            Persist(
                id,
                header.epoch,
                stored_header(header),
                result.puts,
                result.drops,
                replace=result.fresh,
                relabel_from=previous,
                drop=result.dropped,
            )
        )
        self._eager.news(peer)
        if not asked and wire.size_of(delta) <= wire.CHUNK_BYTES:
            # An answer that was asked for is not pushed on: a bootstrap would be sent to all
            # neighbours. They are told with the exchange that follows it.
            self._outbox[header.signature] = (delta, {peer})
        self.holdings.touch(id, result.changed)
        if id.node == self.node:
            branch = self.lattice.branch(id, header.epoch)
            if branch is not None:
                self._clones.met(branch)
            self._note_own_changes()

    # ---- roster ----

    def _tell_roster(self, peer: NodeId) -> None:
        self._send(peer, wire.Have(tuple(sorted(self.roster.hashes()))))

    def _answer_have(self, peer: NodeId, frame: wire.Have) -> None:
        theirs = set(frame.hashes)
        mine = self.roster.hashes()
        missing = [blob for h in sorted(mine - theirs) if (blob := self.roster.get(h)) is not None]
        self._send_statements(peer, missing)
        if lacking := tuple(sorted(theirs - mine)):
            self._send(peer, wire.Ask(lacking))

    def _send_statements(self, peer: NodeId, blobs: Sequence[bytes], *, push: bool = False) -> None:
        """In the roster's order: a frame never holds a signer after its use."""
        wanted = set(blobs)
        ordered = [blob for blob in self.roster.statements() if blob in wanted] if wanted else []
        for group in wire.statement_groups(ordered):
            self._send(peer, wire.Statements(tuple(group)), push=push)

    def _take_statements(self, blobs: Iterable[bytes], sender: NodeId | None, now_ns: int) -> None:
        fresh = self.roster.add(blobs)
        if not fresh:
            return
        self._effects.append(PersistStatements(tuple(fresh), tuple(self.roster.take_left())))
        self._effects.append(MembersChanged())
        for proof in forks(fresh):
            self._effects.append(Alarm("chain.forked", {"node": proof.node, "shard": proof.shard}))
        rotated = turned(fresh)
        for node in rotated:
            if (member := self.roster.members().get(node)) and member.contested:
                self._effects.append(Alarm("key.contested", {"node": node}))
        for peer in self._sync.peers():
            if peer != sender:
                self._send_statements(peer, fresh)
                # What is pushed must not overtake the key that it is signed with.
                self._send_statements(peer, rotations_among(fresh), push=True)
        self._drop_forgotten()
        self._drop_outdated(rotated, now_ns)
        for peer in self._sync.peers():
            member = self.roster.members().get(peer)
            if member is None or member.state == "forgotten":
                self._cut(peer, now_ns)
            elif member.state == "retired":
                self._cut_at_ns.setdefault(peer, now_ns + FAREWELL_NS)

    def _misbehaved(self, peer: NodeId, error: PeerError, now_ns: int) -> None:
        self._effects.append(Alarm("peer.misbehaved", {"peer": peer, "reason": str(error)}))
        self._effects.append(DropPeer(peer, str(error)))
        self.peer_down(peer, now_ns)

    def _cut(self, peer: NodeId, now_ns: int) -> None:
        self._effects.append(DropPeer(peer, "no active member any more"))
        self.peer_down(peer, now_ns)

    def _drop_outdated(self, nodes: Sequence[NodeId], now_ns: int) -> None:
        """Drop the branches of these nodes that are signed by a key that does not count for them
        (any more), and ask for what others have of these chains."""
        outdated = [
            branch
            for id in self.lattice.chains()
            if id.node in nodes and id.node != self.node
            for branch in self.lattice.branches(id)
            if branch.header is not None and not self.roster.signed(branch.header, self._verify)
        ]
        for branch in outdated:
            self.holdings.touch(branch.id, self.lattice.keys(branch.id))
            self.lattice.drop(branch.id, branch.epoch)
            self._effects.append(DropBranches(branch.id, (branch.epoch,)))
        if outdated:
            for peer in self._sync.peers():
                self._sync.lagging(peer, now_ns)

    def _drop_forgotten(self) -> None:
        """Drop what there is of nodes that are forgotten now, or members no more because the root
        key does not keep their admission."""
        members = self.roster.members()
        known = {self.node, *members, *self.lattice.writers()}
        forgotten = {n for n in known if n not in members or members[n].state == "forgotten"}
        gone, self._forgotten = forgotten - self._forgotten, forgotten
        if not gone:
            return
        if self.node in gone:
            self._own.close()
            self._note_own_changes()
        for id in [id for id in self.lattice.chains() if id.node in gone]:
            self.holdings.touch(id, self.lattice.keys(id))
            self.lattice.discard(id)
        for node in sorted(gone):
            self._last_sync_ns.pop(node, None)
            self._effects.append(Forget(node))
        self._outbox = {
            signature: news
            for signature, news in self._outbox.items()
            if news[0].header.chain.node not in gone
        }

    # ---- inner ----

    def _tell(self, effect: Effect) -> None:
        self._effects.append(effect)

    def _maybe_open(self, now_ns: int) -> None:
        """Take writes once every linked peer has told what it holds, or the time is over."""
        if self._opens_at_ns is None:
            return
        if self._sync.all_told() or now_ns >= self._opens_at_ns:
            self._opens_at_ns = None

    def _seal(self) -> None:
        if not self._own.dirty:
            return
        for sealed in self._own.seal():
            self._effects.append(sealed.persist)
            self._outbox[sealed.delta.header.signature] = (sealed.delta, set())
        self._note_own_changes()

    def _note_own_changes(self) -> None:
        for shard, keys in self._own.take_touched():
            self.holdings.touch(ChainId(self.node, shard), keys)

    def _send(self, peer: NodeId, frame: wire.Frame, *, push: bool = False) -> None:
        self.pressing |= not push
        data = self.encoded(peer, frame)
        # What is pushed is in a hurry; of hashes alone there is nothing to shrink.
        plain = push or isinstance(frame, wire.Recent)
        zipped = data if plain else wire.zipped(data, self._versions[peer])
        self._effects.append(Send(peer, zipped, push))
