"""What a lab remembers between commands: /run/weft-lab/NAME/lab.json, for root only.

The file is replaced as a whole, so a reader sees the former or the new state. A lock file beside
the directory makes commands that change a lab wait for each other; the kernel drops it with the
process that held it, so a killed command blocks nobody.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Any, Final

from mesh.core.errors import NotFound, NotReady, Refused
from sim.lab.processes import ProcessId
from sim.lab.topology import Topology

STATE_ROOT: Final = Path("/run/weft-lab")
STATE_VERSION: Final = 2
STATE_NAME: Final = "lab.json"
AGAIN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class State:
    """`ready` is False from the first namespace until `up` has succeeded."""

    topology: Topology
    ready: bool = False
    partitions: tuple[tuple[str, ...], ...] = ()
    processes: dict[str, ProcessId] = field(default_factory=dict)  # by gateway

    def with_process(self, gateway: str, process: ProcessId) -> State:
        return replace(self, processes={**self.processes, gateway: process})


def lab_directory(name: str) -> Path:
    return STATE_ROOT / name


def exists(name: str) -> bool:
    return lab_directory(name).exists()


def names() -> list[str]:
    """Every lab of this machine, half made ones too."""
    try:
        return sorted(path.name for path in STATE_ROOT.iterdir() if path.is_dir())
    except (FileNotFoundError, PermissionError):
        return []


def make_directory(topology: Topology) -> None:
    """A directory for the lab, with one for each gateway. Raises Refused when it is there."""
    STATE_ROOT.mkdir(mode=0o700, exist_ok=True)
    directory = lab_directory(topology.name)
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise Refused(
            f"lab {topology.name} is up already; take it down first or choose another --name"
        ) from None
    for gateway in topology.gateways:
        (directory / gateway.name).mkdir(mode=0o700)


def remove_directory(name: str) -> None:
    """Remove all of it. One that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(lab_directory(name))


def save(state: State) -> None:
    path = lab_directory(state.topology.name) / STATE_NAME
    document = {
        "version": STATE_VERSION,
        "ready": state.ready,
        "partitions": state.partitions,
        "processes": {
            name: [process.pid, process.start_ticks]
            for name, process in sorted(state.processes.items())
        },
        "topology": state.topology.to_json(),
    }
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=1))
    fresh.replace(path)


def load(name: str) -> State:
    """What was saved last.

    Raises:
        NotFound: no such lab.
        NotReady: its file cannot be read, or is of another version of this program.
    """
    path = lab_directory(name) / STATE_NAME
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"there is no lab {name}; make one with `weft lab up`") from None
    except PermissionError:
        raise NotReady(f"{path} cannot be read; run this as root") from None
    except (OSError, ValueError) as error:
        raise NotReady(f"{path} cannot be read: {error}; take the lab down") from None
    try:
        return _parse(document)
    except (KeyError, TypeError, ValueError):
        raise NotReady(
            f"{path} is not of this version of weft; take the lab down and up again"
        ) from None


def _parse(document: dict[str, Any]) -> State:
    if document["version"] != STATE_VERSION:
        raise ValueError(document["version"])
    return State(
        topology=Topology.from_json(document["topology"]),
        ready=bool(document["ready"]),
        partitions=tuple(tuple(group) for group in document["partitions"]),
        processes={
            name: ProcessId(int(pid), int(ticks))
            for name, (pid, ticks) in document["processes"].items()
        },
    )


_taken: Final[dict[tuple[str, int], FileIO]] = {}
"""(name, thread) -> the lock that it took last"""


@contextlib.contextmanager
def locked(name: str, patience_s: float = 0.0) -> Iterator[None]:
    """Be the only one to change this lab, once who changes it now has had its time.

    Raises:
        Refused: another command is changing it.
        NotReady: the state directory is not ours to write; not root.
    """
    lock = _wait_lock(name, patience_s)
    try:
        yield
    finally:
        if not exists(name):
            # Nothing stays behind. Whoever waits for this file looks whether it is still there.
            _lock_path(name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                STATE_ROOT.rmdir()
        lock.close()
        _taken.pop((name, threading.get_ident()), None)


def _lock_path(name: str) -> Path:
    return STATE_ROOT / f".{name}.lock"


def _wait_lock(name: str, patience_s: float) -> FileIO:
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return _take_lock(name)
        except Refused:
            if time.monotonic() >= deadline_s:
                raise
        time.sleep(AGAIN_S)


def _take_lock(name: str) -> FileIO:
    """The lock file that has the name now, open and locked."""
    path = _lock_path(name)
    mine = name, threading.get_ident()
    if mine in _taken:
        # A Ctrl-C came between two lines of giving it back.
        _taken[mine].close()
    while True:
        try:
            STATE_ROOT.mkdir(mode=0o700, exist_ok=True)
            lock = _taken[mine] = FileIO(path, "w", opener=_open_private)
        except PermissionError:
            raise NotReady(f"{STATE_ROOT} cannot be written; run this as root") from None
        except FileNotFoundError:
            continue  # a lab that went down just now took the directory along
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return lock
        except BlockingIOError:
            lock.close()
            raise Refused(f"another command is changing lab {name}; wait for it") from None
        except FileNotFoundError:
            pass  # taken away between opening and locking
        lock.close()


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
