"""Whether another process writes as this node: a copied disk or machine that was started as well.

- Who meets an own epoch that it neither opened nor descends from, or more of its own than it wrote,
  or is shown a peer's proof, writes no more: people are told, of every shard in which it is seen.
- A node that was restored from a backup behind a cut, and wrote before it met who holds more of it,
  sees the same, though nobody else is at work. So once peers let this process in, have told all
  that they hold, and nothing more of its own has come for GONE_NS, it goes on: in a new epoch that
  covers whatever there is, as after a restart. Should another process write again, both see it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from crdt.chain import Chain
from crdt.delta import Delta
from crdt.lattice import Lattice
from mesh.core.effects import Alarm, AlarmOver, Effect
from mesh.core.ops import NodeId
from mesh.core.own import OwnChains

GONE_NS: Final = 60_000_000_000
"""A process that runs writes now and then, and is dialled or dials within seconds: two that are
linked with one mesh know of each other long before."""
AGAIN_NS: Final = 1_000_000_000
"""How soon it is looked again whether peers have told everything."""
NAMED_MAX: Final = 8
"""Shards that an alarm names."""


class Clones:
    """What one process knows of others of its node. `tell` takes effects."""

    def __init__(self, own: OwnChains, lattice: Lattice, tell: Callable[[Effect], None]) -> None:
        self._own = own
        self._lattice = lattice
        self._tell = tell
        self._shards: set[str] = set()
        """in which another process was seen"""
        self.due_ns: int | None = None
        """when `timer` has something to do"""

    def refuses(self, delta: Delta) -> bool:
        """Whether the delta of an own chain is of an epoch that this process writes, and not by it.

        Another process may have gone on in an epoch that descends from this one's: it has adopted
        what this one wrote. The chain is not this process's to write any more, and is joined as any
        other.
        """
        header = delta.header
        shard = header.chain.shard
        opened = self._own.opened(shard)
        if opened is None:
            return False
        if header.epoch != opened:
            if header.epoch > opened and header.covers_head(opened, 0):
                self._alarm(shard)
                self._own.release(shard)
            return False
        latest = self._lattice.latest(header.chain)
        if latest is None or latest.header is None or header.hi > latest.header.hi:
            self._alarm(shard)
        return True

    def met(self, branch: Chain) -> None:
        """A peer gave a branch of an own chain, which is joined."""
        if not self._own.meet(branch):
            self._alarm(branch.id.shard)
        elif self._own.cloned:
            self.due_ns = 0

    def proved(self, peer: NodeId) -> None:
        """A peer has proved that another process runs as this node."""
        if not self._own.cloned:
            self._own.give_up()
            self._tell(Alarm("node.cloned", {"node": self._own.node, "proved_by": peer}))
        self.due_ns = 0

    def timer(self, now_ns: int, told: bool) -> None:
        """`told`: whether there are peers, and all of them have told and given what they hold."""
        if self.due_ns is None or now_ns < self.due_ns:
            return
        if self.due_ns == 0:  # something of another process has come: wait anew
            self.due_ns = now_ns + GONE_NS
        elif not told:
            self.due_ns = now_ns + AGAIN_NS
        else:
            self.due_ns = None
            self._shards.clear()
            self._own.go_on()
            self._tell(AlarmOver("node.cloned"))

    def _alarm(self, shard: str) -> None:
        self._own.give_up()
        self.due_ns = 0
        if shard in self._shards:
            return
        self._shards.add(shard)
        named = sorted(self._shards)
        more = f" and {len(named) - NAMED_MAX} more" if len(named) > NAMED_MAX else ""
        shards = ", ".join(named[:NAMED_MAX]) + more
        self._tell(Alarm("node.cloned", {"node": self._own.node, "shards": shards}))
