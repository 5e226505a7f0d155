"""What goes wrong, and when: the scenario's events and those left to chance.

Every fault ends by itself or at `end`, when all links are whole and every node runs again that is
to.
"""

from __future__ import annotations

from sim.core.cuts import LinkFaults
from sim.core.episodes import Episodes
from sim.core.events import Cut, Flap, Join, Oneway, Part, Rotate, Slow
from sim.core.membership import Membership
from sim.core.mishaps import NodeFaults
from sim.core.stage import Stage


class Faults:
    """The faults of one run."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._links = LinkFaults(stage)
        self._nodes = NodeFaults(stage)
        self._members = Membership(stage)

    @property
    def count(self) -> int:
        """Those that have happened."""
        return self._stage.count

    @property
    def episodes(self) -> Episodes:
        return self._stage.episodes

    def schedule(self) -> None:
        """Put everything on the clock."""
        for event in self._stage.scenario.events:
            match event:
                case Cut() | Oneway() | Slow() | Flap():
                    self._links.schedule(event)
                case Join() | Part() | Rotate():
                    self._members.schedule(event)
                case _:
                    self._nodes.schedule(event)
        self._links.schedule_chance()
        self._nodes.schedule_chance()
        self._members.schedule_chance()
        self._nodes.mind()
        self._members.mind()

    def frame_sent(self, sender: int, receiver: int, frame: bytes) -> None:
        """For the hostile, who hear what they send and get."""
        for index in (sender, receiver):
            if (hostile := self._nodes.hostiles.get(index)) is not None:
                hostile.heard(frame)

    @property
    def hostile(self) -> bool:
        """Whether somebody is at this moment."""
        return bool(self._nodes.hostiles)

    def end(self) -> None:
        """Heal all links, start all nodes."""
        self._stage.over = True
        self._links.end()
        self._members.end()
        self._nodes.end()
        self._stage.witness.changed()
