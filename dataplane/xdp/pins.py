"""Where an instance's maps, programs and links live: /sys/fs/bpf/weft/vABI/INSTANCE/.

Names: `map-NAME`, `prog-NAME`, `link-IFINDEX`. The directories are ours alone (0700). A pin is what
keeps an object alive after its process: removing the directory ends the data plane.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dataplane.backend import DataplaneError, Unavailable
from dataplane.xdp import kernel, layout

BPFFS = Path("/sys/fs/bpf")
_BPFFS_MAGIC = 0xCAFE4A11
_MAKE_ATTEMPTS = 100
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,128}")


def sanitised(instance: str) -> str:
    """An instance name as a directory name; bpffs allows no dots."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", instance)[:128]
    if not _INSTANCE.fullmatch(name):
        raise ValueError(f"not an instance name: {instance!r}")
    return name


def require_bpffs() -> None:
    """Mount bpffs where it is not mounted; Unavailable if that cannot be done."""
    if is_bpffs(BPFFS):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    BPFFS.mkdir(parents=True, exist_ok=True)
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, None) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise Unavailable(f"no bpffs at {BPFFS}, and mounting it failed: {reason}")


def is_bpffs(path: Path) -> bool:
    """Whether the file system at a path is bpffs, by its magic number (statfs(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)  # struct statfs is 120 bytes; f_type comes first
    if libc.statfs(os.fsencode(path), buffer) != 0:
        return False
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], "little") == _BPFFS_MAGIC


class PinDir:
    """One instance's directory, and those of the same instance under older ABIs."""

    def __init__(self, instance: str) -> None:
        self._name = sanitised(instance)
        self.root = BPFFS / "weft"
        self.path = self.root / f"v{layout.ABI}" / self._name

    def make(self) -> None:
        """Make the directories, though another instance that ends may prune them meanwhile."""
        for attempt in range(_MAKE_ATTEMPTS):
            try:
                for path in (self.root, self.path.parent, self.path):
                    path.mkdir(mode=0o700, exist_ok=True)
                    path.chmod(0o700)
                return
            except FileNotFoundError:
                if attempt == _MAKE_ATTEMPTS - 1:
                    raise

    def older(self) -> list[Path]:
        """This instance's directories under former ABIs."""
        return [path for abi, path in self._others() if abi < layout.ABI]

    def newer(self) -> Path | None:
        """Its directory under a later ABI, if that forwards. One that has never come to that is
        left for when its version comes again."""
        for abi, path in self._others():
            if abi > layout.ABI and any(links_in(path)):
                return path
        return None

    def _others(self) -> list[tuple[int, Path]]:
        """Its directories under other ABIs, with these."""
        found = [
            (int(path.name[1:]), path / self._name)
            for path in self.root.glob("v*")
            if path.name[1:].isdecimal()
        ]
        return [(abi, path) for abi, path in sorted(found) if abi != layout.ABI and path.is_dir()]

    def program(self, name: str) -> int:
        return kernel.get_pinned(str(self.path / f"prog-{name}"))

    def links(self) -> Iterator[tuple[int, Path]]:
        """The pinned links: interface index (as of when it was pinned) and path."""
        yield from links_in(self.path)

    def link_path(self, ifindex: int) -> Path:
        return self.path / f"link-{ifindex}"

    def require_maps(self, specs: Sequence[layout.MapSpec]) -> list[int]:
        """Open pinned maps that refer to each other, or create and pin them all.

        Adopted ones keep their capacity if that suffices. Else larger ones take the place of all;
        the programs at work keep the former until the full sync puts their successors in place.
        DataplaneError if one has another shape than expected: then somebody else's objects are in
        our place.
        """
        fds: list[int] = []
        try:
            for spec in specs:
                if (fd := self._adopted(spec)) is None:
                    break
                fds.append(fd)
            else:
                return fds
        except BaseException:
            _close(fds)
            raise
        _close(fds)
        for spec in specs:
            (self.path / f"map-{spec.name}").unlink(missing_ok=True)
        return [_pinned_new(spec, self.path / f"map-{spec.name}") for spec in specs]

    def _adopted(self, spec: layout.MapSpec) -> int | None:
        """A pinned map of this shape, None if there is none or it is too small."""
        path = self.path / f"map-{spec.name}"
        if not path.exists():
            return None
        fd = kernel.get_pinned(str(path))
        info = kernel.map_info(fd)
        expected = (spec.type, spec.key_bytes, spec.value_bytes, spec.flags)
        found = (info.type, info.key_bytes, info.value_bytes, info.flags)
        if found != expected:
            os.close(fd)
            raise DataplaneError(
                f"{path} has (type, key, value, flags) {found} where {expected} is expected;"
                f" stop the node and remove {self.path}"
            )
        if info.max_entries >= spec.max_entries:
            return fd
        os.close(fd)
        return None


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)


def _pinned_new(spec: layout.MapSpec, path: Path) -> int:
    fd = kernel.map_create(
        spec.type,
        spec.key_bytes,
        spec.value_bytes,
        spec.max_entries,
        spec.flags,
        f"weft_{spec.name}",
    )
    kernel.pin(fd, str(path))
    return fd


def links_in(path: Path) -> Iterator[tuple[int, Path]]:
    for pin in sorted(path.glob("link-*")):
        yield int(pin.name.removeprefix("link-")), pin


def remove(path: Path) -> None:
    """Unpin everything in an instance's directory, links first, and the directory."""
    for _, pin in links_in(path):
        end_link(pin)
    for pin in path.glob("*"):
        pin.unlink()
    path.rmdir()


def end_link(pin: Path) -> None:
    """Take a pinned link's program off its interface at once, and the pin away."""
    fd = kernel.get_pinned(str(pin))
    try:
        kernel.link_detach(fd)
    finally:
        os.close(fd)
    pin.unlink()


def prune() -> None:
    """Remove the directories above the instances' that have become empty."""
    root = BPFFS / "weft"
    for path in (*root.glob("v*"), root):
        with contextlib.suppress(OSError):
            path.rmdir()


def remove_instance(instance: str) -> bool:
    """End an instance's data plane without its node: everything pinned goes, of every ABI.

    True if there was anything. Not for an instance whose node runs.
    """
    found = [path / sanitised(instance) for path in sorted((BPFFS / "weft").glob("v*"))]
    found = [path for path in found if path.is_dir()]
    for path in found:
        remove(path)
    prune()
    return bool(found)
