"""What one member may write, however large the mesh: everybody refuses what is beyond it."""

from __future__ import annotations

from mesh.core.ops import MESH_SHARD

MESH_RECORDS_MAX = 10_000
VPC_RECORDS_MAX = 150_000
"""Quotas a chain: a site's endpoints in one VPC fit many times over."""
CHAINS_PER_NODE_MAX = 4096
"""Shards in which one node has written: VPCs with endpoints at one site."""


def quota(shard: str) -> int:
    """Records that a chain of `shard` may hold."""
    return MESH_RECORDS_MAX if shard == MESH_SHARD else VPC_RECORDS_MAX


def shard_is_known(shard: str) -> bool:
    """Whether `shard` is of a form this version knows: the mesh's or a VPC id."""
    return shard == MESH_SHARD or (
        len(shard) == 32 and all(digit in "0123456789abcdef" for digit in shard)
    )
