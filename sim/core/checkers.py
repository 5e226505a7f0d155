"""What must hold at every step, checked from the effects of each node.

- One (chain, epoch, head) has one root and one set of entries, whoever holds it.
- A branch's head never goes back, and a branch is dropped only when a later one covers it.
- Nothing is held of who is no member or was forgotten, and nothing beyond a quota.
- Honest nodes raise no alarm about each other. Only a node whose disk was lost or copied may be
  taken for a clone of itself.

`ledger` checks what users wrote, `resting` what must hold when all is healed and quiet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from crdt.chain import Chain
from crdt.header import NO_ROOT, ChainId, Epoch, Header
from crdt.lattice import Lattice
from mesh.core import persisting
from mesh.core.bounds import bytes_of
from mesh.core.effects import (
    Alarm,
    AlarmOver,
    DropBranches,
    Effect,
    Forget,
    MembersChanged,
    Persist,
)
from mesh.core.members import Member
from mesh.core.ops import NodeId
from sim.core.clock import Clock, seconds

load_header = lru_cache(maxsize=1 << 14)(persisting.load_header)
"""A flush is stored by every node: the same bytes come again and again."""

VIOLATIONS_MAX: Final = 50
"""A broken build breaks everywhere: the first ones say what is wrong."""
MISLED: Final = frozenset({"chain.mismatch"})
"""What an honest node may say of another because of what a hostile one sent."""
OF_SUSPECTS: Final = frozenset({"node.cloned", "key.contested"})
"""What is said of nodes whose disk was lost or copied: two processes may act as one of them, and a
key may be replaced twice."""
CONTENT_ENTRIES_MAX: Final = 256
"""Longer chains are compared at rest only: hashing them at each step would cost the run."""
SHARED_MAX: Final = 4
"""Copies of one state that are remembered as compared: nodes share it, but for those that came to
it in other steps."""


@dataclass(frozen=True, slots=True)
class Violation:
    at_s: float
    check: str
    detail: str

    def json(self) -> dict[str, object]:
        return {"at_s": self.at_s, "check": self.check, "detail": self.detail}


class Violations:
    """Those found, in order."""

    def __init__(self, clock: Clock) -> None:
        self.found: list[Violation] = []
        self._clock = clock

    def add(self, check: str, detail: str) -> None:
        if not self.full:
            at_s = round(seconds(self._clock.now_ns), 3)
            self.found.append(Violation(at_s, check, detail))

    @property
    def full(self) -> bool:
        return len(self.found) >= VIOLATIONS_MAX


def chain_text(id: ChainId) -> str:
    return f"{id.node.hex()[:8]}/{id.shard[:8]}"


def epoch_text(epoch: Epoch) -> str:
    return f"{epoch.counter}.{epoch.nonce.hex()[:4]}"


class StepChecks:
    """The checks of every step."""

    def __init__(self, violations: Violations, incompatible: Callable[[int, NodeId], bool]) -> None:
        """`incompatible`: whether a node and another, by its id, have no language in common."""
        self._violations = violations
        self._incompatible = incompatible
        self._roots: dict[tuple[ChainId, Epoch, int], bytes] = {}
        self._contents: dict[
            tuple[ChainId, Epoch, int], tuple[int, dict[int, tuple[Chain, int]]]
        ] = {}
        """the hash of a state, and by identity where it was seen: which node had it first there"""
        self._begun: tuple[Lattice, dict[tuple[ChainId, Epoch], int]] | None = None
        self._heads: dict[int, dict[tuple[ChainId, Epoch], int]] = {}
        self._last: dict[int, dict[tuple[ChainId, Epoch], Header]] = {}
        """node -> (chain, epoch) -> what signs what it was given to store last"""
        self.suspects: set[NodeId] = set()
        """nodes whose disk was lost or copied: these may be taken for clones of themselves"""
        self._cloned: set[int] = set()
        """nodes whose process has said that another one writes as its node"""
        self.hostile: set[NodeId] = set()
        """of these anything may be said"""

    def started(self, node: int, lattice: Lattice, origin: Lattice | None) -> None:
        """What a node begins with; a crash may have lost what its disk did not have yet.

        `origin`: holds the same, as it does for others.
        """
        self._cloned.discard(node)
        self._last.pop(node, None)
        if origin is None:
            self._heads[node] = _heads_of(lattice)
            return
        if self._begun is None or self._begun[0] is not origin:
            self._begun = origin, _heads_of(origin)
        self._heads[node] = dict(self._begun[1])

    def wrote(self, node: int) -> None:
        """The node's process has taken a write of its users or its own."""
        if node in self._cloned:
            self._violations.add("who has met its clone writes no more", f"node {node}")

    def drained(
        self,
        node: int,
        effects: Sequence[Effect],
        lattice: Lattice,
        members: Mapping[NodeId, Member],
    ) -> None:
        touched: dict[ChainId, None] = {}
        # What was taken in and forgotten in one batch was in order at the time.
        leaving = {effect.node for effect in effects if isinstance(effect, Forget)}
        for effect in effects:
            if isinstance(effect, Persist):
                touched[effect.chain] = None
                if effect.chain.node not in leaving:
                    self._member(node, effect.chain, members)
                self._quota(node, effect, members, lattice)
                self._persist(node, effect, lattice)
            elif isinstance(effect, DropBranches):
                for epoch in effect.epochs:
                    self._heads.setdefault(node, {}).pop((effect.chain, epoch), None)
            elif isinstance(effect, AlarmOver):
                self._cloned.discard(node)
            elif isinstance(effect, MembersChanged):
                for id in lattice.chains():
                    self._member(node, id, members)
            elif isinstance(effect, Alarm):
                self._alarm(node, effect)
        for id in touched:
            for chain in lattice.branches(id):
                self._content(node, chain)

    def _member(self, node: int, id: ChainId, members: Mapping[NodeId, Member]) -> None:
        member = members.get(id.node)
        if member is None or member.state == "forgotten":
            self._violations.add(
                "nothing is held of strangers and forgotten nodes", f"node {node}: {chain_text(id)}"
            )

    def _quota(
        self, node: int, effect: Persist, members: Mapping[NodeId, Member], lattice: Lattice
    ) -> None:
        member = members.get(effect.chain.node)
        branch = lattice.branch(effect.chain, effect.epoch)
        if member is not None and branch is not None:
            most_bytes = bytes_of(member.quotas.of(effect.chain.shard))
            if branch.size_bytes > most_bytes:
                words = f"node {node}: {chain_text(effect.chain)} of {branch.size_bytes} bytes"
                self._violations.add("no chain beyond its quota", words)
        entries = load_header(effect.header).entries
        if member is not None and entries > member.quotas.of(effect.chain.shard):
            words = f"node {node}: {chain_text(effect.chain)} of {entries} entries"
            self._violations.add("no chain beyond its quota", words)

    def _persist(self, node: int, effect: Persist, lattice: Lattice) -> None:
        header = load_header(effect.header)
        id, epoch = effect.chain, effect.epoch
        place = id, epoch

        def what() -> str:
            return f"node {node}: {chain_text(id)} epoch {epoch_text(epoch)} head {header.hi}"

        known = self._roots.setdefault((id, epoch, header.hi), header.root)
        if known != header.root and id.node not in self.hostile:
            self._violations.add("one head, one root", what())
        heads = self._heads.get(node)
        if heads is None:
            heads = self._heads[node] = {}
        if effect.relabel_from is not None:
            heads.pop((id, effect.relabel_from), None)
        before = heads.get(place, 0)
        if header.hi < before:
            self._violations.add("heads do not go back", f"{what()}, was {before}")
        heads[place] = header.hi
        last = self._last.get(node)
        if last is None:
            last = self._last[node] = {}
        former = last.get(place)
        last[place] = header
        follows = former is not None and former.hi == header.lo and not effect.replace
        if follows and former is not None and header.prev_root not in (NO_ROOT, former.root):
            self._violations.add("a flush is laid on the state that it starts from", what())
        for dropped in effect.drop:
            head = heads.pop((id, dropped), 0)
            headers = [chain.header for chain in lattice.branches(id) if chain.header]
            if not any(h.epoch > dropped and h.covers_head(dropped, head) for h in headers):
                self._violations.add(
                    "only covered branches go", f"{what()}: dropped {epoch_text(dropped)} at {head}"
                )

    def _content(self, node: int, chain: Chain) -> None:
        header = chain.header
        if chain.id.node in self.hostile:
            return
        if header is None or header.hi != chain.head or len(chain.live) > CONTENT_ENTRIES_MAX:
            return
        place = (chain.id, header.epoch, header.hi)
        known = self._contents.get(place)
        if known is not None:
            held = known[1].get(id(chain))
            if held is not None and held[1] != node:
                return  # the two share it
        content = content_hash(chain)
        if known is None:
            known = content, {}
            self._contents[place] = known
        elif len(known[1]) == SHARED_MAX:
            del known[1][next(iter(known[1]))]
        known[1][id(chain)] = chain, node
        if known[0] != content:
            self._violations.add(
                "one head, one set of entries",
                f"node {node}: {chain_text(chain.id)} epoch {epoch_text(header.epoch)} head"
                f" {header.hi}",
            )

    def _alarm(self, node: int, alarm: Alarm) -> None:
        if alarm.event == "node.cloned":
            self._cloned.add(node)
        about = {alarm.fields.get("node"), alarm.fields.get("peer")}
        if alarm.event in OF_SUSPECTS and about & self.suspects:
            return
        # What a hostile relay makes of a flush is found out only after it has been named.
        if about & self.hostile or (self.hostile and alarm.event in MISLED):
            return
        if alarm.event == "peer.incompatible" and all(
            isinstance(peer, bytes) and self._incompatible(node, peer) for peer in about - {None}
        ):
            return
        fields = " ".join(
            f"{name}={value.hex()[:8] if isinstance(value, bytes) else value}"
            for name, value in alarm.fields.items()
        )
        self._violations.add("no alarm among honest nodes", f"node {node}: {alarm.event} {fields}")


def _heads_of(lattice: Lattice) -> dict[tuple[ChainId, Epoch], int]:
    return {
        (id, chain.epoch): chain.head for id in lattice.chains() for chain in lattice.branches(id)
    }


def content_hash(chain: Chain) -> int:
    """A hash over the entries, made without the chain's own index. Of this process only."""
    return hash(frozenset(chain.live.items()))
