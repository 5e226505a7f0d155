"""A modelled disk: what of a node survives a crash.

It carries out the same effects as the node's store, in whole transactions, and keeps rows as that
does: a relabelled branch keeps its rows, and rows that an effect forgot to delete stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from crdt.chain import Chain, RootMismatch
from crdt.delta import BadDelta
from crdt.entry import SEQ_BYTES, Entry
from crdt.header import ChainId, Epoch, Header
from crdt.lattice import Lattice
from mesh.core.effects import DropBranches, Forget, Persist, PersistStatements, Rewrite, Stored
from mesh.core.ops import NodeId
from mesh.core.roster import Roster, Verify
from sim.core.chance import Chance, pick
from sim.core.checkers import load_header


class DiskError(Exception):
    """The effects do not fit what is stored; a store on a real disk would refuse them too."""


class TornError(DiskError):
    """What is torn is in the way: nothing was stored. A rewrite of the chain clears it away."""


@dataclass(slots=True)
class Branch:
    """The stored header of a branch, and its rows."""

    header: bytes
    records: dict[bytes, Entry]

    def copy(self) -> Branch:
        return Branch(self.header, dict(self.records))


class Disk:
    """One node's disk. `seed`: of the key that is in its key file."""

    def __init__(self, statements: Iterable[bytes], seed: bytes) -> None:
        self.seed = seed
        self._statements: dict[bytes, None] = dict.fromkeys(statements)
        self._branches: dict[tuple[ChainId, Epoch], Branch] = {}
        self._torn: set[tuple[ChainId, Epoch]] = set()
        """branches that no process can read"""
        self.hears_first = False
        """whether something that its node wrote may be lost, and no peer has told of it yet"""
        self.lacks = False
        """the same of what anybody wrote"""
        self.full = False
        """whether it takes nothing any more"""

    def copy(self) -> Disk:
        """A backup: what is stored now."""
        twin = Disk(self._statements, self.seed)
        twin._branches = {id: branch.copy() for id, branch in self._branches.items()}
        twin._torn = set(self._torn)
        twin.hears_first, twin.lacks = self.hears_first, self.lacks
        return twin

    def apply(self, effects: Sequence[Stored]) -> None:
        """Carry out `effects`, all or none. Raises TornError; DiskError: the disk is of no use
        then."""
        for effect in effects:
            if (
                isinstance(effect, Persist)
                and effect.relabel_from is not None
                and (effect.chain, effect.epoch) in self._torn
            ):
                raise TornError(f"branch {effect.epoch} of {effect.chain} is torn")
        for effect in effects:
            if isinstance(effect, PersistStatements):
                self._statements.update(dict.fromkeys(effect.statements))
                for blob in effect.left:
                    self._statements.pop(blob, None)
            elif isinstance(effect, Forget):
                kept = {i: b for i, b in self._branches.items() if i[0].node != effect.node}
                self._branches = kept
            elif isinstance(effect, Rewrite):
                kept = {i: b for i, b in self._branches.items() if i[0] != effect.chain}
                self._branches = kept
                self._torn = {id for id in self._torn if id[0] != effect.chain}
                for branch in effect.branches:
                    self._apply(branch)
            elif isinstance(effect, DropBranches):
                for epoch in effect.epochs:
                    self._branches.pop((effect.chain, epoch), None)
            else:
                self._apply(effect)

    def _apply(self, effect: Persist) -> None:
        stored = (effect.chain, effect.relabel_from or effect.epoch)
        branch = self._branches.pop(stored, None)
        if branch is None:
            if effect.relabel_from is not None:
                raise DiskError(f"no branch {effect.relabel_from} of {effect.chain} to relabel")
            branch = Branch(effect.header, {})
        elif stored[1] != effect.epoch and (effect.chain, effect.epoch) in self._branches:
            raise DiskError(f"branch {effect.epoch} of {effect.chain} is stored already")
        branch.header = effect.header
        if effect.replace:
            branch.records = {}
        for key in effect.deletes:
            branch.records.pop(key, None)
        branch.records.update(effect.puts)
        self._branches[effect.chain, effect.epoch] = branch
        if effect.replace:
            self._torn.discard((effect.chain, effect.epoch))
        for epoch in effect.drop:
            self._branches.pop((effect.chain, epoch), None)

    @property
    def statements(self) -> tuple[bytes, ...]:
        return tuple(self._statements)

    def readable(self) -> dict[tuple[ChainId, Epoch], Branch]:
        """The branches that can be read."""
        return {id: branch for id, branch in self._branches.items() if id not in self._torn}

    def headers(self) -> Mapping[tuple[ChainId, Epoch], Header]:
        """The signed header of every branch that can be read."""
        return {id: load_header(branch.header) for id, branch in self.readable().items()}

    def tear(self, chance: Chance) -> ChainId | None:
        """Lose a record, or the end of one, that was written; of which chain."""
        written = [(id, key) for id, b in sorted(self._branches.items()) for key in b.records]
        if not written:
            return None
        id, key = pick(chance, written)
        branch = self._branches[id] = self._branches[id].copy()  # others may share it
        records = branch.records
        self._torn.add(id)
        if chance.random() < 0.5 or len(records[key]) <= SEQ_BYTES:
            del records[key]
        else:
            records[key] = records[key][:-1]
        return id[0]

    def boot(self, node: NodeId, roster: Roster, verify: Verify) -> tuple[Lattice, bool, bool]:
        """What `node` holds when it starts from this disk, whether it is to hear first what its
        peers have of its own, and whether it lacks anything, as `mesh/node/boot.py` reads it: the
        rows of damaged chains go."""
        lattice, damaged = self.lattice(roster, verify)
        hears_first = self.hears_first or any(id.node == node for id in damaged)
        lacks = self.lacks or bool(damaged)
        if damaged and not self.full:
            self.hears_first, self.lacks = hears_first, lacks
            held = {(id, chain.epoch) for id in damaged for chain in lattice.branches(id)}
            for place in [p for p in self._branches if p[0] in damaged and p not in held]:
                del self._branches[place]
                self._torn.discard(place)
        return lattice, hears_first, lacks

    def lattice(self, roster: Roster, verify: Verify) -> tuple[Lattice, list[ChainId]]:
        """What a node that starts from this disk holds, and of which chains it leaves branches out
        because they are not what their writer signed: peers have them."""
        lattice = Lattice()
        damaged: list[ChainId] = []
        members = roster.members()
        for _, branch in sorted(self._branches.items(), key=lambda item: item[0]):
            header = load_header(branch.header)
            writer = members.get(header.chain.node)
            if writer is not None and writer.state == "forgotten":
                continue
            entries = dict(sorted(branch.records.items(), key=lambda row: row[1]))
            try:
                if writer is None or not roster.signed(header, verify):
                    raise ValueError("signature")
                lattice.add(Chain.restore(header, entries))
            except (ValueError, BadDelta, RootMismatch):
                damaged.append(header.chain)
        return lattice, damaged
