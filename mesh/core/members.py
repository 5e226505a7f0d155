"""A member as the roster's statements make it: what every other module may know about a node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from mesh.core.bounds import USUAL_QUOTAS, Quotas
from mesh.core.ops import NodeId

MemberState: TypeAlias = Literal["active", "retired", "forgotten"]
"""Active: counts for everything. Retired: its records are read as before, traffic does not go to
it. Forgotten: its records are refused by all. A member never goes back to an earlier state."""


@dataclass(frozen=True, slots=True)
class Member:
    """One node of the mesh. A node never changes its site."""

    node: NodeId
    name: str
    site: str
    key: bytes
    """32 bytes: the Ed25519 public key that signs for the node now."""
    state: MemberState
    admin: bool
    forked: bool = False
    """Whether it is proven that the node signed two histories of one epoch."""
    quotas: Quotas = USUAL_QUOTAS
    """How many records its chains may hold."""
    rotations: int = 0
    """How often its key was replaced."""
    contested: bool = False
    """Whether one of its keys was replaced by two others: somebody else had it."""
