"""Programs that clang has built: read as BCC's are, loaded by the same loader, refused if they are
not this version's. What they do with packets is tested beside BCC's (`either_build`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataplane.backend import Unavailable
from dataplane.xdp import ahead, cache, layout, programs
from dataplane.xdp.backend import XdpBackend
from tests.dataplane.conftest import Gateway


def test_both_builds_have_the_same_programs_and_maps(built_ahead: Path) -> None:
    made = ahead.read(built_ahead)
    specs = layout.maps()
    shapes = {name: (s.type, s.key_bytes, s.value_bytes) for name, s in specs.items()}
    assert dict(made.maps) == shapes and list(made.instructions) == list(layout.PROGRAMS["xdp"])
    used = {_place(code, at) for code in made.instructions.values() for at in _references(code)}
    assert used == set(range(len(made.maps))), "every map is used"


def _references(code: bytes) -> list[int]:
    return list(programs.references(code))


def _place(code: bytes, at: int) -> int:
    return int.from_bytes(code[at : at + 4], "little", signed=True)


def test_the_loader_takes_it_and_compiles_nothing(
    site_pair: Any, built_ahead: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Even where there is no BCC."""
    gateway: Gateway = site_pair.a
    monkeypatch.setenv(ahead.OBJECT_VARIABLE, str(built_ahead))
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert isinstance(gateway.open(), XdpBackend)
    assert cache.read(tmp_path, cache.key()) is None


def spoilt(path: Path, to: Path, old: bytes, new: bytes) -> Path:
    raw = path.read_bytes()
    assert old in raw
    to.write_bytes(raw.replace(old, new))
    return to


def test_another_version_s_is_refused_and_it_is_said_what_to_do(
    built_ahead: Path, tmp_path: Path, site_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = spoilt(built_ahead, tmp_path / "other.o", ahead.fingerprint(), b"0" * 64)
    with pytest.raises(ahead.NoPrograms, match="another version's source: build it again"):
        ahead.read(other)
    monkeypatch.setenv(ahead.OBJECT_VARIABLE, str(other))
    with pytest.raises(Unavailable, match="another version's source"):
        site_pair.a.open()


def test_what_has_programs_for_xdp_has_none_for_tc(built_ahead: Path) -> None:
    with pytest.raises(ahead.NoPrograms, match="not for tc"):
        ahead.read(built_ahead, "tc")


def test_what_is_no_object_file_is_refused(built_ahead: Path, tmp_path: Path) -> None:
    raw = built_ahead.read_bytes()
    path = tmp_path / "broken.o"
    for size in (0, 3, 4, 63, 64, 200, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(ahead.NoPrograms, match="holds no programs"):
            ahead.read(path)
    spoilt(built_ahead, path, b"\x7fELF\x02", b"\x7fELF\x01")
    with pytest.raises(ahead.NoPrograms, match="holds no programs"):
        ahead.read(path)
    with pytest.raises(ahead.NoPrograms, match="No such file"):
        ahead.read(tmp_path / "none.o")


def test_a_compiler_that_is_not_there_or_refuses_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ahead, "CLANG", "no-such-compiler")
    with pytest.raises(ahead.NoPrograms, match="apt install clang"):
        ahead.build(tmp_path / "weft.o")
    monkeypatch.setattr(ahead, "CLANG", "false")
    with pytest.raises(ahead.NoPrograms, match="false refuses"):
        ahead.build(tmp_path / "weft.o")
