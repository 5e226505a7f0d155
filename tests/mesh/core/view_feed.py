"""Records kept in plain dicts, and a view that reads them: for tests without a replica."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from mesh.core.ops import NodeId, Touched
from mesh.core.view import View


class Change(NamedTuple):
    """One node's record for a key becomes `record` (None: the node holds none any more)."""

    node: NodeId
    shard: str
    key: bytes
    record: bytes | None


class Held:
    """`mesh.core.ops.Records` over dicts."""

    def __init__(self) -> None:
        self.chains: dict[tuple[NodeId, str], dict[bytes, bytes]] = {}

    def put(self, changes: Iterable[Change]) -> list[Touched]:
        """Hold what the changes say; what they touched."""
        touched: dict[tuple[NodeId, str], dict[bytes, None]] = {}
        for node, shard, key, record in changes:
            touched.setdefault((node, shard), {})[key] = None
            chain = self.chains.setdefault((node, shard), {})
            chain.pop(key, None)
            if record is not None:
                chain[key] = record
        return [Touched(node, shard, tuple(keys)) for (node, shard), keys in touched.items()]

    def read(self, node: NodeId, shard: str, key: bytes) -> bytes | None:
        return self.chains.get((node, shard), {}).get(key)

    def read_all(self, node: NodeId, shard: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.read(node, shard, key) for key in keys]

    def held(self, node: NodeId) -> Iterator[Touched]:
        for (writer, shard), chain in self.chains.items():
            if writer == node:
                yield Touched(node, shard, tuple(chain))


class FedView(View):
    """A view that is told the records themselves."""

    def __init__(self) -> None:
        self.held = Held()
        super().__init__(self.held)

    def apply(self, changes: Iterable[Change]) -> None:
        """Of two changes for one (node, shard, key) the later counts."""
        self.update(self.held.put(changes))
