"""Answers that broke off: what has come of them is kept, and any peer that has the chain goes on.

A large answer comes in pieces, puts in the order of their seqs, with what it deletes in the first
one. So what has come is a prefix: all of the chain up to a **cursor**, the last seq that came. It
is continued by the ordinary delta since that cursor, in whatever newer state the next peer holds:
laid over what is staged, that makes what this peer would have sent in one go. It is verified as a
whole, against its author's root, before anything counts; who staged nonsense costs one retry.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from crdt import liveseq
from crdt.chain import Chain, bytes_of
from crdt.delta import BadDelta, Deletes, Delta, Puts, kept
from crdt.entry import SEQ_BYTES, seq_bytes, seq_of
from crdt.header import Epoch
from mesh.core.errors import PeerError
from mesh.core.ops import NodeId
from mesh.core.vectors import Held

STAGES_MAX = 64
"""Chains of which a part is kept while no peer is giving the rest."""
STAGED_RECORDS_MAX = 300_000
"""In all of them: two chains of the largest size that is usual; 50 MB."""
STAGED_BYTES_MAX = 128 << 20
"""Of their keys and entries, should they be larger than is usual."""
STAGE_NS = 300_000_000_000
"""After five minutes it is as well to begin anew: the memory is better used."""


@dataclass(slots=True)
class Stage:
    """A prefix of a chain in `epoch`, up to `cursor`, over a holder of `base` at `lo`.

    With `whole` it starts from nothing. `held` is what was held of the chain when it began.
    """

    base: Epoch
    lo: int
    whole: bool
    held: tuple[Held, ...]
    epoch: Epoch
    cursor: int
    puts: Puts = field(default_factory=dict)
    deletes: Deletes = field(default_factory=dict)
    keep: set[bytes] | None = None
    """packed seqs up to `cursor` that stand, where deletes are not known by their keys"""
    senders: set[NodeId] = field(default_factory=set)
    size_bytes: int = 0
    """of the keys and entries in `puts`"""

    @classmethod
    def of(cls, delta: Delta, held: tuple[Held, ...]) -> Stage:
        """From the first piece of an answer, its puts not added yet. Raises BadDelta."""
        whole = delta.lo == 0 and delta.keep is not None
        keep = None if whole else _seqs(delta)
        return cls(
            delta.base,
            delta.lo,
            whole,
            held,
            delta.header.epoch,
            delta.lo,
            deletes=dict(delta.deletes),
            keep=keep,
        )

    def goes_on(self, delta: Delta) -> bool:
        """Whether the first piece `delta` of an answer continues this."""
        return (delta.base, delta.lo) == (self.epoch, self.cursor)

    def go_on(self, delta: Delta) -> None:
        """Take what a later state has deleted of this. Raises BadDelta."""
        if (keep := _seqs(delta)) is not None:
            self.puts = {
                key: entry for key, entry in self.puts.items() if entry[:SEQ_BYTES] in keep
            }
            self.size_bytes = bytes_of(self.puts)
            self.keep, self.deletes = None if self.whole else keep, {}
        for key, seq in delta.deletes.items():
            if key in self.puts:
                self.size_bytes -= len(key) + len(self.puts.pop(key))
            self.deletes.pop(key, None)  # to the end: what was deleted up to the cursor is before
            if not self.whole:
                self.deletes[key] = seq
        self.epoch = delta.header.epoch

    def add(self, piece: Delta, sender: NodeId, records_max: int, bytes_max: int) -> None:
        """Add the puts of a piece. Raises PeerError or BadDelta."""
        piece.check_entries()
        self.senders.add(sender)
        puts = piece.puts
        if not puts:
            return
        if next(iter(puts.values())) < seq_bytes(self.cursor + 1):
            raise BadDelta("puts do not ascend from piece to piece")
        # To the end: they are in the order of their seqs. Where one is put twice in an answer it
        # has been gone on with; mostly that is none.
        for key in self.puts.keys() & puts.keys():
            self.size_bytes -= len(key) + len(self.puts.pop(key))
        self.puts.update(puts)
        self.size_bytes += bytes_of(puts)
        for key in self.deletes.keys() & puts.keys():
            del self.deletes[key]
        if max(len(self.puts), len(self.deletes)) > records_max:
            raise PeerError(f"answer of more than {records_max} records")
        if self.size_bytes > bytes_max:  # who has a chain that large was to refuse it, too
            raise PeerError(f"answer of more than {bytes_max} bytes of records")
        self.cursor = seq_of(next(reversed(puts.values())))

    def finished(self, last: Delta, base: Chain | None) -> Delta | None:
        """The delta that all pieces make; None when it would start from something else.

        Args:
            last: the last piece, for its header.
            base: the branch that is held of `self.base`, if any.
        """
        header = last.header
        if self.whole:
            return Delta(header, header.epoch, 0, self.puts, {}, b"")
        if self.lo > header.shared_head(self.base):
            return None
        if self.keep is None:
            return Delta(header, self.base, self.lo, self.puts, self.deletes)
        if base is None:
            return None
        gone = {base.live[key][:SEQ_BYTES] for key in self.deletes if key in base.live}
        mark = seq_bytes(self.lo)
        seqs = sorted(seq for seq in self.keep - gone if seq <= mark)
        return Delta(header, self.base, self.lo, self.puts, {}, liveseq.encode(map(seq_of, seqs)))


def _seqs(delta: Delta) -> set[bytes] | None:
    """The listed seqs that stand. Raises BadDelta."""
    if delta.keep is None:
        return None
    return kept(Delta(delta.header, delta.base, delta.lo, {}, {}, delta.keep))


class Stages:
    """What is staged of chains that no peer is being asked for, the oldest first.

    A stage is kept for whoever is asked next, or, with an owner, for that peer alone.
    """

    def __init__(self) -> None:
        self._stages: dict[tuple[bytes, NodeId | None], tuple[Stage, int]] = {}
        self._records = self._bytes = 0

    def __len__(self) -> int:
        return len(self._stages)

    def keep(self, short: bytes, owner: NodeId | None, stage: Stage, now_ns: int) -> None:
        self.take(short, owner, stage.held, now_ns)
        self._stages[short, owner] = (stage, now_ns)
        self._records += len(stage.puts)
        self._bytes += stage.size_bytes
        while (
            len(self._stages) > STAGES_MAX
            or self._records > STAGED_RECORDS_MAX
            or self._bytes > STAGED_BYTES_MAX
        ):
            self._drop(next(iter(self._stages)))

    def take(
        self, short: bytes, owner: NodeId | None, held: tuple[Held, ...], now_ns: int
    ) -> Stage | None:
        """The stage of a chain of which `held` is held, for who goes on with it."""
        self.expire(now_ns)
        if (short, owner) not in self._stages:
            return None
        stage = self._drop((short, owner))
        return stage if stage.held == held else None

    def expire(self, now_ns: int) -> None:
        while self._stages:
            key, (_, kept_ns) = next(iter(self._stages.items()))
            if now_ns < kept_ns + STAGE_NS:
                return
            self._drop(key)

    def _drop(self, key: tuple[bytes, NodeId | None]) -> Stage:
        stage, _ = self._stages.pop(key)
        self._records -= len(stage.puts)
        self._bytes -= stage.size_bytes
        return stage
