"""What one node tells another of its chains, and the deltas between what the two hold.

Everything here is said from the lattice as it is; who says what when is `antientropy`'s to decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Final

from crdt.chain import Chain, Disproved
from crdt.delta import Delta, Puts
from crdt.header import ChainId, Epoch
from crdt.lattice import Lattice
from mesh.core import wire
from mesh.core.vectors import ROOT_BYTES, VECTOR_MAX, Cursor, Held, Vector, tag_of

WINDOW: Final = 4
"""Chunks in flight: 1 MiB, above the bandwidth-delay product of 50 Mb/s over 150 ms."""
PART_STEP: Final = 64
"""Records that a piece grows by, but for its last ones."""
OFFER_BYTES_MAX: Final = WINDOW * wire.CHUNK_BYTES
"""Sent unasked to a peer whose heads show that it lacks it: what may be in flight anyway."""


def held(chain: Chain) -> Held:
    """What is told of a branch: what is signed, not what is being written."""
    header = chain.header
    assert header is not None
    return Held(header.epoch, header.hi, header.root[:ROOT_BYTES])


def vector_of(lattice: Lattice, ids: Iterator[ChainId] | list[ChainId]) -> Vector:
    """The heads of `ids`, in the order of their hashes."""
    vector = {
        id.short(): tuple(held(chain) for chain in lattice.branches(id) if chain.header)
        for id in ids
    }
    return dict(sorted(vector.items()))


def behind(mine: list[Chain], theirs: tuple[Held, ...]) -> bool:
    """Whether a peer that tells `theirs` holds something of the chain that is not held here."""
    return any(not _known(mine, branch) for branch in resolved(mine, theirs))


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


def resolved(mine: list[Chain], theirs: tuple[Held, ...]) -> tuple[Held, ...]:
    """`theirs` with the nonces that were left out, as far as epochs of those counters are known.

    A branch of the same counter and head as one here that is not that one is a clone's, and stays
    as it is: like an epoch that is not known.
    """
    if all(branch.epoch.nonce for branch in theirs):
        return theirs
    known: dict[int, Epoch] = {}
    for chain in mine:
        if chain.header is not None:
            for epoch in (*(cover.epoch for cover in chain.header.covers), chain.header.epoch):
                known[epoch.counter] = epoch
    own = {chain.header.epoch: held(chain) for chain in mine if chain.header is not None}
    found = []
    for branch in theirs:
        meant = known.get(branch.epoch.counter)
        if not branch.epoch.nonce and meant is not None:
            here = own.get(meant)
            if here is None or here.head != branch.head:
                branch = branch._replace(epoch=meant)
            elif tag_of(here) == branch.root:
                branch = here
        found.append(branch)
    return tuple(found)


def heads(lattice: Lattice, shard: str) -> Iterator[wire.Heads]:
    """The whole vector of a shard, in ranges of chain ids that fit a frame each."""
    vector = list(vector_of(lattice, lattice.chains(shard)).items())
    first = wire.FIRST
    for start in range(0, len(vector) or 1, VECTOR_MAX):
        piece = vector[start : start + VECTOR_MAX]
        whole = start + VECTOR_MAX >= len(vector)
        last = wire.LAST if whole else piece[-1][0]
        yield wire.Heads(shard, first, last, dict(piece))
        first = last


def offer(lattice: Lattice, vector: Vector, ids: list[ChainId]) -> Iterator[wire.Frame]:
    """Of `ids`, what who told `vector` lacks, up to a window of chunks; the heads of the rest."""
    deltas: list[tuple[Delta, int]] = []
    size_bytes = 0
    rest: list[ChainId] = []
    for id in ids:
        theirs = vector.get(id.short(), ())
        if size_bytes > OFFER_BYTES_MAX or _is_much(lattice.branches(id), theirs):
            rest.append(id)
            continue
        answer = [(delta, wire.size_of(delta)) for delta in answers(lattice.branches(id), theirs)]
        answer_bytes = sum(size for _, size in answer)
        if answer_bytes > wire.CHUNK_BYTES or size_bytes + answer_bytes > OFFER_BYTES_MAX:
            rest.append(id)
        else:
            deltas += answer
            size_bytes += answer_bytes
    for group in wire.chunks(deltas):
        yield wire.Deltas(tuple(group))
    yield from some_heads(vector_of(lattice, rest))


def _is_much(mine: list[Chain], theirs: tuple[Held, ...]) -> bool:
    """Whether more of the chain may be lacking than is offered, which is not put together then:
    of a hundred thousand records that takes 20 ms."""
    head = max((branch.head for branch in theirs), default=0)
    lacking = sum(min(len(chain.live), max(0, chain.head - head)) for chain in mine)
    return lacking > wire.CHUNK_BYTES // wire.PUT_BYTES_MIN


def some_heads(vector: Vector) -> Iterator[wire.Heads]:
    """The vector in frames that tell nothing of other chains."""
    pairs = list(vector.items())
    for start in range(0, len(pairs), VECTOR_MAX):
        piece = dict(pairs[start : start + VECTOR_MAX])
        yield wire.Heads("", wire.FIRST, wire.FIRST, piece)


def answers(
    mine: list[Chain], theirs: tuple[Held, ...], cursor: Cursor | None = None
) -> Iterator[Delta]:
    """The deltas that bring a holder of `theirs` to what is held here, oldest epoch first.

    One goes on from `cursor`, up to which the holder has staged the chain, if that is possible.
    """
    theirs = resolved(mine, theirs)
    for chain in reversed(mine):
        if chain.header is None:
            continue
        try:
            chain.prove()
        except Disproved:
            continue  # it is dropped when its turn to be proved comes
        own = held(chain)
        same = next((branch for branch in theirs if branch.epoch == own.epoch), None)
        if same is not None and (same.head, same.root) >= (own.head, own.root):
            continue
        if (
            cursor is not None
            and cursor.seq < own.head
            and cursor.seq <= chain.header.shared_head(cursor.epoch)
        ):
            yield chain.since(cursor.epoch, cursor.seq)
            cursor = None
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


class Serving:
    """The answer to one WANT of one peer, made chunk by chunk as credit comes."""

    def __init__(self, want: wire.Want, lattice: Lattice, shards: frozenset[str] | None) -> None:
        """`shards`: those that the peer may have; None: all."""
        self.want = want.id
        self.credit = WINDOW
        self._parts_made = 0
        self._shards = shards
        self._frames = self._make(lattice, want)

    def frames(self) -> Iterator[wire.Frame]:
        """The frames that the credit allows; the last ever is Done."""
        while self.credit > 0:
            self.credit -= 1
            frame = next(self._frames, None)
            if frame is None:
                return
            yield frame

    def _make(self, lattice: Lattice, want: wire.Want) -> Iterator[wire.Frame]:
        group: list[Delta] = []
        group_bytes = 0
        for short, theirs in want.vector.items():
            id = lattice.by_short(short)
            if id is None or (self._shards is not None and id.shard not in self._shards):
                continue
            cursor = want.staged.get(short)
            for delta in answers(lattice.branches(id), theirs, cursor):
                size_bytes = wire.size_of(delta)
                if group and group_bytes + size_bytes > wire.CHUNK_BYTES:
                    yield wire.Answer(self.want, tuple(group))
                    group, group_bytes = [], 0
                if size_bytes > wire.CHUNK_BYTES or (delta.base, delta.lo) == cursor:
                    yield from self._parts(delta)
                else:
                    group.append(delta)
                    group_bytes += size_bytes
        if group:
            yield wire.Answer(self.want, tuple(group))
        yield wire.Done(self.want)

    def _parts(self, delta: Delta) -> Iterator[wire.Frame]:
        """A large delta in pieces: the first one carries the deletes or the live-seq list, so that
        what has come of it is a prefix at any time."""
        puts: Puts = {}
        size_bytes = 0
        left = iter(delta.puts.items())
        while some := dict(islice(left, PART_STEP)):
            some_bytes = sum(map(len, (*some, *some.values()))) + wire.PAIR_BYTES * len(some)
            if size_bytes + some_bytes <= wire.CHUNK_BYTES:
                puts.update(some)
                size_bytes += some_bytes
                continue
            for key, entry in some.items():
                size_bytes += len(key) + len(entry) + wire.PAIR_BYTES
                if size_bytes > wire.CHUNK_BYTES:
                    yield self._part(replace(delta, puts=puts, payload=b""), True)
                    delta = replace(delta, deletes={}, keep=None)
                    puts, size_bytes = {}, len(key) + len(entry) + wire.PAIR_BYTES
                puts[key] = entry
        yield self._part(replace(delta, puts=puts, payload=b""), False)

    def _part(self, piece: Delta, more: bool) -> wire.Part:
        self._parts_made += 1
        return wire.Part(self.want, piece, more, self._parts_made - 1)
