"""One chain: its live entries in seq order, the ring of recent deletes, its root.

- `live` keeps insertion order = seq order (a re-put moves the key to the end), so that what changed
  since a head is a walk from the end: no log and no index.
- Every mutation takes the next seq, a delete too.
- The ring is a cache: every key deleted after `floor` and not put again is in it. Below the floor a
  delta carries a live-seq list, so deletes leave nothing behind.
- A verbatim flush onto the head is taken on its author's word (`extend`): the signature, the root
  that it starts from and its payload's hash hold. The root that it ends at is recomputed lazily:
  `prove` does, before anything else is made of the chain.
- Any other delta is verified against its signed root before anything is changed (`plan`), and
  applied whole (`adopt`). A chain that refused a delta is as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from hashlib import sha256
from itertools import islice, takewhile

from crdt import entry, liveseq
from crdt.delta import BadDelta, Deletes, Delta, Puts, kept, pack_payload
from crdt.entry import SEQ_BYTES, Entry, seq_bytes, seq_bytes_of
from crdt.header import NO_ROOT, ChainId, Cover, Epoch, Header, Sign
from crdt.root import BucketOverflow, Plan, RootIndex, fitting_bits

RING_MAX = 4096
"""Deletes remembered a chain. A peer further behind gets a live-seq list: 1-2 B an entry."""


class RootMismatch(Exception):
    """The result of a delta is not what its author signed. The chain is as it was.

    Either the author signed two histories or the holder's or the relay's state is not the author's.
    """


class Oversize(Exception):
    """The chain would hold more bytes than it may. It is as it was."""


class Disproved(Exception):
    """The author signed a root that its own flushes do not lead to: the chain is of no use."""


class Planned:
    """A verified delta, ready to be adopted by the chain that planned it."""

    __slots__ = ("delta", "drops", "plan", "puts", "puts_bytes")

    def __init__(self, delta: Delta, puts: Puts, drops: tuple[bytes, ...], plan: Plan) -> None:
        self.delta = delta
        self.puts = puts
        self.puts_bytes = bytes_of(puts)
        self.drops = drops
        self.plan = plan


class Chain:
    """A chain in one epoch. `header` signs the entries, unless own writes are pending."""

    __slots__ = (
        "_pending",
        "epoch",
        "floor",
        "head",
        "header",
        "id",
        "index",
        "live",
        "ring",
        "short",
        "size_bytes",
    )

    def __init__(self, id: ChainId, epoch: Epoch) -> None:
        self.id = id
        self.short = id.short()
        self.epoch = epoch
        self.head = 0
        self.floor = 0
        self.live: dict[bytes, Entry] = {}
        self.size_bytes = 0
        """of all live keys and entries"""
        self.ring: deque[bytes] = deque()
        """seq (packed) + key of the last deletes"""
        self.index = RootIndex()
        self.header: Header | None = None
        self._pending: set[bytes] = set()
        """keys that changed since the index was brought up to `live`"""

    @classmethod
    def restore(cls, header: Header, entries: Puts) -> Chain:
        """A chain from stored entries, ascending by seq. Raises RootMismatch or BadDelta."""
        chain = cls(header.chain, header.epoch)
        delta = Delta(header, header.epoch, 0, entries, {}, b"")
        chain.adopt(chain.plan(delta))
        return chain

    @property
    def root(self) -> bytes:
        """The root at the last header; own writes that are not sealed yet are not in it."""
        return self.header.root if self.header else self.index.root

    @property
    def covers(self) -> tuple[Cover, ...]:
        return self.header.covers if self.header else ()

    def copy(self) -> Chain:
        twin = Chain(self.id, self.epoch)
        twin.head, twin.floor = self.head, self.floor
        twin.live, twin.ring = dict(self.live), deque(self.ring)
        twin.size_bytes = self.size_bytes
        twin.index, twin.header = self.index.copy(), self.header
        twin._pending = set(self._pending)
        return twin

    @property
    def unsealed_deletes(self) -> tuple[bytes, ...]:
        """The keys deleted since the last header and not put again."""
        return tuple(sorted(self._gone(self._pending)))

    # ---- writing: only for the chain's own node ----

    def put(self, key: bytes, record: bytes) -> int:
        """Write `record` under `key`; the seq it took."""
        self.head += 1
        if key in self.live:
            self._remove((key,))  # to the end: insertion order is seq order
        self.live[key] = entry.pack(self.head, record)
        self.size_bytes += len(key) + SEQ_BYTES + len(record)
        self._pending.add(key)
        return self.head

    def put_all(self, records: Mapping[bytes, bytes]) -> None:
        """As `put` for each, in their order."""
        live, head = self.live, self.head
        self._remove(live.keys() & records.keys())  # to the end: insertion order is seq order
        self.size_bytes += SEQ_BYTES * len(records) + bytes_of(records)
        for key, record in records.items():
            head += 1
            live[key] = head.to_bytes(SEQ_BYTES, "big") + record
        self.head = head
        self._pending.update(records)

    def delete(self, key: bytes) -> int | None:
        """Delete `key`; the seq it took, or None when there is nothing under it."""
        if key not in self.live:
            return None
        self._remove((key,))
        self.head += 1
        self._remember(seq_bytes(self.head), key)
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
        payload = pack_payload(self._puts_since(since), self._deletes_since(since))
        plan = self._replan(fitting_bits(len(self.live), self.index.bits), self._pending)
        header = Header(
            self.id,
            self.epoch,
            last.hi if last else 0,
            self.head,
            plan.entries,
            plan.bits,
            last.root if last else NO_ROOT,
            sha256(payload).digest(),
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
        """What a holder of `base` at `head` lacks. Needs a sealed and proved chain.

        The caller has checked that `base` shares its history with this chain up to `head`.
        """
        assert self.header is not None and not self._pending
        if head >= self.floor:
            return Delta(self.header, base, head, self._puts_since(head), self._deletes_since(head))
        keep = liveseq.encode(self._seqs_to(head))
        return Delta(self.header, base, head, self._puts_since(head), {}, keep)

    def snapshot(self) -> Delta:
        """The whole chain, for a holder of nothing or of something else."""
        assert self.header is not None and not self._pending
        return Delta(self.header, self.epoch, 0, dict(self.live), {}, b"")

    # ---- taking what others send ----

    def continues(self, delta: Delta) -> bool:
        """Whether `delta` is its author's next flush on just this state, and can be extended by."""
        header = self.header
        if not delta.verbatim or delta.lo != self.head:
            return False
        if header is None:
            return delta.header.prev_root == NO_ROOT
        return header.epoch == delta.header.epoch and header.root == delta.header.prev_root

    def extend(self, delta: Delta) -> tuple[bytes, ...] | None:
        """Apply a checked flush that `continues` the chain; the keys that it removed.

        None, and nothing has changed, when its entries are not as many as its author signed: then
        `plan` says what is wrong with it.
        """
        live, puts, deletes = self.live, delta.puts, delta.deletes
        again = live.keys() & puts.keys()
        drops = tuple(key for key in deletes if key in live) if deletes else ()
        if len(live) + len(puts) - len(again) - len(drops) != delta.header.entries:
            return None
        self._remove(again)  # to the end: insertion order is seq order
        live.update(puts)
        self.size_bytes += bytes_of(puts)
        self._remove(drops)
        for key, seq in deletes.items():
            self._remember(seq, key)
        self._pending.update(puts, drops)
        self._follow(delta.header)
        return drops

    @property
    def unproved(self) -> int:
        """How many keys changed since the root was recomputed."""
        return len(self._pending)

    def prove(self, keys_max: int | None = None) -> int:
        """Recompute the root that `extend` took on its author's word; how many keys that took.

        With `keys_max` it is done in steps: it holds once `unproved` is 0. Raises Disproved.
        """
        header, pending = self.header, self._pending
        if not pending or header is None or header.hi != self.head:
            return 0  # own writes on top: sealing them recomputes the root
        part = pending
        if keys_max is not None and len(pending) > keys_max and header.bits == self.index.bits:
            part = set(islice(pending, keys_max))
            for bucket in self.index.buckets_of(part):
                part |= pending.intersection(bucket)  # some of them may be gone
        try:
            plan = self._replan(header.bits, part)
        except BucketOverflow as error:
            raise Disproved(str(error)) from None
        done = len(part)
        if done == len(pending) and plan.root != header.root:
            raise Disproved("root")
        self.index.adopt(plan)
        pending -= part
        return done

    def plan(self, delta: Delta, made: Plan | None = None) -> Planned:
        """Verify that `delta` brings this chain to what its author signed. Changes nothing.

        Needs a proved chain. The caller has checked the signature, and that `lo <= head`. `made`
        is, for an empty chain, the index of the delta's puts. Raises BadDelta, RootMismatch.
        """
        assert not self._pending
        header = delta.header
        if made is not None and not self.live:
            return _planned(delta, delta.puts, (), made)
        if (
            delta.verbatim
            and delta.lo == self.head
            and header.prev_root
            not in (
                NO_ROOT,
                self.root,
            )
        ):
            raise RootMismatch("prev_root")  # a cheap refusal before any hashing of entries
        puts = delta.puts
        mark = seq_bytes(self.head + 1)
        if puts and next(iter(puts.values())) < mark:  # they ascend
            puts = {key: entry for key, entry in puts.items() if entry >= mark}
        keep = kept(delta) if self.live or delta.keep else None
        if keep is None:
            drops = tuple(
                key
                for key, seq in delta.deletes.items()
                if seq >= mark and key in self.live and key not in puts
            )
        else:
            drops = tuple(
                key
                for key, entry in self.live.items()
                if entry[:SEQ_BYTES] not in keep and key not in puts
            )
        try:
            plan = self.index.plan(self.live, puts, drops, header.bits)
        except BucketOverflow as error:
            raise BadDelta(str(error)) from None
        return _planned(delta, puts, drops, plan)

    def size_after(self, planned: Planned) -> int:
        """The bytes that the chain would hold."""
        live = self.live
        gone = (*planned.drops, *(live.keys() & planned.puts.keys()))
        return self.size_bytes + planned.puts_bytes - sum(len(k) + len(live[k]) for k in gone)

    def adopt(self, planned: Planned) -> None:
        """Apply a plan made by this chain since its last change."""
        delta, live = planned.delta, self.live
        self._remove(planned.drops)
        if live:
            self._remove(live.keys() & planned.puts.keys())
            live.update(planned.puts)
        else:
            self.live = dict(planned.puts)  # a copy in one go: a quarter of the time
        self.size_bytes += planned.puts_bytes
        self.index.adopt(planned.plan)
        if delta.keep is None:
            mark = seq_bytes(self.head + 1)
            for key, seq in delta.deletes.items():
                if seq >= mark:
                    self._remember(seq, key)
        else:
            # Deletes up to here came as a list of what stands: this ring knows none of them.
            self.ring.clear()
            self.floor = delta.header.hi
        self._follow(delta.header)

    # ---- inner ----

    def _remove(self, keys: Iterable[bytes]) -> None:
        """Of live keys."""
        live = self.live
        for key in keys:
            self.size_bytes -= len(key) + len(live.pop(key))

    def _follow(self, header: Header) -> None:
        self.header = header
        self.epoch = header.epoch
        self.head = header.hi

    def _replan(self, bits: int, changed: set[bytes]) -> Plan:
        """The index of what is live now, after these keys changed."""
        gone = self._gone(changed)
        return self.index.plan(self.live, changed - gone, gone, bits)

    def _gone(self, changed: set[bytes]) -> set[bytes]:
        """Those of the keys that are not live. (A set less a dict's keys goes through all keys of
        the dict: 4 ms for each flush of a chain of a hundred thousand.)"""
        live = self.live
        return {key for key in changed if key not in live}

    def _remember(self, seq: bytes, key: bytes) -> None:
        self.ring.append(seq + key)
        if len(self.ring) > RING_MAX:
            self.floor = entry.seq_of(self.ring.popleft())

    def _seqs_to(self, head: int) -> list[int]:
        """The seqs at or below `head` that stand, ascending."""
        mark = seq_bytes(head + 1)
        return [entry.seq_of(e) for e in takewhile(mark.__gt__, self.live.values())]

    def _puts_since(self, head: int) -> Puts:
        mark = seq_bytes(head + 1)
        if head == 0:
            return dict(self.live)
        puts: list[tuple[bytes, Entry]] = []
        for pair in reversed(self.live.items()):
            if pair[1] < mark:
                break
            puts.append(pair)
        puts.reverse()
        return dict(puts)

    def _deletes_since(self, head: int) -> Deletes:
        mark = seq_bytes(head + 1)
        deletes: dict[bytes, Entry] = {}
        for dot in reversed(self.ring):
            if dot < mark:
                break
            key = dot[SEQ_BYTES:]
            if key not in self.live:
                deletes.setdefault(key, seq_bytes_of(dot))
        return dict(reversed(deletes.items()))


def bytes_of(entries: Mapping[bytes, bytes]) -> int:
    """Of keys and values."""
    return sum(map(len, entries)) + sum(map(len, entries.values()))


def _planned(delta: Delta, puts: Puts, drops: tuple[bytes, ...], plan: Plan) -> Planned:
    """Raises RootMismatch."""
    if plan.root != delta.header.root or plan.entries != delta.header.entries:
        raise RootMismatch("root")
    return Planned(delta, puts, drops, plan)
