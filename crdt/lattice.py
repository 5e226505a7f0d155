"""The lattice: all chains a node holds, and their join.

State = chain id -> branches (epoch -> chain). Within an epoch the order is (head, root), total, and
the join is the greater. A branch of an older epoch goes when a held later epoch covers it at or
above the head held; until then both are kept and read, per key the later epoch first, and of each
only what the others do not know and have changed or deleted. The join of
two states is branch by branch: a product lattice, and that is all merging does (Almeida, Shoker,
Baquero 2018; deltas are the join-irreducible intervals of Enes et al. 2019).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from typing import Final, Literal, NamedTuple

from crdt.chain import Chain, Disproved, Oversize, Planned, RootMismatch
from crdt.delta import BadDelta, Delta, Puts
from crdt.entry import Entry, record_of, seq_of
from crdt.header import ChainId, Epoch, common_head
from crdt.root import Plan

BRANCHES_MAX: Final = 16
"""Uncovered epochs kept a chain: the latest. Only clones of a writer make more than two."""
_DIGEST_MODULUS: Final = 1 << 256
LOG_MAX: Final = 1024
"""Changes of chains remembered: what two nodes exchange in a few round trips, at 100 a second."""
BYTES_MAX: Final = 1 << 62
"""More bytes than there are."""
KEYS_MAX: Final = 1 << 62
"""More keys than there are: as many as there are."""
_NO_BRANCHES: Final[dict[Epoch, Chain]] = {}


class Applied(NamedTuple):
    """A delta advanced the lattice. `changed` are the keys whose effective entry may differ."""

    chain: Chain
    puts: Puts
    """what was put in the branch, without what it held already"""
    drops: tuple[bytes, ...]
    """what was removed from it"""
    previous: Epoch | None
    """the epoch under which the branch stood before, None for a new branch"""
    fresh: bool
    """the branch was rebuilt from a snapshot"""
    dropped: tuple[Epoch, ...]
    changed: Collection[bytes]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A delta did not apply; nothing changed.

    known: nothing new. gap: a delta since (`epoch`, `head`) is needed. snapshot: the whole chain is
    needed, since what is held is no prefix of it.
    """

    reason: Literal["known", "gap", "snapshot"]
    epoch: Epoch | None = None
    head: int = 0


@dataclass(frozen=True, slots=True)
class Disproof:
    """A branch was dropped: its author had signed a root that its flushes do not lead to."""

    id: ChainId
    epoch: Epoch
    changed: tuple[bytes, ...]


class Lattice:
    """Chains by id and epoch, with a digest a shard that is kept as they change.

    A verbatim flush onto what is held is applied on its author's word. Before branches are read for
    others (`Chain.since`, `Chain.snapshot`) `prove` has to be called.
    """

    def __init__(self) -> None:
        self._branches: dict[ChainId, dict[Epoch, Chain]] = {}
        self._short: dict[bytes, ChainId] = {}
        self._weights: dict[ChainId, int] = {}
        self._digest: dict[str, int] = {}
        self.total = 0
        """the digests of all shards, summed: a number of 256 bits"""
        self._shards: dict[str, set[ChainId]] = {}
        self._chains_of: Counter[bytes] = Counter()
        self._unproved: dict[ChainId, None] = {}
        self._log: deque[tuple[ChainId, int]] = deque(maxlen=LOG_MAX)
        self.changes = 0
        """how often the weight of a chain has changed"""

    # ---- reading ----

    def shards(self) -> list[str]:
        return sorted(self._shards)

    def chains(self, shard: str | None = None) -> Iterator[ChainId]:
        """Chain ids, sorted."""
        ids = self._branches if shard is None else self._shards.get(shard, set())
        return iter(sorted(ids))

    def branches(self, id: ChainId) -> list[Chain]:
        """The branches held of a chain, latest epoch first."""
        held = self._branches.get(id, _NO_BRANCHES)
        if len(held) < 2:
            return [*held.values()]
        return [held[epoch] for epoch in sorted(held, reverse=True)]

    def branch(self, id: ChainId, epoch: Epoch) -> Chain | None:
        return self._branches.get(id, _NO_BRANCHES).get(epoch)

    def is_branched(self, id: ChainId) -> bool:
        """Whether the chain is held in several epochs."""
        return len(self._branches.get(id, _NO_BRANCHES)) > 1

    def chains_of(self, node: bytes) -> int:
        """How many chains of `node` are held."""
        return self._chains_of[node]

    def writers(self) -> Collection[bytes]:
        """The nodes of which any chain is held, in no order."""
        return self._chains_of.keys()

    def latest(self, id: ChainId) -> Chain | None:
        branches = self.branches(id)
        return branches[0] if branches else None

    def by_short(self, short: bytes) -> ChainId | None:
        return self._short.get(short)

    def record(self, id: ChainId, key: bytes) -> bytes | None:
        """The effective record under `key`."""
        held = self._branches.get(id)
        if held is not None and len(held) == 1:
            (chain,) = held.values()
            entry = chain.live.get(key)
            return None if entry is None else record_of(entry)
        found = self.get(id, key)
        return None if found is None else found[2]

    def get(self, id: ChainId, key: bytes) -> tuple[Epoch, int, bytes] | None:
        """(epoch, seq, record) of the effective entry under `key`: the latest epoch's that has
        one."""
        branches = self.branches(id)
        for chain in branches:
            entry = chain.live.get(key)
            if entry is not None and not _superseded(branches, chain, key, entry):
                return chain.epoch, seq_of(entry), record_of(entry)
        return None

    def entries(self, id: ChainId) -> Iterator[tuple[bytes, Epoch, int, bytes]]:
        """(key, epoch, seq, record) of all effective entries, in the order of their branch."""
        seen: set[bytes] = set()
        branches = self.branches(id)
        for chain in branches:
            for key, entry in chain.live.items():
                if key not in seen and not _superseded(branches, chain, key, entry):
                    seen.add(key)
                    yield key, chain.epoch, seq_of(entry), record_of(entry)

    def keys(self, id: ChainId) -> Collection[bytes]:
        """The keys of all effective entries of a chain."""
        branches = self.branches(id)
        if len(branches) == 1:
            return branches[0].live.keys()
        return [key for key, _, _, _ in self.entries(id)]

    def digest(self, shard: str) -> bytes:
        """32 bytes, equal at two nodes exactly when they hold the same branches of the shard.

        A sum over hashes: enough between members, who could lie about a digest anyway. What is held
        is proved by signed roots, never by this.
        """
        return self._digest.get(shard, 0).to_bytes(32, "big")

    def sum_of(self, shard: str) -> int:
        """The digest as a number of 256 bits; 0 for a shard of which nothing is held."""
        return self._digest.get(shard, 0)

    def weight(self, id: ChainId) -> int:
        """What the chain adds to the digest of its shard: 256 bits, 0 for a chain not held."""
        return self._weights.get(id, 0)

    def recent(self) -> Iterator[ChainId]:
        """The chains that changed last, the latest first, each once."""
        found: set[ChainId] = set()
        for id, _ in reversed(self._log):
            if id not in found:
                found.add(id)
                yield id

    def before(self, changes: int) -> dict[ChainId, int] | None:
        """What chains that have changed since weighed when `self.changes` was `changes`.

        None when that is too long ago.
        """
        since = self.changes - changes
        if since > len(self._log):
            return None
        weights: dict[ChainId, int] = {}
        for id, weight in islice(reversed(self._log), since):
            weights[id] = weight
        return weights

    # ---- joining ----

    def apply(
        self, delta: Delta, made: Plan | None = None, bytes_max: int = BYTES_MAX
    ) -> Applied | Rejected:
        """Join a delta whose signature the caller has checked. `made`: of a snapshot, the index of
        its entries, where that has been made already. `bytes_max`: that the branch may hold.

        Raises BadDelta (no honest peer sends it), RootMismatch (ask for the whole chain; when
        this was it, the sender lies), Oversize, or Disproved (call `prove`: what is held is of no
        use). Nothing is changed then.
        """
        header = delta.header
        held = self._branches.get(header.chain, {})
        branch = held.get(header.epoch)
        if len(held) == (branch is not None):
            chain = branch or Chain(header.chain, header.epoch)
            if (
                chain.continues(delta)
                and chain.size_bytes + len(delta.packed_payload()) <= bytes_max
                and (drops := chain.extend(delta)) is not None
            ):
                return self._extended(chain, delta, drops, held)
        if any(
            chain.header is not None
            and chain.header.epoch != header.epoch
            and chain.header.covers_head(header.epoch, header.hi)
            for chain in held.values()
        ):
            return Rejected("known")
        if branch is not None and (branch.head, branch.root) >= (header.hi, header.root):
            return Rejected("known")
        target = self._target(delta, held)
        if isinstance(target, Rejected):
            return target
        if header.chain in self._unproved:
            for chain in held.values():
                chain.prove()
            del self._unproved[header.chain]
        planned = target.plan(delta, made)
        if target.size_bytes + planned.puts_bytes > bytes_max < target.size_after(planned):
            raise Oversize
        return self._install(target, planned, held, branch)

    def _extended(
        self, chain: Chain, delta: Delta, drops: tuple[bytes, ...], held: dict[Epoch, Chain]
    ) -> Applied:
        """Account for the only branch of a chain, after its author's next flush."""
        fresh = not held
        held[chain.epoch] = chain
        self._account(chain.id, held)
        self._unproved[chain.id] = None
        changed = (*delta.puts, *drops) if drops else delta.puts.keys()
        previous = None if fresh else chain.epoch
        return Applied(chain, delta.puts, drops, previous, fresh, (), changed)

    @property
    def unproved(self) -> bool:
        """Whether there is a root that was taken on its author's word."""
        return bool(self._unproved)

    def prove(self, keys_max: int = KEYS_MAX) -> list[Disproof]:
        """Recompute roots that were taken on their authors' word, those that came first first,
        until about `keys_max` changed keys are done; what had to be dropped."""
        found: list[Disproof] = []
        done = 0
        while self._unproved and done < keys_max:
            id = next(iter(self._unproved))
            held = self._branches[id]
            try:
                for chain in held.values():
                    done += chain.prove(keys_max - done) + 1
            except Disproved:
                changed = dict.fromkeys(key for branch in held.values() for key in branch.live)
                found.append(Disproof(id, chain.epoch, tuple(changed)))
                self.drop(id, chain.epoch)
                continue
            if not any(branch.unproved for branch in held.values()):
                del self._unproved[id]
        return found

    def drop(self, id: ChainId, epoch: Epoch) -> None:
        """Forget a branch that does not count (any more). It must be held."""
        held = self._branches[id]
        del held[epoch]
        if held:
            self._account(id, held)
        else:
            self.discard(id)

    def _target(self, delta: Delta, held: dict[Epoch, Chain]) -> Chain | Rejected:
        """The chain to lay the delta on: a held branch that is a prefix, or an empty one."""
        header = delta.header
        if delta.lo > header.shared_head(delta.base):
            raise BadDelta("starts beyond what its base shares with the chain")
        if delta.lo == 0 and delta.keep is not None:
            return Chain(header.chain, header.epoch)
        best: Chain | None = None
        for epoch, chain in held.items():
            shared = header.shared_head(epoch)
            if chain.head <= shared and (best is None or chain.head > best.head):
                best = chain
        if best is None:
            if held:
                return Rejected("snapshot")
            return Chain(header.chain, header.epoch) if delta.lo == 0 else Rejected("gap")
        if best.head == header.hi and best.epoch == header.epoch:
            return Rejected("snapshot")  # the same head under another root: a fork
        if delta.lo > best.head:
            return Rejected("gap", best.epoch, best.head)
        return best

    def _install(
        self, target: Chain, planned: Planned, held: dict[Epoch, Chain], replaced: Chain | None
    ) -> Applied:
        header = planned.delta.header
        fresh = target not in held.values()
        previous = None if fresh else target.epoch
        if not held:  # most of a bootstrap: nothing is gone through that need not be
            target.adopt(planned)
            held[header.epoch] = target
            self._account(header.chain, held)
            return Applied(target, planned.puts, planned.drops, None, True, (), planned.puts)
        changed = dict.fromkeys(planned.puts)
        changed.update(dict.fromkeys(planned.drops))
        if fresh and replaced is not None:
            changed.update(dict.fromkeys(replaced.live))
        if previous is not None:
            del held[previous]
        target.adopt(planned)
        held[header.epoch] = target
        dropped = self._prune(held, changed)
        if len(held) > 1 or dropped:  # what is read of one branch hangs on the others
            for branch in held.values():
                changed.update(dict.fromkeys(branch.live))
        self._account(header.chain, held)
        return Applied(
            target, planned.puts, planned.drops, previous, fresh, dropped, tuple(changed)
        )

    @staticmethod
    def _prune(held: dict[Epoch, Chain], changed: dict[bytes, None]) -> tuple[Epoch, ...]:
        """Drop the branches that a later held epoch covers, and all beyond BRANCHES_MAX."""
        dropped = [
            epoch
            for epoch, chain in held.items()
            if any(
                other.epoch > epoch
                and other.header is not None
                and other.header.covers_head(epoch, chain.head)
                for other in held.values()
            )
        ]
        rest = sorted((epoch for epoch in held if epoch not in dropped), reverse=True)
        dropped += rest[BRANCHES_MAX:]
        for epoch in dropped:
            changed.update(dict.fromkeys(held.pop(epoch).live))
        return tuple(dropped)

    def join(self, other: Lattice) -> None:
        """Take the greater of every branch: the join by definition, which deltas must equal.

        Needs both to be proved.
        """
        for id in other.chains():
            for chain in reversed(other.branches(id)):
                if chain.header is not None:
                    self.apply(chain.snapshot())

    # ---- a node's own chains and stored ones ----

    def add(self, chain: Chain) -> None:
        """Take in a chain that was restored from disk or opened by this node."""
        held = self._branches.get(chain.id, {})
        held[chain.epoch] = chain
        self._prune(held, {})
        self._account(chain.id, held)

    def reseal(self, chain: Chain, before: Epoch) -> tuple[Epoch, ...]:
        """Account for an own chain that was sealed anew, and stood under `before` until then.

        Returns the epochs that its covers made superfluous.
        """
        held = self._branches.get(chain.id, {})
        held.pop(before, None)
        held[chain.epoch] = chain
        dropped = self._prune(held, {})
        self._account(chain.id, held)
        return dropped

    def discard(self, id: ChainId) -> None:
        """Forget a chain (its node was forgotten)."""
        if self._branches.pop(id, None) is None:
            return
        self._unproved.pop(id, None)
        self._chains_of[id.node] -= 1
        if not self._chains_of[id.node]:
            del self._chains_of[id.node]
        self._weigh(id, 0)
        self._weights.pop(id, None)
        del self._short[id.short()]
        self._shards[id.shard].discard(id)
        if not self._shards[id.shard]:
            del self._shards[id.shard]
            self._digest.pop(id.shard, None)

    # ---- inner ----

    def _account(self, id: ChainId, held: dict[Epoch, Chain]) -> None:
        """Register the branches of a chain, and their weight in its shard's digest."""
        if id not in self._branches:
            self._register(id, held)
        self._weigh(id, sum(map(_weight, held.values())))

    def _register(self, id: ChainId, held: dict[Epoch, Chain]) -> None:
        self._branches[id] = held
        self._short[id.short()] = id
        self._chains_of[id.node] += 1
        self._shards.setdefault(id.shard, set()).add(id)

    def _weigh(self, id: ChainId, weight: int) -> None:
        before = self._weights.get(id, 0)
        if weight == before:
            return
        self._log.append((id, before))
        self.changes += 1
        self._weights[id] = weight
        more = weight - before
        self._digest[id.shard] = (self._digest.get(id.shard, 0) + more) % _DIGEST_MODULUS
        self.total = (self.total + more) % _DIGEST_MODULUS


def _superseded(branches: list[Chain], chain: Chain, key: bytes, entry: Entry) -> bool:
    """Whether another branch includes what was written as `entry` of `chain`, and went on from it:
    it has covered it, or it lies in their common history and is there no more. This is how the
    owner reads them, too, once it writes the older one's tail anew."""
    if len(branches) == 1:
        return False
    header, seq = chain.header, seq_of(entry)
    for other in branches:
        if other is chain or other.header is None or header is None:
            continue
        if other.epoch > chain.epoch and other.header.covers_head(chain.epoch, seq):
            return True
        if seq <= common_head(header, other.header):
            theirs = other.live.get(key)
            if theirs is None or seq_of(theirs) != seq:
                return True
    return False


def _weight(chain: Chain) -> int:
    """H(chain, epoch, head, root) of what is signed; an unsealed tail does not count yet."""
    header = chain.header
    if header is None:
        return 0
    text = b"".join(
        (
            chain.short,
            header.epoch.counter.to_bytes(8, "big"),
            header.epoch.nonce,
            header.hi.to_bytes(8, "big"),
            header.root,
        )
    )
    return int.from_bytes(sha256(text).digest(), "big")


def digest_of(digests: Iterable[tuple[str, bytes]]) -> bytes:
    """One digest over shards: sha256 of the sorted (shard, digest) pairs."""
    whole = sha256()
    for shard, digest in sorted(digests):
        whole.update(len(shard).to_bytes(2, "big") + shard.encode() + digest)
    return whole.digest()


__all__ = [
    "Applied",
    "BadDelta",
    "Disproof",
    "Disproved",
    "Lattice",
    "Rejected",
    "RootMismatch",
    "digest_of",
]
