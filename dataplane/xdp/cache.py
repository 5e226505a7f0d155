"""Compiled programs on disk, so that a compiler runs once and not at every start of a node.

Rules of this file:
- A file's name is the hash of everything that its contents follow from: the source with all
  headers, the compiler and what it is told, the kernel, and the code of ours that makes programs of
  it. What differs in any of these is another file: nothing in here can become untrue.
- What is in the directory goes into the kernel: the directory and the files have to be this user's,
  and writable by nobody else. Whatever is not as it should be counts as not there.
- The cache is spared without a word: where nothing can be read programs are compiled, and where
  nothing can be written they are compiled again the next time.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from dataplane.backend import Hook
from dataplane.xdp import headers, layout, programs
from dataplane.xdp.programs import Programs

DEFAULT_DIRECTORY = Path("/var/cache/weft")
ENTRIES_MAX = 16
"""Of 90 kB each: of a machine's checkouts and versions, those used last."""
_PREFIX = "programs-"
_ENTRY_BYTES_MAX = 1 << 20
_COMPILER = ("libbcc", "libclang", "libLLVM", "libbpf")
_FOREIGN_WRITE = stat.S_IWGRP | stat.S_IWOTH


def directory() -> Path:
    """The one that systemd has made for the service, or the system's."""
    return Path(os.environ.get("CACHE_DIRECTORY") or DEFAULT_DIRECTORY)


def key(hook: Hook = "xdp") -> str:
    """What programs compiled now would be kept under.

    The compiler is dozens of megabytes in several libraries: loading them tells which these are,
    and their sizes and times stand for their contents. OSError if it cannot be loaded.
    """
    digest = hashlib.sha256()
    for part in _parts(hook):
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _parts(hook: Hook) -> Iterator[bytes]:
    text = programs.source(hook)
    yield text.encode()
    yield json.dumps([headers.ours(), headers.search_paths(), layout.PROGRAMS[hook]]).encode()
    for path, contents in sorted(headers.included(text).items()):
        yield path.encode()
        yield contents
    for module in (programs.__file__, __file__):
        yield Path(module).read_bytes()
    machine = os.uname()
    yield repr((machine.release, machine.version, machine.machine)).encode()
    told = [item for item in sorted(os.environ.items()) if item[0].startswith("BCC_")]
    yield repr([item for item in told if item[0] != programs.TREE_VARIABLE]).encode()
    for file in _compiler():
        found = file.stat()
        yield f"{file} {found.st_size} {found.st_mtime_ns}".encode()


def _compiler() -> list[Path]:
    """The files that make programs of text: libraries as they are in this process, and BCC's own
    Python."""
    ctypes.CDLL("libbcc.so.0")
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = {Path(fields[5]) for line in lines if len(fields := line.split(maxsplit=5)) > 5}
    spec = importlib.util.find_spec("bcc")
    package = Path(spec.origin).parent.glob("*.py") if spec and spec.origin else ()
    return sorted([*(path for path in mapped if path.name.startswith(_COMPILER)), *package])


# ---- entries ------------------------------------------------------------------------------------


def read(where: Path, name: str) -> Programs | None:
    """What was kept under a key; None if nothing was, or not all of it is there."""
    try:
        _require_own(where.lstat(), stat.S_ISDIR)
        fd = os.open(where / f"{_PREFIX}{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "rb") as file:  # noqa: PTH123
            _require_own(os.fstat(fd), stat.S_ISREG)
            raw = file.read(_ENTRY_BYTES_MAX)
            os.utime(fd)
        checksum, body = raw[:64], raw[64:]
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            return None
        document = json.loads(body)
        return Programs(
            tuple((map, (shape[0], shape[1], shape[2])) for map, shape in document["maps"]),
            {program: bytes.fromhex(code) for program, code in document["instructions"].items()},
        )
    except OSError:
        return None


def keep(where: Path, name: str, made: Programs) -> bool:
    """Keep programs under a key, whole or not at all. Whether they were."""
    document = {
        "maps": made.maps,
        "instructions": {program: code.hex() for program, code in made.instructions.items()},
    }
    body = json.dumps(document).encode()
    try:
        where.mkdir(mode=0o700, exist_ok=True)
        _require_own(where.lstat(), stat.S_ISDIR)
        fd, path = tempfile.mkstemp(prefix="new-", dir=where)
        try:
            with open(fd, "wb") as file:  # noqa: PTH123
                file.write(hashlib.sha256(body).hexdigest().encode() + body)
            Path(path).rename(where / f"{_PREFIX}{name}")
        except BaseException:
            Path(path).unlink(missing_ok=True)
            raise
    except OSError:
        return False
    with contextlib.suppress(OSError):  # another process may be doing the same
        _drop_oldest(where)
    return True


def drop(where: Path, name: str) -> None:
    with contextlib.suppress(OSError):
        (where / f"{_PREFIX}{name}").unlink()


def _drop_oldest(where: Path) -> None:
    """What a process that was killed has not finished writing grows old like the others."""
    used_last = sorted(where.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in used_last[:-ENTRIES_MAX]:
        path.unlink(missing_ok=True)


def _require_own(found: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _FOREIGN_WRITE:
        raise PermissionError("not this user's alone")
