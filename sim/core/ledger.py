"""What owners wrote, as their users know it: once it is on the owner's disk it is not lost, and
what was deleted does not come back, unless a disk was lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from crdt.header import ChainId, Epoch, Header
from crdt.lattice import Lattice
from mesh.core.effects import Persist, Rewrite, Stored
from mesh.core.ops import NodeId, Op, Put
from sim.core.checkers import chain_text, load_header
from sim.core.disk import Disk

Place = tuple[NodeId, str, bytes]
"""(owner, shard, key)"""


@dataclass(slots=True)
class _Fact:
    """The last write of an owner to a key that its disk has taken."""

    record: bytes | None
    chain: ChainId
    epoch: Epoch
    head: int
    unmet: tuple[tuple[Epoch, int], ...] = ()
    """earlier writes to the key that the owner had lost with its disk, and not met again"""
    certain: bool = True
    """False: a disk was lost, and nobody else's had it"""


class Ledger:
    """What owners wrote, as their users know it: written means on the owner's disk."""

    def __init__(self) -> None:
        self._facts: dict[Place, _Fact] = {}
        self._taken: dict[int, list[Op]] = {}
        """in memory"""
        self._leaving: dict[int, list[Op]] = {}
        """in the batch that the store is busy with"""
        self._distrusted: set[NodeId] = set()
        self._parted: set[NodeId] = set()
        self._contested: set[NodeId] = set()
        """owners whose running process has met another history of itself"""

    def wrote(self, node: int, ops: Sequence[Op]) -> None:
        self._taken.setdefault(node, []).extend(ops)

    def drained(self, node: int) -> None:
        if node in self._taken:
            self._leaving.setdefault(node, []).extend(self._taken.pop(node))

    def stored(self, node: int, owner: NodeId, batch: Iterable[Stored]) -> None:
        ops = self._leaving.pop(node, ())
        if not ops:
            return
        headers: dict[str, Header] = {}
        for branch in _branches_in(batch):
            header = load_header(branch.header)
            known = headers.get(header.chain.shard)
            if header.chain.node == owner and (known is None or header.epoch > known.epoch):
                headers[header.chain.shard] = header
        for op in ops:
            if op.shard not in headers:
                continue  # deleted what was not there
            header = headers[op.shard]
            record = op.record if isinstance(op, Put) else None
            place = (owner, op.shard, op.key)
            former = self._facts.get(place)
            unmet = (*former.unmet, (former.epoch, former.head)) if former else ()
            self._facts[place] = _Fact(
                record,
                header.chain,
                header.epoch,
                header.hi,
                tuple(position for position in unmet if not _includes([header], *position)),
                owner not in self._contested,
            )

    def stopped(self, node: int, owner: NodeId, store_failed: bool) -> None:
        """What the disk does not have was never acknowledged, and did not happen: unless the store
        failed meanwhile, when it may have been told to peers who compared what they hold."""
        ops = [*self._taken.pop(node, ()), *self._leaving.pop(node, ())]
        for op in ops if store_failed else ():
            fact = self._facts.get((owner, op.shard, op.key))
            if fact is not None:
                fact.certain = False

    def disk_lost(self, owner: NodeId, disk: Disk, disks: Sequence[Disk]) -> None:
        """The owner's disk was replaced by `disk`, an older copy.

        What no disk has now may be lost. So may be what belongs to another history than the copy:
        the owner had gone on from a disk without the copy's, and neither covers the other.
        """
        held, restored = _headers(disks), _headers([disk])
        for (node, _, _), fact in self._facts.items():
            with_it = [
                header
                for header in held.get(fact.chain, ())
                if _includes([header], fact.epoch, fact.head)
            ]
            if not with_it:
                fact.certain = False
            elif node == owner:
                for copy in restored.get(fact.chain, ()):
                    known = _includes([copy], fact.epoch, fact.head)
                    if not known and not any(_shares(header, copy) for header in with_it):
                        fact.certain = False

    def disk_gone(self, disks: Sequence[Disk]) -> None:
        """A node went for good; `disks`: of those that stay. What only it had is lost."""
        held = _headers(disks)
        for fact in self._facts.values():
            if not _includes(held.get(fact.chain, ()), fact.epoch, fact.head):
                fact.certain = False

    def started(self, owner: NodeId, disk: Disk) -> None:
        """An owner starts. What it wrote over a tail that it has not met stands only as long as
        the process that wrote it: which keys it deleted is not on its disk."""
        self._contested.discard(owner)
        unmet = [f for (node, _, _), f in self._facts.items() if node == owner and f.unmet]
        if not unmet:
            return
        held = _headers([disk])
        for fact in unmet:
            found = held.get(fact.chain, ())
            if not all(_includes(found, *position) for position in fact.unmet):
                fact.certain = False

    def rotated(self, owner: NodeId, disk: Disk) -> None:
        """The owner has a new key. What its old one has signed counts as far as the owner has it:
        a tail that it had lost with an earlier disk, and not met again, is nobody's any more."""
        held = _headers([disk])
        for (node, _, _), fact in self._facts.items():
            if node == owner and not _includes(held.get(fact.chain, ()), fact.epoch, fact.head):
                fact.certain = False

    def distrust(self, owner: NodeId) -> None:
        """Of this node's writes, earlier and later ones, none is promised any more."""
        self._distrusted.add(owner)

    def parted(self, owner: NodeId) -> None:
        """The owner and its disk are gone: of its writes only what others had then counts."""
        self._parted.add(owner)

    def cloned(self, owner: NodeId) -> None:
        """The owner went on from an old disk without knowing of its later epochs: two histories, of
        which people have to say what counts. It says so of the first shard in which it sees that,
        and what is on its way to its disk is part of it."""
        self._contested.add(owner)
        for (node, _, _), fact in self._facts.items():
            if node == owner:
                fact.certain = False

    def compare(
        self, lattices: Iterable[tuple[str, Lattice, Callable[[NodeId, str], bool]]]
    ) -> tuple[list[str], list[str]]:
        """(lost, resurrected): each key once, in words. Each lattice with its node's name, and of
        whom it is to have what he has written in a shard."""
        lost: dict[Place, str] = {}
        resurrected: dict[Place, str] = {}
        for name, lattice, has in lattices:
            for place, fact in self._facts.items():
                if not fact.certain or place[0] in self._distrusted or not has(*place[:2]):
                    continue
                if place[0] in self._parted and not _includes(
                    (branch.header for branch in lattice.branches(fact.chain) if branch.header),
                    fact.epoch,
                    fact.head,
                ):
                    continue
                record = lattice.record(fact.chain, place[2])
                if record == fact.record:
                    continue
                words = f"{chain_text(fact.chain)} key {place[2].hex()}, read at {name}"
                if fact.record is None:
                    resurrected.setdefault(place, words)
                else:
                    lost.setdefault(place, words)
        return list(lost.values()), list(resurrected.values())

    def __len__(self) -> int:
        return len(self._facts)


def _branches_in(batch: Iterable[Stored]) -> Iterator[Persist]:
    for effect in batch:
        if isinstance(effect, Persist):
            yield effect
        elif isinstance(effect, Rewrite):
            yield from effect.branches


def _headers(disks: Iterable[Disk]) -> dict[ChainId, list[Header]]:
    held: dict[ChainId, list[Header]] = {}
    for disk in disks:
        for header in disk.headers().values():
            held.setdefault(header.chain, []).append(header)
    return held


def _includes(headers: Iterable[Header], epoch: Epoch, head: int) -> bool:
    """Whether one of the signed states holds what was written up to `head` of `epoch`."""
    return any(
        (header.epoch == epoch and header.hi >= head) or header.covers_head(epoch, head)
        for header in headers
    )


def _shares(header: Header, copy: Header) -> bool:
    """Whether `copy` is an earlier state of what `header` signs."""
    return header.epoch == copy.epoch or header.covers_head(copy.epoch, copy.hi)
