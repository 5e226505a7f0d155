"""What of a node's state its store lacks, while the store may fail (a full disk, say).

- Effects go to the store in their order, one batch a transaction, before any send of the batch.
- Once a batch could not be stored, the store is behind with its chains. From then on only their
  names are kept, and when the store is tried again each is written whole, as the lattice holds it
  by then: what is remembered of a failing store is bounded by the chains, however long it fails.
- Meanwhile the node goes on: what others wrote is read and passed on, since others have it. What
  this node itself wrote (before its writes were refused) is not pushed before it is stored. A peer
  that compares may still learn of it: should the node die then, its next epoch takes that up, as
  with a restored disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core.effects import (
    Effect,
    Forget,
    Persist,
    PersistStatements,
    Rewrite,
    Send,
    Stored,
)
from mesh.core.ops import NodeId
from mesh.core.persisting import stored_header
from mesh.core.roster import Roster

RETRY_NS: Final = 2_000_000_000
"""How long a failing store is left alone between two attempts."""


class Spool:
    """Between the replica's effects and the store of `node`.

    For each batch: give the store what `take` answers, say `stored` or `failed`, and carry out
    what `allowed` answers.
    """

    def __init__(self, node: NodeId, lattice: Lattice, roster: Roster) -> None:
        self._node = node
        self._lattice = lattice
        self._roster = roster
        self._batch: Sequence[Effect] = ()
        self._chains: set[ChainId] = set()
        self._forgotten: set[NodeId] = set()
        self._statements = False
        self._retry_ns: int | None = None
        self._withheld = False

    @property
    def retry_ns(self) -> int | None:
        """When a failing store is to be tried again; None while it does not fail."""
        return self._retry_ns

    def take(self, effects: Sequence[Effect], now_ns: int) -> list[Stored]:
        """What to store now, in one transaction: nothing while the store is left alone."""
        self._batch = effects
        # Most effects are sends: these are told by one comparison.
        mine = [e for e in effects if not isinstance(e, Send) and isinstance(e, Stored)]
        if self._retry_ns is None:
            return mine
        self._fall_behind(mine)
        return self._everything_lacking() if now_ns >= self._retry_ns else []

    def failed(self, now_ns: int) -> None:
        """What `take` answered was not stored."""
        if self._retry_ns is None:
            self._fall_behind([effect for effect in self._batch if isinstance(effect, Stored)])
        self._retry_ns = now_ns + RETRY_NS

    def stored(self) -> bool:
        """What `take` answered was stored. Whether sends were withheld: then peers lack own writes,
        and are to be compared with."""
        withheld, self._withheld = self._withheld, False
        self._retry_ns = None
        self._chains.clear()
        self._forgotten.clear()
        self._statements = False
        return withheld

    def allowed(self) -> Sequence[Effect]:
        """What of the batch can be carried out, stored or not."""
        if self._retry_ns is None or not any(
            isinstance(effect, Persist) and effect.chain.node == self._node
            for effect in self._batch
        ):
            return self._batch
        self._withheld = True
        return [effect for effect in self._batch if not isinstance(effect, Send)]

    def _fall_behind(self, effects: Sequence[Stored]) -> None:
        for effect in effects:
            if isinstance(effect, PersistStatements):
                self._statements = True
            elif isinstance(effect, Forget):
                self._forgotten.add(effect.node)
            else:
                self._chains.add(effect.chain)

    def _everything_lacking(self) -> list[Stored]:
        lacking: list[Stored] = []
        if self._statements:
            lacking.append(PersistStatements(tuple(self._roster.statements())))
        lacking += [Forget(node) for node in sorted(self._forgotten)]
        lacking += [self._whole(id) for id in sorted(self._chains)]
        return lacking

    def _whole(self, id: ChainId) -> Rewrite:
        return Rewrite(
            id,
            tuple(
                Persist(id, chain.epoch, stored_header(chain.header), dict(chain.live), ())
                for chain in self._lattice.branches(id)
                if chain.header is not None
            ),
        )
