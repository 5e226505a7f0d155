"""What nodes of a run are given: who each is, and what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crdt.lattice import Lattice
from mesh.core import wire
from mesh.core.effects import Effect, Stored
from mesh.core.ops import NodeId, Op
from sim.core.chance import ChanceOf
from sim.core.clock import SECOND_NS, Clock
from sim.core.network import Network
from sim.core.signing import Signatures

WALL_START_NS = 1_767_225_600 * SECOND_NS
"""Wall-clock time at the start of every run: 2026-01-01, so that runs do not depend on today."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a node is. `index` is its number in the run and in the network."""

    index: int
    name: str
    site: str
    seed: bytes
    """of its first key, as is `key`"""
    key: bytes
    node: NodeId
    underlay: str
    release: int
    """that it runs at first"""

    @property
    def addrs(self) -> tuple[str, ...]:
        return (f"/ip4/{self.underlay}/tcp/4600",)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a process shows to whoever it shakes hands with."""

    key: bytes
    rotations: Sequence[bytes]
    """those that led to the key"""
    speaks: wire.Versions


class Probe(Protocol):
    """Is told what nodes do. Nodes are given by index."""

    def started(self, node: int, lattice: Lattice) -> None: ...

    def stopped(self, node: int, store_failed: bool) -> None: ...

    def tidying(self, node: int, ops: Sequence[Op]) -> None:
        """The node is about to write these of its own accord."""

    def wrote(self, node: int, ops: Sequence[Op]) -> None:
        """Own writes were taken, in memory."""

    def drained(self, node: int, effects: Sequence[Effect], lattice: Lattice) -> None:
        """These effects are to be carried out; the lattice is as they say."""

    def stored(self, node: int, batch: Sequence[Stored]) -> None:
        """These effects are on the disk, in one transaction."""


@dataclass(frozen=True, slots=True)
class World:
    """What all nodes of a run share."""

    clock: Clock
    network: Network
    chance_of: ChanceOf
    signatures: Signatures
    probe: Probe
    hosted: bool
    """whether a node keeps only the VPCs that its site has to do with; else every shard"""
    views: int
    """so many nodes, the first, keep views and rows; the others only replicate"""
    nodes: list[NodeId]
    """by index; a clone has an index of its own and its original's id"""
    shown: dict[int, Shown] = field(default_factory=dict)
    """by index, of every process that runs or ran"""
