"""Key files: private from the first moment, refused when they no longer are, never in a message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mesh.node.keys import (
    KeyFileError,
    KeyKind,
    make_private_directory,
    new_seed,
    read_seed,
    write_seed,
)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "node"
    make_private_directory(home)
    return home


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o277])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_private_directory(tmp_path / "d")
        write_seed(tmp_path / "d/node.key", "node", bytes(32))
    finally:
        os.umask(before)
    assert (tmp_path / "d").stat().st_mode & 0o7777 == 0o700
    assert (tmp_path / "d/node.key").stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize("kind", ["node", "root"])
def test_a_seed_reads_back(home: Path, kind: KeyKind) -> None:
    seed = new_seed()
    write_seed(home / "k", kind, seed)
    assert read_seed(home / "k", kind) == seed


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o700])
def test_a_key_that_others_can_read_is_refused(home: Path, mode: int) -> None:
    write_seed(home / "k", "node", new_seed())
    (home / "k").chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_seed(home / "k", "node")


@pytest.mark.parametrize("mode", [0o750, 0o705, 0o711])
def test_a_directory_that_others_can_enter_is_refused(home: Path, mode: int) -> None:
    write_seed(home / "k", "node", new_seed())
    home.chmod(mode)
    with pytest.raises(KeyFileError, match="chmod 700"):
        read_seed(home / "k", "node")
    with pytest.raises(KeyFileError, match="chmod 700"):
        write_seed(home / "other", "node", new_seed())
    assert not (home / "other").exists()


def test_a_key_is_never_overwritten(home: Path) -> None:
    seed = new_seed()
    write_seed(home / "k", "node", seed)
    with pytest.raises(KeyFileError, match="never overwritten"):
        write_seed(home / "k", "node", new_seed())
    assert read_seed(home / "k", "node") == seed


def test_a_key_of_the_other_kind_is_refused(home: Path) -> None:
    write_seed(home / "k", "root", new_seed())
    with pytest.raises(KeyFileError, match="holds a root key, not a node key"):
        read_seed(home / "k", "node")


def test_what_is_no_key_is_refused_without_showing_it(home: Path) -> None:
    secret = "5ec2e7" * 10
    for number, content in enumerate(["", secret, f"weft-node-key-1 {secret}", f"{secret}\n" * 99]):
        path = home / f"k{number}"
        path.touch(0o600)
        path.write_text(content)
        with pytest.raises(KeyFileError) as refusal:
            read_seed(path, "node")
        assert "5ec2e7" not in str(refusal.value)


def test_files_that_are_no_regular_files_are_refused(home: Path) -> None:
    write_seed(home / "real", "node", new_seed())
    (home / "link").symlink_to(home / "real")
    os.mkfifo(home / "fifo", 0o600)
    for name in ["link", "fifo", "missing"]:
        with pytest.raises(KeyFileError):
            read_seed(home / name, "node")
    with pytest.raises(KeyFileError):
        read_seed(home / "missing-directory" / "k", "node")


@pytest.mark.skipif(os.geteuid() != 0, reason="changing a file's owner needs root")
def test_somebody_elses_key_is_refused(home: Path) -> None:
    write_seed(home / "k", "node", new_seed())
    os.chown(home / "k", 12345, 12345)
    with pytest.raises(KeyFileError, match="belongs to user 12345"):
        read_seed(home / "k", "node")
