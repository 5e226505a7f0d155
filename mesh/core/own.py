"""A node's own chains: writing them, opening epochs, taking up tails that a restore lost.

- A chain is opened, in a new epoch, by the first write to it after a start. The epoch's parent is
  the greatest branch known, which peers are asked for before (`Replica` waits up to 2 s for them).
- A branch of an earlier own epoch that is met later and goes beyond what this epoch covers is a
  tail that a restored disk had lost. It is written anew, except where this chain has written the
  key or this process has deleted it since, and the cover is raised. (Which keys an earlier process
  deleted is not on the disk: a tail that wrote such a key anew brings it back.)
- An own epoch that this one does not descend from is a clone at work: nothing is written any more,
  until that is found to be over (`clones`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from crdt.chain import Chain
from crdt.delta import Delta
from crdt.entry import record_of, seq_of
from crdt.header import COVERS_MAX, NONCE_BYTES, ChainId, Cover, Epoch, Sign
from crdt.lattice import Lattice
from mesh.core.effects import Persist
from mesh.core.ops import NodeId, Op, Put
from mesh.core.persisting import stored_header

PUTS_TOGETHER = 32
"""From which on it pays to look whether all are puts of one shard."""
DELETED_MAX: Final = 65_536
"""Beyond it a restored disk's tail may bring back a key that was deleted long before it arrived."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A flush of an own chain: what to persist, and the interval for peers."""

    persist: Persist
    delta: Delta


@dataclass(slots=True)
class _Open:
    """A chain that this process writes."""

    chain: Chain
    before: Epoch | None
    """the epoch under which it is stored until the next seal; None: it is not stored yet"""
    covers: tuple[Cover, ...]
    deleted: dict[bytes, None]
    """the last DELETED_MAX keys deleted since opening: a tail does not bring them back"""
    taken: dict[bytes, Epoch]
    """keys whose entry was taken up from the tail of that epoch, until they are written again"""


class OwnChains:
    """The chains of `node` in `lattice`, as their only writer."""

    def __init__(
        self,
        node: NodeId,
        mesh: bytes,
        lattice: Lattice,
        sign: Sign,
        nonce: Callable[[int], bytes],
    ) -> None:
        self.node = node
        self._mesh = mesh
        self._lattice = lattice
        self._sign = sign
        self._nonce = nonce
        self._open: dict[str, _Open] = {}
        self.dirty: set[str] = set()
        """shards with writes that are not signed yet"""
        self._touched: dict[str, set[bytes]] = {}
        self.cloned = False
        """Another process writes as this node: writes are refused from here on."""
        self._left: dict[str, tuple[Epoch, ...]] = {}
        """shards that were given up for it: the epochs that this process wrote and covered"""

    def take_touched(self) -> list[tuple[str, list[bytes]]]:
        """The keys by shard whose own record may have changed since the last call, sorted."""
        touched, self._touched = self._touched, {}
        return [(shard, sorted(keys)) for shard, keys in sorted(touched.items())]

    def _touch(self, shard: str, keys: Iterable[bytes]) -> None:
        self._touched.setdefault(shard, set()).update(keys)

    def write(self, op: Op) -> bool:
        """Apply `op` to the own chain of its shard; whether it changed anything."""
        shard, key = op.shard, op.key
        if not isinstance(op, Put) and self.record(shard, key) is None:
            return False
        own = self._opened(shard)
        if isinstance(op, Put):
            own.chain.put(key, op.record)
            own.deleted.pop(key, None)
            own.taken.pop(key, None)
        else:
            own.chain.delete(key)
            self._note_deleted(own, key)
        self.dirty.add(shard)
        self._touch(shard, (key,))
        return True

    def write_all(self, ops: Sequence[Op]) -> bool:
        """As `write` for each; whether any changed anything. Puts under many keys of one shard, as
        an import's, are taken together."""
        shards = {op.shard for op in ops}
        records = {op.key: op.record for op in ops if isinstance(op, Put)}
        if len(records) < PUTS_TOGETHER or len(records) < len(ops) or len(shards) > 1:
            wrote = [self.write(op) for op in ops]
            return any(wrote)
        (shard,) = shards
        own = self._opened(shard)
        own.chain.put_all(records)
        for noted in (own.deleted, own.taken):
            for key in noted.keys() & records.keys():
                del noted[key]
        self.dirty.add(shard)
        self._touch(shard, records)
        return True

    def record(self, shard: str, key: bytes) -> bytes | None:
        """The own record under `key`, unsealed writes included."""
        own = self._open.get(shard)
        if own is not None:
            entry = own.chain.live.get(key)
            return record_of(entry) if entry else None
        return self._lattice.record(ChainId(self.node, shard), key)

    def shards(self) -> list[str]:
        """The shards that this process has written to."""
        return list(self._open)

    def live(self, shard: str) -> Mapping[bytes, bytes] | None:
        """Own key → entry, unsealed writes included; None: it has not been written to."""
        own = self._open.get(shard)
        return own.chain.live if own else None

    def count(self, shard: str) -> int:
        """Own records in `shard`."""
        own = self._open.get(shard)
        if own is not None:
            return len(own.chain.live)
        latest = self._lattice.latest(ChainId(self.node, shard))
        return len(latest.live) if latest else 0

    def size_bytes(self, shard: str) -> int:
        """Bytes of own keys and entries in `shard`."""
        own = self._open.get(shard)
        chain = own.chain if own is not None else self._lattice.latest(ChainId(self.node, shard))
        return chain.size_bytes if chain is not None else 0

    def opened(self, shard: str) -> Epoch | None:
        """The epoch that this process writes in, once it has written to `shard`."""
        own = self._open.get(shard)
        return own.chain.epoch if own else None

    def sign_anew(self) -> None:
        """Have every own chain signed at the next `seal`, written to or not: the key is new."""
        for id in sorted(self._lattice.chains()):
            if id.node == self.node:
                own = self._opened(id.shard)
                if own.chain.header is None or own.chain.head == own.chain.header.hi:
                    own.chain.touch()
                self.dirty.add(id.shard)

    def seal(self) -> list[Sealed]:
        """Sign what was written since the last call, chain by chain."""
        sealed = []
        for shard in sorted(self.dirty):
            own = self._open[shard]
            chain = own.chain
            base_epoch = own.before or chain.epoch
            base_head = chain.header.hi if chain.header else 0
            deletes = chain.unsealed_deletes
            header = chain.seal(self._mesh, self._sign, own.covers)
            dropped = self._lattice.reseal(chain, base_epoch)
            delta = chain.since(base_epoch, base_head)
            persist = Persist(
                chain.id,
                chain.epoch,
                stored_header(header),
                delta.puts,
                deletes,
                relabel_from=own.before if own.before != chain.epoch else None,
                drop=dropped,
            )
            own.before = chain.epoch
            sealed.append(Sealed(persist, delta))
        self.dirty.clear()
        if self.cloned:
            self.give_up()
        return sealed

    def close(self) -> None:
        """Forget what was written and is not in the lattice: this node's chains are dropped."""
        for shard, own in self._open.items():
            self._touch(shard, own.chain.live)
        self._open.clear()
        self.dirty.clear()

    def release(self, shard: str) -> None:
        """Write the chain no more: another process has gone on from it."""
        self._open.pop(shard, None)
        self.dirty.discard(shard)

    def give_up(self) -> None:
        """Write nothing more. What another process has written as this node counts as well, so own
        chains are read as everybody reads them; those with unsigned writes once these are signed.
        """
        self.cloned = True
        for shard in self._open.keys() - self.dirty:
            self._touch(shard, self._lattice.keys(ChainId(self.node, shard)))
            own = self._open.pop(shard)
            self._left[shard] = (own.chain.epoch, *(cover.epoch for cover in own.covers))

    def go_on(self) -> None:
        """Write again, from all that there is, as a process that starts: nobody else does."""
        self.cloned = False
        self._left.clear()

    def _opened(self, shard: str) -> _Open:
        own = self._open.get(shard)
        if own is not None:
            return own
        id = ChainId(self.node, shard)
        branches = self._lattice.branches(id)
        if not branches:
            chain = Chain(id, Epoch(1, self._nonce(NONCE_BYTES)))
            own = self._open[shard] = _Open(chain, None, (), {}, {})
            return own
        chain = branches[0]
        before = chain.epoch
        covers = (*chain.covers, Cover(before, chain.head, chain.head))[-COVERS_MAX:]
        chain.open(Epoch(before.counter + 1, self._nonce(NONCE_BYTES)))
        chain.skip_to(max(branch.head for branch in branches))
        own = self._open[shard] = _Open(chain, before, covers, {}, {})
        for branch in branches[1:]:
            self._take_up(own, branch)
        self.dirty.add(shard)
        return own

    def meet(self, branch: Chain) -> bool:
        """A peer gave a branch of an own chain. False: it shows that a clone is at work."""
        shard = branch.id.shard
        own = self._open.get(shard)
        if own is None:
            return branch.epoch in self._left.get(shard, (branch.epoch,))
        if branch is own.chain or self.cloned:
            return True
        if all(cover.epoch != branch.epoch for cover in own.covers):
            return False
        self._take_up(own, branch)
        self.dirty.add(shard)
        return True

    @staticmethod
    def _note_deleted(own: _Open, key: bytes) -> None:
        own.taken.pop(key, None)
        own.deleted[key] = None
        if len(own.deleted) > DELETED_MAX:
            del own.deleted[next(iter(own.deleted))]

    def _take_up(self, own: _Open, branch: Chain) -> None:
        """Write the tail of `branch` anew and cover it.

        What lies beyond the common history is news of the tail, unless this chain has written the
        key beyond it, too: that came later, since the tail was lost by then.
        """
        chain = own.chain
        shared = _shared_head(own.covers, branch)
        known = next((c.head for c in own.covers if c.epoch == branch.epoch), shared)
        chain.skip_to(branch.head)
        for key, entry in list(branch.live.items()):
            seq = seq_of(entry)
            self._touch(chain.id.shard, (key,))
            held = chain.live.get(key)
            stands = held and seq_of(held) > shared and own.taken.get(key) != branch.epoch
            if seq > known and key not in own.deleted and not stands:
                chain.put(key, record_of(entry))
                own.taken[key] = branch.epoch
        lost = [
            key
            for key, entry in chain.live.items()
            if key not in branch.live
            and (seq_of(entry) <= shared or own.taken.get(key) == branch.epoch)
        ]
        for key in lost:
            chain.delete(key)
            own.taken.pop(key, None)
            self._touch(chain.id.shard, (key,))
        if chain.header is None or chain.head == chain.header.hi:
            chain.touch()  # nothing of the tail is new: the raised cover is what there is to sign
        raised = Cover(branch.epoch, branch.head, shared)
        others = tuple(cover for cover in own.covers if cover.epoch != branch.epoch)
        own.covers = tuple(sorted((*others, raised)))[-COVERS_MAX:]


def _shared_head(covers: tuple[Cover, ...], branch: Chain) -> int:
    """The head up to which a chain with these covers and `branch` are the same history."""
    for cover in covers:
        if cover.epoch == branch.epoch:
            return cover.shared
    ours = {cover.epoch: cover.shared for cover in covers}
    common = (min(ours[c.epoch], c.shared) for c in branch.covers if c.epoch in ours)
    return max(common, default=0)
