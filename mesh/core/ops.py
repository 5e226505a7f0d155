"""The plain values that pass between the writer, the replica and the view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

NodeId: TypeAlias = bytes
"""16 bytes: the truncated SHA-256 of the node's first public key. Text form: 32 hex digits."""

MESH_SHARD = "mesh"
"""The shard of sites, VPCs, subnets and peerings. Every other shard is a VPC id (32 hex digits)."""


@dataclass(frozen=True, slots=True)
class Put:
    """Write `record` under `key` in this node's own chain of `shard`."""

    shard: str
    key: bytes
    record: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `key` from this node's own chain of `shard`. Deleting what is not there is a no-op."""

    shard: str
    key: bytes


Op: TypeAlias = Put | Delete


class Change(NamedTuple):
    """One node's record for a key became `record` (None: the node holds none any more)."""

    node: NodeId
    shard: str
    key: bytes
    record: bytes | None
