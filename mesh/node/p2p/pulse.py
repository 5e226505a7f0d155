"""Who is still there: silence on any connection, judged by one timer.

Rules of this file
- Any byte received counts as a sign of life.
- Silence is counted in ticks of our own clock, and a tick that came late counts for nothing: a node
  that was busy itself does not take its peers for dead.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from mesh.node.p2p.tcp import Conduit

TICK_S = 0.4
TICKS_PER_BEAT = 2
SILENT_TICKS = 6
"""Silence that ends a connection: 2.4 to 2.8 s, three heartbeats."""

_MOVING_TICKS = 2


class Watch:
    """The pulse of one connection."""

    def __init__(self, conduit: Conduit) -> None:
        self.kill: Callable[[str], None] = lambda _: conduit.abort()
        """Called with a reason when the other end has been silent for too long."""
        self._conduit = conduit
        self._heard_s = trio.current_time()
        self._heard_bytes = conduit.rx_bytes
        self._silent_ticks = 0

    @property
    def silent_s(self) -> float:
        """Since when nothing has been received, to within a tick."""
        if self._conduit.rx_bytes != self._heard_bytes:
            return 0.0
        return trio.current_time() - self._heard_s

    @property
    def moving(self) -> bool:
        """Whether the other end has shown itself within the last second."""
        return self._silent_ticks <= _MOVING_TICKS

    def tick(self, *, on_time: bool) -> None:
        if self._conduit.rx_bytes != self._heard_bytes:
            self._heard_bytes, self._heard_s = self._conduit.rx_bytes, trio.current_time()
            self._silent_ticks = 0
        elif on_time:
            self._silent_ticks += 1
            if self._silent_ticks >= SILENT_TICKS:
                self.kill("silent")


class Pulse:
    """The timer of all connections of a node."""

    def __init__(self) -> None:
        self.watches: dict[Conduit, Watch] = {}

    def watch(self, conduit: Conduit) -> Watch:
        """Watch `conduit` until it is forgotten."""
        self.watches[conduit] = Watch(conduit)
        return self.watches[conduit]

    def forget(self, conduit: Conduit) -> None:
        self.watches.pop(conduit, None)

    async def run(self, beat: Callable[[], None]) -> None:
        """Tick for ever, and call `beat` every TICKS_PER_BEAT ticks."""
        ticks, due_s = 0, trio.current_time()
        while True:
            due_s += TICK_S
            await trio.sleep_until(due_s)
            # What arrived while we were busy has not been read yet.
            on_time = trio.current_time() - due_s < TICK_S / 2
            if not on_time:
                due_s = trio.current_time()
            for watch in list(self.watches.values()):
                watch.tick(on_time=on_time)
            ticks += 1
            if ticks % TICKS_PER_BEAT == 0:
                beat()
