"""`weft state verify`: every root and signature recomputed, and the store compared with memory.

A node goes on while it is verified, so nothing is compared that may be under way:

- what is held in memory is copied on trio's thread, signed and whole (an own chain with unsigned
  writes is waited for), and judged by itself in a worker thread;
- the store is read after everything up to that copy was stored. A branch under the same header has
  to be equal to the copy; one under a later header is judged by itself, and cannot be older.

One call verifies some chains and says where to go on, so that nobody waits long for an answer and
nothing has to be undone when whoever asked has gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import trio

from crdt.chain import Chain
from crdt.entry import Entry
from crdt.header import ChainId, Epoch, Header
from crdt.root import BucketOverflow, RootIndex
from mesh.core.errors import PeerError
from mesh.core.ops import NodeId
from mesh.core.persisting import load_header
from mesh.core.roster import Roster
from mesh.node.context import NodeContext
from mesh.node.store import StoredBranch

STEP_S: Final = 0.5
"""After so long a call ends with the chain it is at; a chain of 150,000 records takes as long."""
STEADY_TRIES: Final = 100
"""How often unsigned writes are waited for: each wait ends with a moment without any."""
KEYS_NAMED_MAX: Final = 3

Entries = Mapping[bytes, Entry]


@dataclass(frozen=True, slots=True)
class Difference:
    """What does not hold. `chain` is None for what is of no chain: the roster."""

    chain: ChainId | None
    epoch: Epoch | None
    what: str


@dataclass(frozen=True, slots=True)
class Step:
    """What one call verified. `next` is where the next one goes on; None: all is done."""

    chains: int
    records: int
    next: ChainId | None
    differences: tuple[Difference, ...]


@dataclass(frozen=True, slots=True)
class _Copy:
    """One branch as it was held at one moment."""

    header: Header
    live: Entries
    index_root: bytes | None
    """what the index said that the root is; None: it was not brought up to date yet"""


class Verifier:
    """One per node."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    def order(self) -> list[ChainId]:
        """All chains held now, in the order in which they are verified."""
        return list(self._node.replica.lattice.chains())

    async def step(self, start: ChainId | None, step_s: float = STEP_S) -> Step:
        """Verify chains from `start` on (None: from the first, and the roster before it)."""
        began_s = time.monotonic()
        found: list[Difference] = []
        if start is None:
            found += await self._roster()
        chains = records = 0
        for id in self.order():
            if start is not None and id < start:
                continue
            if chains and time.monotonic() - began_s > step_s:
                return Step(chains, records, id, tuple(found))
            count, differences = await self._chain(id)
            found += differences
            chains, records = chains + 1, records + count
        found += await self._strays()
        return Step(chains, records, None, tuple(found))

    # ---- the roster ----

    async def _roster(self) -> list[Difference]:
        roster = self._node.replica.roster
        await self._node.durable()
        held = set(roster.statements())
        stored = await trio.to_thread.run_sync(lambda: set(self._node.store.load().statements))
        held_since = set(roster.statements())
        found = []
        if missing := len(held & held_since - stored):
            found.append(f"store: {missing} statements are missing")
        if foreign := len(stored - held - held_since):
            found.append(f"store: {foreign} statements that memory does not hold")
        try:
            again = await trio.to_thread.run_sync(Roster.founded_by, sorted(held))
        except PeerError as error:
            found.append(f"memory: {error}")
        else:
            if set(again.statements()) != held:
                found.append("memory: statements whose signatures do not hold")
        return [Difference(None, None, f"roster: {what}") for what in found]

    # ---- chains ----

    async def _chain(self, id: ChainId) -> tuple[int, list[Difference]]:
        """How many records of a chain were verified, and what does not hold."""
        if not self._counts(id.node):
            return 0, []  # forgotten meanwhile
        copies = await self._copies(id)
        if copies is None:
            return 0, [Difference(id, None, "memory: written too fast to be verified; try again")]
        await self._node.durable()
        found: list[Difference] = []
        for epoch, copy in copies.items():
            for what in await trio.to_thread.run_sync(self._judge, id, epoch, copy):
                if not self._gone(id, epoch, copy):
                    found.append(Difference(id, epoch, what))
        return sum(len(copy.live) for copy in copies.values()), found

    def _counts(self, node: NodeId) -> bool:
        member = self._node.replica.roster.members().get(node)
        return member is not None and member.state != "forgotten"

    async def _copies(self, id: ChainId) -> dict[Epoch, _Copy] | None:
        """The branches of a chain, all at one moment at which all is signed; None: no such moment
        came."""
        for _ in range(STEADY_TRIES):
            branches = self._node.replica.lattice.branches(id)
            copies = {branch.epoch: copy for branch in branches if (copy := _copied(branch))}
            if len(copies) == len(branches):
                return copies
            await self._node.durable()
        return None

    def _gone(self, id: ChainId, epoch: Epoch, copy: _Copy) -> bool:
        """Whether the branch was relabelled or dropped since it was copied: the store has followed
        and is compared under its new epoch, if it is still there, the next time."""
        branch = self._node.replica.lattice.branch(id, epoch)
        return branch is None or branch.header is None or branch.head < copy.header.hi

    def _judge(self, id: ChainId, epoch: Epoch, copy: _Copy) -> list[str]:
        """For a worker thread: everything it reads stays as it is."""
        roster = self._node.replica.roster
        found = [f"memory: {what}" for what in _wrong(copy.header, copy.live, roster)]
        if not found and copy.index_root not in (None, copy.header.root):
            found.append("memory: the index of the root is not that of the records")
        stored = self._node.store.branch(id, epoch)
        if stored is None:
            return [*found, "store: the branch is missing"]
        try:
            header = load_header(stored.header)
        except ValueError as error:
            return [*found, f"store: header: {error}"]
        if header == copy.header:
            return [*found, *_unequal(copy.live, stored)]
        if header.hi <= copy.header.hi:
            return [*found, f"store: is at head {header.hi}, memory at {copy.header.hi}"]
        return [*found, *(f"store: {what}" for what in _wrong(header, stored.records, roster))]

    async def _strays(self) -> list[Difference]:
        """Branches that are stored and not held."""
        await self._node.durable()
        stored = await trio.to_thread.run_sync(self._node.store.branch_ids)
        await self._node.durable()
        still = await trio.to_thread.run_sync(self._node.store.branch_ids)
        lattice = self._node.replica.lattice
        return [
            Difference(id, epoch, "store: a branch that memory does not hold")
            for id, epoch in sorted(stored & still)
            if lattice.branch(id, epoch) is None
        ]


def _copied(branch: Chain) -> _Copy | None:
    """None while there are writes that are not signed."""
    header = branch.header
    if header is None or header.hi != branch.head or header.epoch != branch.epoch:
        return None
    return _Copy(header, dict(branch.live), None if branch.unproved else branch.index.root)


def _wrong(header: Header, records: Entries, roster: Roster) -> Iterator[str]:
    """What of a branch is not as its writer signed it."""
    if not roster.signed(header):
        yield "the signature does not hold"
    if len(records) != header.entries:
        yield f"{len(records)} records, and {header.entries} were signed"
        return
    # Records as they are held are not given as a change: that would copy all in one long step.
    changed = records if header.bits == 0 else {}
    try:
        root = RootIndex().plan(records, changed, (), header.bits).root
    except BucketOverflow as error:
        yield f"the root cannot be computed: {error}"
        return
    if root != header.root:
        yield "the root is not the one that was signed"


def _unequal(live: Entries, stored: StoredBranch) -> Iterator[str]:
    """How stored records differ from those held under the same header."""
    records = stored.records
    differing = [key for key, entry in live.items() if records.get(key) != entry]
    foreign = sum(key not in live for key in records)
    if differing:
        named = ", ".join(key.hex() for key in sorted(differing)[:KEYS_NAMED_MAX])
        yield f"store: {len(differing)} records are missing or differ, such as {named}"
    if foreign:
        yield f"store: {foreign} records that memory does not hold"
