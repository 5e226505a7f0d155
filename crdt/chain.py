"""One chain: its live entries in seq order, the ring of recent deletes, its root.

- `live` keeps insertion order = seq order (a re-put moves the key to the end), so that what changed
  since a head is a walk from the end: no log and no index.
- Every mutation takes the next seq, a delete too.
- The ring is a cache: every key deleted after `floor` and not put again is in it. Below the floor a
  delta carries a live-seq list, so deletes leave nothing behind.
- `plan` verifies a delta against its signed root before anything is changed; `adopt` applies it
  whole. A chain that refused a delta is as it was.

Entries are `key -> (seq, record)`: tuples of an int and bytes, which the garbage collector drops
from its lists (166 B a record measured, against 858 B for objects).
"""

from __future__ import annotations

from collections import deque

from crdt import liveseq
from crdt.delta import BadDelta, Deletes, Delta, Puts, kept, payload_hash
from crdt.header import NO_ROOT, ChainId, Cover, Epoch, Header, Sign
from crdt.root import BucketOverflow, Entry, Plan, RootIndex, fitting_bits

RING_MAX = 4096
"""Deletes remembered a chain. A peer further behind gets a live-seq list: 1-2 B an entry."""


class RootMismatch(Exception):
    """The result of a delta is not what its author signed. The chain is as it was.

    Either the author signed two histories or the holder's or the relay's state is not the author's.
    """


class Planned:
    """A verified delta, ready to be adopted by the chain that planned it."""

    __slots__ = ("delta", "drops", "plan", "puts")

    def __init__(self, delta: Delta, puts: Puts, drops: tuple[bytes, ...], plan: Plan) -> None:
        self.delta = delta
        self.puts = puts
        self.drops = drops
        self.plan = plan


class Chain:
    """A chain in one epoch. `header` signs the entries, unless own writes are pending."""

    __slots__ = ("_pending", "epoch", "floor", "head", "header", "id", "index", "live", "ring")

    def __init__(self, id: ChainId, epoch: Epoch) -> None:
        self.id = id
        self.epoch = epoch
        self.head = 0
        self.floor = 0
        self.live: dict[bytes, Entry] = {}
        self.ring: deque[tuple[int, bytes]] = deque()
        self.index = RootIndex()
        self.header: Header | None = None
        self._pending: set[bytes] = set()

    @classmethod
    def restore(cls, header: Header, entries: Puts) -> Chain:
        """A chain from stored entries, ascending by seq. Raises RootMismatch."""
        chain = cls(header.chain, header.epoch)
        delta = Delta(header, header.epoch, 0, entries, (), b"")
        chain.adopt(chain.plan(delta))
        return chain

    @property
    def root(self) -> bytes:
        """The root at the last header; own writes that are not sealed yet are not in it."""
        return self.index.root

    @property
    def covers(self) -> tuple[Cover, ...]:
        return self.header.covers if self.header else ()

    def copy(self) -> Chain:
        twin = Chain(self.id, self.epoch)
        twin.head, twin.floor = self.head, self.floor
        twin.live, twin.ring = dict(self.live), deque(self.ring)
        twin.index, twin.header = self.index.copy(), self.header
        twin._pending = set(self._pending)
        return twin

    @property
    def unsealed_deletes(self) -> tuple[bytes, ...]:
        """The keys deleted since the last header and not put again."""
        return tuple(sorted(key for key in self._pending if key not in self.live))

    # ---- writing: only for the chain's own node ----

    def put(self, key: bytes, record: bytes) -> int:
        """Write `record` under `key`; the seq it took."""
        self.head += 1
        self.live.pop(key, None)  # to the end: insertion order is seq order
        self.live[key] = (self.head, record)
        self._pending.add(key)
        return self.head

    def delete(self, key: bytes) -> int | None:
        """Delete `key`; the seq it took, or None when there is nothing under it."""
        if self.live.pop(key, None) is None:
            return None
        self.head += 1
        self._remember(self.head, key)
        self._pending.add(key)
        return self.head

    def touch(self) -> int:
        """Take a seq without a change of entries: what a header says changed (its covers)."""
        self.head += 1
        return self.head

    def skip_to(self, head: int) -> None:
        """Take no seq at or below `head`: another epoch of this chain has used them."""
        self.head = max(self.head, head)

    def seal(self, mesh: bytes, sign: Sign, covers: tuple[Cover, ...]) -> Header:
        """Sign everything written since the last header. Needs a head beyond it.

        Raises BucketOverflow.
        """
        last = self.header if self.header and self.header.epoch == self.epoch else None
        since = self.header.hi if self.header else 0
        puts, deletes = self._puts_since(since), self._deletes_since(since)
        written = {key: self.live[key] for key in self._pending if key in self.live}
        bits = fitting_bits(len(self.live), self.index.bits)
        plan = self.index.plan(self.live, written, self.unsealed_deletes, bits)
        header = Header(
            self.id,
            self.epoch,
            last.hi if last else 0,
            self.head,
            plan.entries,
            plan.bits,
            last.root if last else NO_ROOT,
            payload_hash(puts, deletes),
            plan.root,
            covers,
        ).signed(mesh, sign)
        self.index.adopt(plan)
        self.header = header
        self._pending.clear()
        return header

    def open(self, epoch: Epoch) -> None:
        """Go on in a new epoch of this writer; the next `seal` signs all entries anew."""
        self.epoch = epoch

    # ---- reading for others ----

    def since(self, base: Epoch, head: int) -> Delta:
        """What a holder of `base` at `head` lacks. Needs a sealed chain.

        The caller has checked that `base` shares its history with this chain up to `head`.
        """
        assert self.header is not None and not self._pending
        if head >= self.floor:
            return Delta(self.header, base, head, self._puts_since(head), self._deletes_since(head))
        keep = liveseq.encode(seq for seq, _ in self.live.values() if seq <= head)
        return Delta(self.header, base, head, self._puts_since(head), (), keep)

    def snapshot(self) -> Delta:
        """The whole chain, for a holder of nothing or of something else."""
        assert self.header is not None and not self._pending
        return Delta(self.header, self.epoch, 0, self._puts_since(0), (), b"")

    # ---- taking what others send ----

    def plan(self, delta: Delta) -> Planned:
        """Verify that `delta` brings this chain to what its author signed. Changes nothing.

        The caller has checked the signature, and that `lo <= head`. Raises BadDelta, RootMismatch.
        """
        header = delta.header
        if (
            delta.verbatim
            and delta.lo == self.head
            and header.prev_root not in (NO_ROOT, self.root)
        ):
            raise RootMismatch("prev_root")  # a cheap refusal before any hashing of entries
        puts = delta.puts
        if puts and puts[0][1] <= self.head:  # they ascend
            puts = tuple(put for put in puts if put[1] > self.head)
        written = {key: (seq, record) for key, seq, record in puts}
        if len(written) != len(puts):
            raise BadDelta("a key is put twice")
        keep = kept(delta)
        if keep is None:
            drops = tuple(
                key
                for seq, key in delta.deletes
                if seq > self.head and key in self.live and key not in written
            )
        else:
            drops = tuple(
                key for key, (seq, _) in self.live.items() if seq not in keep and key not in written
            )
        try:
            plan = self.index.plan(self.live, written, drops, header.bits)
        except BucketOverflow as error:
            raise BadDelta(str(error)) from None
        if plan.root != header.root or plan.entries != header.count:
            raise RootMismatch("root")
        return Planned(delta, puts, drops, plan)

    def adopt(self, planned: Planned) -> None:
        """Apply a plan made by this chain since its last change."""
        delta = planned.delta
        for key in planned.drops:
            del self.live[key]
        for key, seq, record in planned.puts:
            self.live.pop(key, None)
            self.live[key] = (seq, record)
        self.index.adopt(planned.plan)
        if delta.keep is None:
            for seq, key in delta.deletes:
                if seq > self.head:
                    self._remember(seq, key)
        else:
            # Deletes up to here came as a list of what stands: this ring knows none of them.
            self.ring.clear()
            self.floor = delta.header.hi
        self.header = delta.header
        self.epoch = delta.header.epoch
        self.head = delta.header.hi

    # ---- inner ----

    def _remember(self, seq: int, key: bytes) -> None:
        self.ring.append((seq, key))
        if len(self.ring) > RING_MAX:
            self.floor = self.ring.popleft()[0]

    def _puts_since(self, head: int) -> Puts:
        puts: list[tuple[bytes, int, bytes]] = []
        for key, (seq, record) in reversed(self.live.items()):
            if seq <= head:
                break
            puts.append((key, seq, record))
        puts.reverse()
        return tuple(puts)

    def _deletes_since(self, head: int) -> Deletes:
        seen: set[bytes] = set()
        deletes: list[tuple[int, bytes]] = []
        for seq, key in reversed(self.ring):
            if seq <= head:
                break
            if key not in self.live and key not in seen:
                seen.add(key)
                deletes.append((seq, key))
        deletes.reverse()
        return tuple(deletes)
