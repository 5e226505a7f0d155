"""What everything that goes wrong in a run has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh.core.ops import NodeId
from sim.core.chance import Chance
from sim.core.clock import SECOND_NS, Clock
from sim.core.episodes import Episodes
from sim.core.network import Network
from sim.core.node import Machine
from sim.core.scenario import Scenario

SHORTEST_NS = SECOND_NS // 10


class Witness(Protocol):
    """Is told what the checks have to know of."""

    def changed(self) -> None:
        """A fault began or ended."""

    def disk_lost(self, index: int) -> None:
        """A disk was replaced by an older copy, or has lost something."""

    def cloned(self, node: NodeId) -> None:
        """Two processes run as this node."""

    def hostile(self, node: NodeId) -> None:
        """The node's key is in the wrong hands: nothing of it is promised any more."""

    def rotated(self, index: int) -> None:
        """A node has a new key, and named what of the old one counts."""

    def parted(self, node: NodeId, forgotten: bool) -> None:
        """The node goes for good: only what others have of it counts, or nothing."""


@dataclass(slots=True)
class Stage:
    """See the module. `over`: the time of faults has ended."""

    scenario: Scenario
    machines: Sequence[Machine]
    network: Network
    clock: Clock
    chance: Chance
    episodes: Episodes
    witness: Witness
    count: int = 0
    """faults that have happened"""
    over: bool = False

    def at(self, at_ns: int, action: Callable[[], None]) -> None:
        """Unless the time of faults is over by then."""
        self.clock.at(at_ns, lambda: None if self.over else action())

    def later(self, delay_ns: int, action: Callable[[], None]) -> None:
        self.at(self.clock.now_ns + delay_ns, action)

    def some_time_ns(self) -> int:
        return int(self.scenario.duration_ns * self.chance.random())

    def some_length_ns(self, longest_ns: int) -> int:
        """Most short, some long: heartbeats are missed in some, in others frames only wait."""
        return SHORTEST_NS + int(longest_ns * self.chance.random() ** 2)

    def index_of(self, name: str) -> int:
        return next(m.identity.index for m in self.machines if m.identity.name == name)
