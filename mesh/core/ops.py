"""The plain values that pass between the writer, the replica and the view."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

NodeId: TypeAlias = bytes
"""16 bytes: the truncated SHA-256 of the node's first public key. Text form: 32 hex digits."""

MESH_SHARD: Final = "mesh"
"""The shard of sites, VPCs, subnets and peerings. Every other shard is a VPC id (32 hex digits)."""


class Put(NamedTuple):
    """Write `record` under `key` in this node's own chain of `shard`.

    A tuple and not a dataclass: an import makes a million.
    """

    shard: str
    key: bytes
    record: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `key` from this node's own chain of `shard`. Deleting what is not there is a no-op."""

    shard: str
    key: bytes


Op: TypeAlias = Put | Delete


class Touched(NamedTuple):
    """Keys under which one node's records may have changed since they were last read."""

    node: NodeId
    shard: str
    keys: tuple[bytes, ...]
    """Each at most once."""


class Records(Protocol):
    """Where the view reads what nodes hold. Records are not copied: they stay where they are."""

    def read(self, node: NodeId, shard: str, key: bytes) -> bytes | None:
        """The node's record under the key, as it is now."""

    def read_all(self, node: NodeId, shard: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """As `read` for each of the keys, in their order."""

    def held(self, node: NodeId) -> Iterator[Touched]:
        """Every key of the node, shard by shard. The caller changes nothing meanwhile."""
