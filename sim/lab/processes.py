"""Processes of a lab: started inside a namespace, known by pid and start time, ended for certain.

A lab outlives the command that made it, so its processes are remembered in a file. A pid alone may
belong to somebody else by then; a pid with the tick at which it started may not. Signals go through
a pidfd, which is opened first and checked afterwards, so there is no gap between check and signal.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sim.lab.netns import NETNS_DIR, enter_command
from sim.lab.signals import postponed

TERM_GRACE_S: Final = 5.0  # an orderly stop of a node; then it is killed
KILL_GRACE_S: Final = 5.0  # SIGKILL works at once, unless the kernel hangs
LOG_TAIL_LINES: Final = 3


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process of this machine since its boot: `start_ticks` is field 22 of /proc/PID/stat."""

    pid: int
    start_ticks: int


@dataclass(frozen=True, slots=True)
class _Child:
    netns: str
    process: ProcessId
    popen: subprocess.Popen[bytes]


# Children of this very process have to be waited for, or they stay as zombies until it exits.
_children: dict[int, _Child] = {}


def identify(pid: int) -> ProcessId | None:
    """The process that has this pid now; None when there is none or only its remains."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command in brackets and may hold blanks and brackets itself.
    fields = stat[stat.rindex(")") + 2 :].split()
    if fields[0] in ("Z", "X"):
        return None
    return ProcessId(pid, int(fields[19]))


def alive(process: ProcessId) -> bool:
    return identify(process.pid) == process


def waited_s(process: ProcessId) -> float:
    """How long it could have run so far and did not, since others had the processors; 0 where the
    kernel does not count that (/proc/PID/schedstat, second field)."""
    try:
        return int(Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def spawn(
    netns: str, argv: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> ProcessId:
    """Start a command inside a namespace, detached from the terminal and its Ctrl-C.

    Args:
        log: where its output is appended.
        environment: variables beside those of this process.

    Raises:
        OSError: it could not be started at all.
    """
    with log.open("ab") as output, postponed():
        child = subprocess.Popen(
            enter_command(netns, argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        # One that has ended already keeps its pid until it is waited for, so no other can have it.
        process = identify(child.pid) or ProcessId(child.pid, 0)
        _children[child.pid] = _Child(netns, process, child)
    return process


def send_signal(process: ProcessId, number: signal.Signals) -> bool:
    """Send a signal to this very process. False: it has ended."""
    with _pidfd(process) as fd:
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        return True


def wait_ended(process: ProcessId, timeout_s: float) -> bool:
    """Wait until a process has ended. False: it is still there after `timeout_s`."""
    with _pidfd(process) as fd:
        ended = fd is None or _readable(fd, timeout_s)
    if ended:
        _reap(process.pid)
    return ended


def wait_exit_code(process: ProcessId, timeout_s: float) -> int | None:
    """Wait for a child that `spawn` started in this process; None: it is still running."""
    try:
        return _children[process.pid].popen.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def end(processes: Iterable[ProcessId]) -> list[ProcessId]:
    """SIGTERM to all, SIGKILL to those that do not heed it; returns who survived even that."""
    left = list(processes)
    for number, grace_s in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, KILL_GRACE_S)):
        for process in left:
            send_signal(process, number)
        deadline_s = time.monotonic() + grace_s
        left = [p for p in left if not wait_ended(p, max(0.0, deadline_s - time.monotonic()))]
    return left


def kill(process: ProcessId) -> bool:
    """kill -9, and wait until it is gone. False: it had ended before."""
    was_there = send_signal(process, signal.SIGKILL)
    wait_ended(process, KILL_GRACE_S)
    return was_there


def in_namespaces(names: Iterable[str]) -> list[ProcessId]:
    """Every process that lives in one of these namespaces, this one excepted.

    Children that this process has started for one are among them even before they are inside.
    """
    wanted = set(names)
    inodes = set()
    for name in wanted:
        with contextlib.suppress(OSError):
            status = (NETNS_DIR / name).stat()
            inodes.add((status.st_dev, status.st_ino))
    found = {c.process for c in _children.values() if c.netns in wanted and alive(c.process)}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            status = (entry / "ns" / "net").stat()
        except OSError:
            continue
        process = identify(int(entry.name))
        if (status.st_dev, status.st_ino) in inodes and process is not None:
            found.add(process)
    return sorted(found, key=lambda process: process.pid)


def mentioning(text: str) -> list[ProcessId]:
    """Every process with a text in its command line, this one excepted."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            process = identify(int(entry.name))
            if process is not None and text.encode() in (entry / "cmdline").read_bytes():
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def log_tail(log: Path) -> str:
    """The last lines of a log in one line, for error messages."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return " / ".join(line.strip() for line in lines[-LOG_TAIL_LINES:]) or "its log is empty"


@contextlib.contextmanager
def _pidfd(process: ProcessId) -> Iterator[int | None]:
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd if alive(process) else None
    finally:
        os.close(fd)


def _readable(fd: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child.popen.poll() is not None:
        del _children[pid]
