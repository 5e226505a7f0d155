"""What one member may write, however large the mesh: everybody refuses what is beyond it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from crdt.delta import RECORD_BYTES_MAX
from mesh.core.ops import MESH_SHARD

MESH_RECORDS: Final = 10_000
VPC_RECORDS: Final = 150_000
"""Quotas of a chain where the admission names none: a site's endpoints in one VPC fit many times
over. Nodes of every version must agree on them, so they never change."""
RECORD_BYTES_MEAN_MAX: Final = 1024
"""What the keys and entries of a chain may take for each record that it may hold, on average: an
endpoint with a name and a few labels takes 100, and none that people write more than 2,400."""
QUOTA_MAX: Final = 1_000_000
"""The most that an admission may grant a chain. Whoever holds one so large pays 280 MB for it, and
a second of one core for each time it is verified whole; its 2^15 buckets are far from their bound
(`crdt.root`)."""
CHAINS_PER_NODE_MAX: Final = 4096
"""Shards in which one node has written: VPCs with endpoints at one site."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """Records that a chain of one node may hold, in the mesh shard and in each VPC's."""

    mesh: int = MESH_RECORDS
    vpc: int = VPC_RECORDS

    def of(self, shard: str) -> int:
        """Records that a chain of `shard` may hold."""
        return self.mesh if shard == MESH_SHARD else self.vpc


USUAL_QUOTAS: Final = Quotas()


def bytes_of(quota: int) -> int:
    """Bytes that the keys and entries of a chain of so many records may take: a record more than by
    their mean, so that there is room for any where only one is granted."""
    return quota * RECORD_BYTES_MEAN_MAX + RECORD_BYTES_MAX


def shard_is_known(shard: str) -> bool:
    """Whether `shard` is of a form this version knows: the mesh's or a VPC id."""
    return shard == MESH_SHARD or (len(shard) == 32 and not shard.strip("0123456789abcdef"))
