"""Anti-entropy between two nodes: what each holds, what each lacks, and flow control.

A node that learns from a peer's heads that it is behind asks with WANT, naming what it holds; the
peer answers with DELTAS and PARTs, `WINDOW` chunks ahead and one more for each MORE, then DONE. So
the receiver sets the pace, and a big answer never queues up in the sender. An answer freezes the
interval it began with; nothing is applied before the last part is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from crdt.chain import Chain
from crdt.delta import Delta, Puts
from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core import wire
from mesh.core.errors import PeerError
from mesh.core.wire import Held, Vector

WINDOW = 4
"""Chunks in flight: 1 MiB, above the bandwidth-delay product of 50 Mb/s over 150 ms."""
AGAIN_NS = 1_000_000_000
"""After an answer brought news, the other peers are asked this soon: it may be news to them."""
WANT_CHAINS_MAX = 256
WANT_TIMEOUT_NS = 10_000_000_000
FETCH_QUEUE_MAX = 100_000
"""Chains waiting to be asked for from one peer; the next exchange finds what is left out."""


def held(chain: Chain) -> Held:
    """What is told of a branch: what is signed, not what is being written."""
    header = chain.header
    assert header is not None
    return Held(header.epoch, header.hi, header.root[: wire.ROOT_BYTES])


def vector_of(lattice: Lattice, ids: Iterator[ChainId] | list[ChainId]) -> Vector:
    """The heads of `ids`, in the order of their hashes."""
    vector = {
        id.short(): tuple(held(chain) for chain in lattice.branches(id) if chain.header)
        for id in ids
    }
    return dict(sorted(vector.items()))


def behind(mine: list[Chain], theirs: tuple[Held, ...]) -> bool:
    """Whether a peer that tells `theirs` holds something of the chain that is not held here."""
    return any(not _known(mine, branch) for branch in theirs)


def _known(mine: list[Chain], branch: Held) -> bool:
    for chain in mine:
        if chain.header is None:
            continue
        own = held(chain)
        if own.epoch == branch.epoch:
            return (own.head, own.root) >= (branch.head, branch.root)
        if chain.header.covers_head(branch.epoch, branch.head):
            return True
    return False


def heads(lattice: Lattice, shard: str) -> Iterator[wire.Heads]:
    """The whole vector of a shard, in ranges of chain ids that fit a frame each."""
    vector = list(vector_of(lattice, lattice.chains(shard)).items())
    first = wire.FIRST
    for start in range(0, len(vector) or 1, wire.VECTOR_MAX):
        piece = vector[start : start + wire.VECTOR_MAX]
        whole = start + wire.VECTOR_MAX >= len(vector)
        last = wire.LAST if whole else piece[-1][0]
        yield wire.Heads(shard, first, last, dict(piece))
        first = last


def offer(lattice: Lattice, frame: wire.Heads, ids: list[ChainId]) -> Iterator[wire.Frame]:
    """Of `ids`, what the sender of `frame` lacks while it fits a chunk; the heads of the rest."""
    deltas: list[Delta] = []
    size_bytes = 0
    rest: list[ChainId] = []
    for id in ids:
        theirs = frame.vector.get(id.short(), ())
        if size_bytes > wire.CHUNK_BYTES:
            rest.append(id)
            continue
        answer = list(answers(lattice.branches(id), theirs))
        answer_bytes = sum(map(wire.size_of, answer))
        if size_bytes + answer_bytes > wire.CHUNK_BYTES:
            rest.append(id)
        else:
            deltas += answer
            size_bytes += answer_bytes
    if deltas:
        yield wire.Deltas(tuple(deltas))
    for start in range(0, len(rest), wire.VECTOR_MAX):
        vector = vector_of(lattice, rest[start : start + wire.VECTOR_MAX])
        yield wire.Heads(frame.shard, wire.FIRST, wire.FIRST, vector)


def answers(mine: list[Chain], theirs: tuple[Held, ...]) -> Iterator[Delta]:
    """The deltas that bring a holder of `theirs` to what is held here, oldest epoch first."""
    for chain in reversed(mine):
        if chain.header is None:
            continue
        own = held(chain)
        same = next((branch for branch in theirs if branch.epoch == own.epoch), None)
        if same is not None and (same.head, same.root) >= (own.head, own.root):
            continue
        usable = [
            branch
            for branch in theirs
            if branch.head <= chain.header.shared_head(branch.epoch)
            and (branch.epoch, branch.head) != (own.epoch, own.head)
        ]
        if usable:
            base = max(usable, key=lambda branch: branch.head)
            yield chain.since(base.epoch, base.head)
        else:
            yield chain.snapshot()


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


@dataclass(slots=True)
class Peer:
    """What is known of a linked peer."""

    sync_at_ns: int
    period_ns: int = AGAIN_NS
    """doubles up to the replica's period: a new link is found equal, or not, soon"""
    fetch: Fetch = field(default_factory=Fetch)
    serving: Serving | None = None
    told: bool = False
    """whether it has told all that it holds since the link came up"""
    in_sync_ns: int | None = None
    """when its digests last were equal to ours"""
    cut_at_ns: int | None = None
    """when the link is cut, since the node was retired"""


class Serving:
    """The answer to one WANT of one peer, made chunk by chunk as credit comes."""

    def __init__(self, want: int, lattice: Lattice, vector: Vector) -> None:
        self.want = want
        self.credit = WINDOW
        self._parts_made = 0
        self._frames = self._make(lattice, vector)

    def frames(self) -> Iterator[wire.Frame]:
        """The frames that the credit allows; the last ever is Done."""
        while self.credit > 0:
            self.credit -= 1
            frame = next(self._frames, None)
            if frame is None:
                return
            yield frame

    def _make(self, lattice: Lattice, vector: Vector) -> Iterator[wire.Frame]:
        group: list[Delta] = []
        group_bytes = 0
        for short, theirs in vector.items():
            id = lattice.by_short(short)
            if id is None:
                continue
            for delta in answers(lattice.branches(id), theirs):
                size_bytes = wire.size_of(delta)
                if group and group_bytes + size_bytes > wire.CHUNK_BYTES:
                    yield wire.Deltas(tuple(group))
                    group, group_bytes = [], 0
                if size_bytes > wire.CHUNK_BYTES:
                    yield from self._parts(delta)
                else:
                    group.append(delta)
                    group_bytes += size_bytes
        if group:
            yield wire.Deltas(tuple(group))
        yield wire.Done(self.want)

    def _parts(self, delta: Delta) -> Iterator[wire.Frame]:
        """A large delta in pieces: the last one carries the deletes or the live-seq list."""
        puts: Puts = {}
        size_bytes = 0
        for key, entry in delta.puts.items():
            size_bytes += len(key) + len(entry) + wire.PAIR_BYTES
            if size_bytes > wire.CHUNK_BYTES:
                yield self._part(
                    replace(delta, puts=puts, deletes={}, keep=None, payload=b""), True
                )
                puts, size_bytes = {}, 0
            puts[key] = entry
        yield self._part(replace(delta, puts=puts, payload=b""), False)

    def _part(self, piece: Delta, more: bool) -> wire.Part:
        self._parts_made += 1
        return wire.Part(self.want, piece, more, self._parts_made - 1)
