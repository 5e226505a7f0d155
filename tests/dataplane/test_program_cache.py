"""Compiled programs that are kept: never other ones than a compiler would make now."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.backend import Capacity
from dataplane.xdp import cache, headers, kernel, layout, loader, pins, programs
from dataplane.xdp.programs import Programs

EXIT = struct.pack("=BBhi", 0xB7, 0, 0, 2) + struct.pack("=BBhi", 0x95, 0, 0, 0)
REFUSED = struct.pack("=BBhi", 0x95, 0, 0, 0)  # ends without a result
MADE = Programs((("a", (1, 4, 8)), ("b", (2, 4, 4))), {"one": EXIT, "two": EXIT + EXIT})


@pytest.fixture
def where(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def pinned(xdp_machine: None) -> Iterator[pins.PinDir]:
    """An instance's maps, as a loader finds them."""
    directory = pins.PinDir(f"test{os.getpid()}-cache")
    directory.make()
    try:
        for spec in layout.maps(Capacity(endpoints=64)).values():
            os.close(*directory.require_maps([spec]))
        yield directory
    finally:
        pins.remove(directory.path)
        pins.prune()


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that stands for the compiler, where there is none."""
    file = tmp_path / "compiler"
    file.write_text("one")
    monkeypatch.setattr(cache, "_compiler", lambda: [file])
    return file


def test_what_is_kept_is_read_again(where: Path) -> None:
    assert cache.read(where, "k") is None
    assert cache.keep(where, "k", MADE) and cache.read(where, "k") == MADE
    other = Programs((), {"one": EXIT})
    assert cache.keep(where, "k", other) and cache.read(where, "k") == other
    assert cache.read(where, "other") is None
    cache.drop(where, "k")
    assert cache.read(where, "k") is None
    assert not list(where.iterdir()) and where.stat().st_mode & 0o777 == 0o700


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-20] ^= 1
    path.write_bytes(raw)


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    "spoil",
    [
        _cut,
        _flip,
        _link,
        lambda path: path.write_bytes(b""),
        lambda path: path.chmod(0o620),
        lambda path: path.parent.chmod(0o770),
        lambda path: path.parent.chmod(0o702),
        lambda path: os.chown(path, 4242, -1),
        lambda path: os.chown(path.parent, 4242, -1),
    ],
)
def test_what_others_may_have_written_is_not_believed(
    where: Path, spoil: Callable[[Path], object]
) -> None:
    cache.keep(where, "k", MADE)
    (path,) = where.iterdir()
    if os.geteuid() != 0 and spoil.__name__ == "<lambda>":
        pytest.skip("only root gives files to others")
    spoil(path)
    assert cache.read(where, "k") is None


def test_a_directory_of_others_is_not_written_to(where: Path, tmp_path: Path) -> None:
    where.mkdir(mode=0o777)
    where.chmod(0o777)
    assert not cache.keep(where, "k", MADE) and not list(where.iterdir())
    (tmp_path / "file").write_text("")
    assert not cache.keep(tmp_path / "file", "k", MADE)
    assert not cache.keep(tmp_path / "no" / "such", "k", MADE)


def test_the_oldest_give_way(where: Path) -> None:
    for number in range(cache.ENTRIES_MAX):
        cache.keep(where, str(number), MADE)
        os.utime(where / f"programs-{number}", (number, number))
    assert cache.read(where, "0") == MADE  # and was used now
    cache.keep(where, "new", MADE)
    assert len(list(where.iterdir())) == cache.ENTRIES_MAX
    assert cache.read(where, "1") is None
    assert cache.read(where, "0") == cache.read(where, "2") == cache.read(where, "new") == MADE


def _write(path: Path, text: str) -> None:
    """Other contents that are as old."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _other_release(monkeypatch: pytest.MonkeyPatch) -> None:
    here = os.uname()
    there = os.uname_result((*here[:2], here.release + "-1", *here[3:]))
    monkeypatch.setattr(os, "uname", lambda: there)


SOURCE = programs.source()
HEADERS = headers.included(SOURCE)
CHANGES: dict[str, Callable[[pytest.MonkeyPatch, Path], object]] = {
    "a source": lambda patch, _: patch.setattr(programs, "source", lambda *_: SOURCE + " "),
    "a header of ours": lambda patch, _: patch.setattr(headers, "_TYPES", headers._TYPES + " "),
    "a header of the system": lambda patch, _: patch.setattr(
        headers, "included", lambda *_: dict.fromkeys(HEADERS, b"")
    ),
    "a flag": lambda patch, _: patch.setattr(headers, "search_paths", lambda: ["-DX"]),
    "a program": lambda patch, _: patch.setitem(
        layout.PROGRAMS, "xdp", (*layout.PROGRAMS["xdp"], "more")
    ),
    "the kernel": lambda patch, _: _other_release(patch),
    "what BCC is told": lambda patch, _: patch.setenv("BCC_LINUX_VERSION_CODE", "1"),
    "the compiler": lambda _, compiler: _write(compiler, "two, longer"),
    "the compiler's time": lambda _, compiler: os.utime(compiler, (1, 1)),
}


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_is_found_any_more_when_it_would_be_another(
    what: str, monkeypatch: pytest.MonkeyPatch, compiler: Path
) -> None:
    before = cache.key()
    assert cache.key() == before
    CHANGES[what](monkeypatch, compiler)
    assert cache.key() != before


def test_headers_of_headers_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(headers, "SYSTEM_HEADERS", tmp_path)
    (tmp_path / "linux").mkdir()
    (tmp_path / "linux/one.h").write_text("#ifdef X\n# include <linux/two.h>\n#endif\n")
    (tmp_path / "linux/two.h").write_text('  #\tinclude "three.h"\n#include <linux/one.h>\n')
    (tmp_path / "three.h").write_text("")
    found = headers.included("#include <linux/one.h>\n#include <none.h>\n")
    assert [Path(path).name for path in sorted(found)] == ["one.h", "two.h", "three.h"]


def test_the_compiler_is_libraries_and_python(xdp_machine: None) -> None:
    names = {path.name.split(".")[0] for path in cache._compiler()}
    assert {"libbcc", "__init__"} <= names
    assert any(name.startswith(("libclang", "libLLVM")) for name in names)


def loaded(directory: pins.PinDir, where: Path) -> tuple[dict[str, int], bool]:
    """Sizes in machine code of what was loaded, and whether it was compiled now."""
    fds, _, compiled = loader.load_any(directory.path, where)
    sizes = {name: kernel.prog_info(fd).jited_bytes for name, fd in fds.items()}
    for fd in fds.values():
        os.close(fd)
    return sizes, compiled


def test_programs_are_compiled_once_and_again_when_they_are_refused(
    pinned: pins.PinDir, where: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, compiled = loaded(pinned, where)
    assert compiled and set(first) == set(layout.PROGRAMS["xdp"])
    kept = cache.read(where, cache.key())
    assert kept == programs.compiled(), "a compiler makes the same of the same"
    with monkeypatch.context() as patch:
        patch.setattr(programs, "compiled", lambda **_: pytest.fail("compiled again"))
        assert loaded(pinned, where) == (first, False)
    cache.keep(where, cache.key(), Programs((), dict.fromkeys(layout.PROGRAMS["xdp"], REFUSED)))
    monkeypatch.setattr(programs, "compiled", lambda **_: kept)
    assert loaded(pinned, where) == (first, True)
    assert cache.read(where, cache.key()) == kept


def test_maps_that_differ_from_the_programs_are_refused(pinned: pins.PinDir) -> None:
    fds: dict[str, Any] = {
        name: kernel.get_pinned(str(pinned.path / f"map-{name}")) for name in layout.maps()
    }
    shapes = tuple((name, programs.shape(fd)) for name, fd in fds.items())
    assert Programs(shapes, {"one": EXIT}).linked(fds) == {"one": EXIT}
    fds["moved"], moved = fds["ports"], fds["moved"]
    with pytest.raises(ValueError, match="map moved is"):
        Programs(shapes, {"one": EXIT}).linked(fds)
    for fd in {*fds.values(), moved}:
        os.close(fd)
