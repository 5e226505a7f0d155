"""What many nodes of a large run hold alike, held and joined once.

A thousand nodes take in the same flushes, so each chain goes through the same states at all of
them. A state is never changed once it is there: a node that takes in a delta gets the state that
follows, and whoever stands at the same state and is given the same delta gets the very same one.
That is what joining says: it is a function of the two. What a node writes itself is its own.

Disks are shared in the same way. Only runs that start converged do this (`beginning`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from crdt.chain import Chain
from crdt.delta import Delta
from crdt.header import ChainId, Epoch
from crdt.lattice import BYTES_MAX, Applied, Lattice, Rejected
from crdt.root import Plan
from mesh.core.effects import Persist, Stored
from mesh.core.ops import NodeId
from mesh.core.roster import Roster, Verify
from sim.core.disk import Branch, Disk

Held: TypeAlias = dict[Epoch, Chain]
_Given: TypeAlias = tuple[int, bytes, Epoch, int, bytes | None, bytes]
"""the identity of a state; signature, base, lo, live seqs and payload of a delta"""
_Stored: TypeAlias = tuple[int, bytes, bool, Epoch | None, tuple[bytes, ...], int]
STEPS_MAX = 1 << 14
"""States remembered, the last ones: a few seconds of a busy mesh, 10 kB each."""


@dataclass(frozen=True, slots=True)
class Step:
    """What a delta made of a state."""

    before: Held | None
    after: Held
    result: Applied
    weight: int
    unproved: bool


class Steps:
    """How states follow each other, for all nodes of one run. A state that is remembered as one
    that something follows is not collected, so that its identity stands for it."""

    def __init__(self) -> None:
        self._joined: dict[_Given, Step] = {}
        self._stored: dict[_Stored, tuple[Branch | None, object, Branch]] = {}

    def joined(self, given: _Given) -> Step | None:
        return self._joined.get(given)

    def join(self, given: _Given, step: Step) -> None:
        self._joined[given] = step
        if len(self._joined) > STEPS_MAX:
            del self._joined[next(iter(self._joined))]

    def stored(self, given: _Stored) -> Branch | None:
        found = self._stored.get(given)
        return found[2] if found else None

    def store(self, given: _Stored, before: Branch | None, puts: object, after: Branch) -> None:
        self._stored[given] = before, puts, after
        if len(self._stored) > STEPS_MAX:
            del self._stored[next(iter(self._stored))]


class SharedLattice(Lattice):
    """A lattice whose chains, but for those of `node`, are shared with others."""

    def __init__(self, node: NodeId, origin: Lattice, steps: Steps) -> None:
        """It begins as `origin`, which nobody changes any more."""
        super().__init__()
        self.origin: Lattice | None = origin
        """what it still is"""
        self._node = node
        self._steps = steps
        self._branches = dict(origin._branches)
        self._short = dict(origin._short)
        self._weights, self._digest = dict(origin._weights), dict(origin._digest)
        self.total = origin.total
        self._shards = {shard: set(ids) for shard, ids in origin._shards.items()}
        self._chains_of = origin._chains_of.copy()
        for id in [id for id in self._branches if id.node == node]:
            self._make_own(id)

    def apply(
        self, delta: Delta, made: Plan | None = None, bytes_max: int = BYTES_MAX
    ) -> Applied | Rejected:
        header = delta.header
        id = header.chain
        if id.node == self._node:
            return super().apply(delta, made, bytes_max)
        held = self._branches.get(id)
        given = (
            _identity(held),
            header.signature,
            delta.base,
            delta.lo,
            delta.keep,
            delta.packed_payload(),
        )
        step = self._steps.joined(given)
        if step is None:
            return self._join(id, held, given, delta, made, bytes_max)
        self.origin = None
        if held is None:
            self._register(id, step.after)
        else:
            self._branches[id] = step.after
        if step.unproved:
            self._unproved[id] = None
        else:
            self._unproved.pop(id, None)
        self._weigh(id, step.weight)
        return step.result

    def _join(
        self,
        id: ChainId,
        held: Held | None,
        given: _Given,
        delta: Delta,
        made: Plan | None,
        bytes_max: int,
    ) -> Applied | Rejected:
        if held is not None:
            self._make_own(id)
        try:
            result = super().apply(delta, made, bytes_max)
        except Exception:
            if held is not None:
                self._branches[id] = held
            raise
        if isinstance(result, Applied):
            self.origin = None
            after, unproved = self._branches[id], id in self._unproved
            self._steps.join(given, Step(held, after, result, self.weight(id), unproved))
        elif held is not None:
            self._branches[id] = held
        return result

    def drop(self, id: ChainId, epoch: Epoch) -> None:
        self.origin = None
        self._make_own(id)
        super().drop(id, epoch)

    def discard(self, id: ChainId) -> None:
        self.origin = None
        super().discard(id)

    def add(self, chain: Chain) -> None:
        self.origin = None
        if chain.id in self._branches:
            self._make_own(chain.id)
        super().add(chain)

    def reseal(self, chain: Chain, before: Epoch) -> tuple[Epoch, ...]:
        self.origin = None
        return super().reseal(chain, before)

    def _make_own(self, id: ChainId) -> None:
        self._branches[id] = {epoch: chain.copy() for epoch, chain in self._branches[id].items()}


def _identity(state: object) -> int:
    return 0 if state is None else id(state)


class SharedDisk(Disk):
    """A disk that begins with what `origin` has, and whose branches are shared with others."""

    def __init__(
        self, node: NodeId, seed: bytes, origin: Disk, lattice: Lattice, steps: Steps
    ) -> None:
        """`lattice`: what a node that starts from `origin` holds."""
        super().__init__(origin.statements, seed)
        self._branches = dict(origin._branches)
        self._node = node
        self._steps = steps
        self._lattice: Lattice | None = lattice
        """of what it has as long as nothing was written"""

    def lattice(self, roster: Roster, verify: Verify) -> tuple[Lattice, list[ChainId]]:
        if self._lattice is None:
            return super().lattice(roster, verify)
        return SharedLattice(self._node, self._lattice, self._steps), []

    def apply(self, effects: Sequence[Stored]) -> None:
        self._lattice = None
        super().apply(effects)

    def _apply(self, effect: Persist) -> None:
        stored = (effect.chain, effect.relabel_from or effect.epoch)
        branch = self._branches.get(stored)
        given = (
            _identity(branch),
            effect.header,
            effect.replace,
            effect.relabel_from,
            effect.deletes,
            id(effect.puts),
        )
        after = self._steps.stored(given)
        if after is None:
            if branch is not None:
                self._branches[stored] = branch.copy()
            super()._apply(effect)
            self._steps.store(
                given, branch, effect.puts, self._branches[effect.chain, effect.epoch]
            )
            return
        self._branches.pop(stored, None)
        self._branches[effect.chain, effect.epoch] = after
        for epoch in effect.drop:
            self._branches.pop((effect.chain, epoch), None)
