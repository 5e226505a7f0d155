"""Evictions as they are held, whether or not their writers may evict: by address, and by node."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Final

from mesh.core import keys, model
from mesh.core.model import Eviction
from mesh.core.ops import NodeId

_Held = dict[NodeId, dict[NodeId, Eviction]]
_NONE: Final[Mapping[NodeId, dict[NodeId, Eviction]]] = MappingProxyType({})


class Evictions:
    """VPC → address → evicted node → writer → eviction."""

    def __init__(self) -> None:
        self._at: dict[str, dict[bytes, _Held]] = {}
        self._of: dict[NodeId, dict[tuple[str, bytes], None]] = {}
        """Evicted node → the places where it is."""

    def put(
        self, vpc: str, addr: bytes, evicted: NodeId, writer: NodeId, record: model.Record | None
    ) -> None:
        """What the writer holds now about the evicted node's claims there."""
        if record is not None:
            assert isinstance(record, Eviction), "`model.decode` gives what belongs to the key"
            held = self._at.setdefault(vpc, {}).setdefault(addr, {})
            held.setdefault(evicted, {})[writer] = record
            self._of.setdefault(evicted, {})[vpc, addr] = None
            return
        by_writer = self.at(vpc, addr).get(evicted, {})
        if by_writer.pop(writer, None) is None or by_writer:
            return
        del self._at[vpc][addr][evicted], self._of[evicted][vpc, addr]
        if not self._of[evicted]:
            del self._of[evicted]
        if not self._at[vpc][addr]:
            del self._at[vpc][addr]
        if not self._at[vpc]:
            del self._at[vpc]

    def at(self, vpc: str, addr: bytes) -> Mapping[NodeId, dict[NodeId, Eviction]]:
        """Evicted node → writer → eviction of one address."""
        by_addr = self._at.get(vpc)
        return _NONE if by_addr is None else by_addr.get(addr, _NONE)

    def addrs(self, vpc: str) -> Collection[bytes]:
        """The VPC's addresses from which anything is evicted."""
        return self._at.get(vpc, ())

    def of(self, node: NodeId) -> Iterator[tuple[str, bytes]]:
        """The (VPC, address) from which the node is evicted."""
        return iter(self._of.get(node, ()))

    def by(self, writer: NodeId) -> Iterator[keys.EvictionKey]:
        """The keys of what the writer holds. Reads them all."""
        for vpc, by_addr in self._at.items():
            for addr, by_node in by_addr.items():
                for evicted, held in by_node.items():
                    if writer in held:
                        yield keys.EvictionKey(vpc, evicted, addr)
