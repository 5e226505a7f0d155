"""What a replica holds, as its view reads it: effective records by node, shard and key.

The only place that knows both how the lattice keeps entries and that own writes count before they
are signed. Nothing is kept here but which keys were touched since the view was last told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Final

from crdt.entry import SEQ_BYTES
from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core.ops import MESH_SHARD, NodeId, Touched
from mesh.core.own import OwnChains

LOAD_BATCH: Final = 10_000
"""Records given to a view that starts in one go: a few milliseconds."""


class Holdings:
    """`mesh.core.ops.Records` over a lattice and a node's own chains in it."""

    def __init__(self, lattice: Lattice, own: OwnChains) -> None:
        self._lattice = lattice
        self._own = own
        self.touched: dict[ChainId, dict[bytes, object]] = {}
        """what `take_touched` has"""

    # ---- reading ----

    def read(self, node: NodeId, shard: str, key: bytes) -> bytes | None:
        if node == self._own.node:
            return self._own.record(shard, key)
        return self._lattice.record(ChainId(node, shard), key)

    def read_all(self, node: NodeId, shard: str, keys: Sequence[bytes]) -> list[bytes | None]:
        live = self._own.live(shard) if node == self._own.node else None
        if live is None:
            branches = self._lattice.branches(ChainId(node, shard))
            if len(branches) != 1:
                return [self.read(node, shard, key) for key in keys]
            live = branches[0].live
        # As `record_of` does; called for each of a million it would take as long as all the rest.
        return [None if entry is None else entry[SEQ_BYTES:] for entry in map(live.get, keys)]

    def held(self, node: NodeId) -> Iterator[Touched]:
        for shard in sorted({*self._lattice.shards(), *self._own.shards()}):
            if keys := tuple(self._keys(node, shard)):
                yield Touched(node, shard, keys)

    def everything(self, batch: int = LOAD_BATCH) -> Iterator[Touched]:
        """Every key of every node, at most `batch` at a time: for a view that starts. What claims
        are judged by comes first, so that each is judged once."""
        own = (ChainId(self._own.node, shard) for shard in self._own.shards())
        ids = {*self._lattice.chains(), *own}
        for id in sorted(ids, key=lambda id: (id.shard != MESH_SHARD, id)):
            keys = tuple(self._keys(id.node, id.shard))
            for start in range(0, len(keys), batch):
                yield Touched(id.node, id.shard, keys[start : start + batch])

    def _keys(self, node: NodeId, shard: str) -> Iterable[bytes]:
        own = self._own.live(shard) if node == self._own.node else None
        if own is not None:
            return own
        return self._lattice.keys(ChainId(node, shard))

    # ---- what was touched ----

    def touch(self, id: ChainId, keys: Iterable[bytes]) -> None:
        """Records of the chain under these keys may have changed."""
        touched = self.touched.get(id)
        if touched is None:
            # A dict is copied in a third of the time; what it says of its keys is of no concern.
            self.touched[id] = dict(keys) if isinstance(keys, dict) else dict.fromkeys(keys)
        else:
            touched.update(dict.fromkeys(keys))

    def take_touched(self, bulk_max: int | None = None) -> list[Touched]:
        """What was touched since the last call: each chain once, in the order of the first touch,
        and each key of it once.

        With `bulk_max` no more keys than that are told of a VPC's chain of another node, and of
        one chain with more of them at a call: `touched` stays true until the rest was taken.
        """
        if not self.touched:
            return []
        touched, self.touched = self.touched, {}
        told: list[Touched] = []
        bulk = False
        for id, keys in touched.items():
            if bulk_max is None or len(keys) <= bulk_max or self._comes_first(id):
                if keys:
                    told.append(Touched(id.node, id.shard, tuple(keys)))
                continue
            self.touched[id] = keys
            if not bulk:
                bulk, some = True, tuple(islice(keys, bulk_max))
                for key in some:
                    del keys[key]
                told.append(Touched(id.node, id.shard, some))
        return told

    def _comes_first(self, id: ChainId) -> bool:
        """Whether all that is read next hangs on it: own writes, and what claims are judged by."""
        return id.node == self._own.node or id.shard == MESH_SHARD
