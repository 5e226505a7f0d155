"""Time as a thread has it on a machine of its own, for tests on real sockets that claim durations.

What is to happen within a second takes longer where others want the processors as well, and what
is told by a deadline (a peer that was silent for three seconds) is told of peers that only waited
for their turn. Here the clock stands still while the thread is ready to run and does not, or is
stopped: what a test claims of durations, and the deadlines of what it tests, hold whatever else
the machine does.

    pytestmark = OWN_TIME

Where no socket is needed a virtual clock (`autojump_clock`) is better still.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
import trio


class OwnTime(trio.abc.Clock):
    """The monotonic clock, less what this thread has waited for a processor.

    The kernel counts it (the second number of schedstat, ns); where it does not, nothing is taken
    off. What a hypervisor takes away, or who stops the process, is not in that number: so no more
    passes than the thread has computed, and slept as long as it meant to.
    """

    def start_clock(self) -> None:
        try:
            self._stat: int | None = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._stat = None
        self._own_ns = time.monotonic_ns()
        self._sleep_ns = 0.0  # what the thread may be about to sleep
        self._read_ns = self._awake_ns()
        self._computed_ns = time.thread_time_ns()

    def _awake_ns(self) -> int:
        now_ns = time.monotonic_ns()
        if self._stat is not None:
            now_ns -= int(os.pread(self._stat, 100, 0).split()[1])
        return now_ns

    def current_time(self) -> float:
        awake_ns, computed_ns = self._awake_ns(), time.thread_time_ns()
        passed_ns = min(awake_ns - self._read_ns, computed_ns - self._computed_ns + self._sleep_ns)
        self._own_ns += int(max(0, passed_ns))
        self._read_ns, self._computed_ns, self._sleep_ns = awake_ns, computed_ns, 0.0
        return self._own_ns / 1e9

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Asked by trio when there is nothing to do until then."""
        left_s = deadline - self.current_time()
        self._sleep_ns = max(0.0, left_s) * 1e9 + 1
        return left_s

    def close(self) -> None:
        if self._stat is not None:
            os.close(self._stat)
            self._stat = None


def _run(*args: Any, clock: trio.abc.Clock | None = None, **options: Any) -> Any:
    if clock is not None:
        return trio.run(*args, clock=clock, **options)
    own = OwnTime()
    try:
        return trio.run(*args, clock=own, **options)
    finally:
        own.close()


OWN_TIME = pytest.mark.trio(run=_run)
"""In place of `pytest.mark.trio`; a test that asks for `autojump_clock` gets that one."""
