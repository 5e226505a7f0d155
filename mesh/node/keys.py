"""Private keys on disk: the node's key and the mesh's root key, each an Ed25519 seed.

A key file is one line, `weft-KIND-key-1 HEX`. It is created with mode 0600 in a directory of mode
0700 and refused when either is wider, because a node that starts on a readable key has a key that
is no longer its own. No message of this module holds any part of a file's content.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path
from typing import Final, Literal, TypeAlias

from mesh.core.errors import BadInput

SEED_BYTES: Final = 32
KEY_FILE_MODE: Final = 0o600
KEY_DIRECTORY_MODE: Final = 0o700

KeyKind: TypeAlias = Literal["node", "root"]
"""Written into the file, so that one key is never taken for the other."""

_FILE_BYTES_MAX: Final = 128  # the one line has 81 bytes at most
_LINE = re.compile(rb"weft-(node|root)-key-1 ([0-9a-f]{64})\n?")


class KeyFileError(BadInput):
    """A key file cannot be used as it is; nothing was read into the node or changed."""


def new_seed() -> bytes:
    """32 bytes from the system's generator."""
    return secrets.token_bytes(SEED_BYTES)


def make_private_directory(path: Path) -> None:
    """Create `path` with mode 0700, whatever the umask is. Raises FileExistsError, OSError."""
    path.mkdir(mode=KEY_DIRECTORY_MODE)
    path.chmod(KEY_DIRECTORY_MODE)


def check_private_directory(path: Path) -> None:
    """Raises KeyFileError when others than the owner can enter or list `path`."""
    try:
        status = path.stat()
    except OSError as error:
        raise KeyFileError(
            f"{path}: cannot be used ({error.strerror}): give the directory"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        raise KeyFileError(f"{path}: is no directory: give the directory that holds the keys")
    _check_private(path, status, KEY_DIRECTORY_MODE)


def write_seed(path: Path, kind: KeyKind, seed: bytes) -> None:
    """Create the key file with mode 0600 and wait until it is on disk.

    Raises:
        KeyFileError: there is a file already (it stays as it is), or the directory is too open.
    """
    if len(seed) != SEED_BYTES:
        raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    check_private_directory(path.parent)
    try:
        write_file(path, f"weft-{kind}-key-1 {seed.hex()}\n".encode())
    except FileExistsError:
        raise KeyFileError(f"{path}: is there already: a key is never overwritten") from None


def next_seed(path: Path) -> bytes | None:
    """The node key that is to take the place of the one at `path`; None: there is none, or it was
    not written whole."""
    try:
        return read_seed(_next_to(path), "node")
    except KeyFileError:
        return None


def prepare_next(path: Path) -> bytes:
    """Have a key on disk beside the node key at `path`, to take its place: the one that is there,
    or else a new one. Raises KeyFileError or OSError."""
    seed = next_seed(path)
    if seed is None:
        seed = new_seed()
        _next_to(path).unlink(missing_ok=True)
        write_seed(_next_to(path), "node", seed)
        sync_directory(path.parent)
    return seed


def take_next(path: Path) -> None:
    """Put the next key in the place of the node key at `path`, at once. Raises OSError."""
    _next_to(path).replace(path)
    sync_directory(path.parent)


def _next_to(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def sync_directory(directory: Path) -> None:
    """Wait until the names in the directory are on disk. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_private(path: Path, data: bytes) -> None:
    """Make `data` the content of the file, mode 0600, at once or not at all. Raises OSError."""
    fresh = path.with_name(f"{path.name}.new")
    fresh.unlink(missing_ok=True)
    write_file(fresh, data)
    fresh.replace(path)


def write_file(path: Path, data: bytes) -> None:
    """Create the file with mode 0600 and wait until it is on disk. Raises OSError, also when there
    is one."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, KEY_FILE_MODE), "wb") as file:
        os.fchmod(file.fileno(), KEY_FILE_MODE)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def read_seed(path: Path, kind: KeyKind) -> bytes:
    """The 32 bytes of a key file.

    Raises:
        KeyFileError: missing, readable by others, somebody else's, not a key, or of another kind.
    """
    check_private_directory(path.parent)
    try:
        # O_NONBLOCK: a FIFO in the key's place must not hang the start.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise KeyFileError(
            f"{path}: the {kind} key cannot be read ({error.strerror}): restore it from a backup"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise KeyFileError(f"{path}: is no regular file: put the {kind} key there")
        _check_private(path, status, KEY_FILE_MODE)
        raw = file.read(_FILE_BYTES_MAX)
    match = _LINE.fullmatch(raw)
    if match is None:
        raise KeyFileError(f"{path}: holds no key of this version: restore it from a backup")
    if match[1].decode() != kind:
        raise KeyFileError(f"{path}: holds a {match[1].decode()} key, not a {kind} key: swap them")
    return bytes.fromhex(match[2].decode())


def _check_private(path: Path, status: os.stat_result, mode: int) -> None:
    if stat.S_IMODE(status.st_mode) & ~mode:
        raise KeyFileError(
            f"{path}: mode {stat.S_IMODE(status.st_mode):04o} lets others in: run"
            f" `chmod {mode:o} {path}`, and change the key if others were on this machine"
        )
    if status.st_uid not in (os.geteuid(), 0):
        raise KeyFileError(
            f"{path}: belongs to user {status.st_uid}, not to the one that runs this"
            f" ({os.geteuid()}): change its owner"
        )
