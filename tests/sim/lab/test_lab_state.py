"""What a lab remembers: saved whole, loaded as it was, one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mesh.core.errors import NotFound, NotReady, Refused
from sim.lab import state
from sim.lab.processes import ProcessId
from sim.lab.state import State
from sim.lab.topology import LabSpec, plan
from tests.sim.lab.conftest import by_another, each_line_interrupted


@pytest.fixture(autouse=True)
def state_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "weft-lab"
    monkeypatch.setattr(state, "STATE_ROOT", path)
    return path


def test_what_is_saved_is_loaded() -> None:
    topology = plan(LabSpec(name="x", pods=2))
    state.make_directory(topology)
    saved = State(topology, partitions=(("a",), ("b", "c")))
    saved = saved.with_process("a1", ProcessId(17, 4711))
    state.save(saved)
    assert state.load("x") == saved
    state.save(State(topology, ready=True))
    assert state.load("x") == State(topology, ready=True)


def test_the_directory_is_for_its_owner_only(state_root: Path) -> None:
    state.make_directory(plan(LabSpec(name="x")))
    for path in (state_root, state_root / "x", state_root / "x" / "a1"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_lab_that_is_up_is_not_made_again() -> None:
    topology = plan(LabSpec(name="x"))
    state.make_directory(topology)
    with pytest.raises(Refused, match="lab x is up already"):
        state.make_directory(topology)
    state.remove_directory("x")
    assert not state.exists("x")
    state.remove_directory("x")
    state.make_directory(topology)


def test_a_lab_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="no lab x"):
        state.load("x")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"version": 99}', '{"version": 1, "topology": {}}']
)
def test_a_file_that_is_not_ours_is_an_error_of_one_line(text: str) -> None:
    state.make_directory(plan(LabSpec(name="x")))
    (state.lab_directory("x") / state.STATE_NAME).write_text(text)
    with pytest.raises(NotReady, match="take the lab down") as caught:
        state.load("x")
    assert "\n" not in str(caught.value)


def test_who_may_not_read_it_is_told_who_may(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    state.make_directory(plan(LabSpec(name="x")))
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(NotReady, match="run this as root"):
        state.load("x")


def test_one_command_at_a_time_changes_a_lab() -> None:
    with state.locked("x"):
        with pytest.raises(Refused, match="another command"):
            by_another(lambda: state.locked("x").__enter__())
        with state.locked("y"):
            pass
    with state.locked("x"):
        pass


def test_one_waits_for_another_as_long_as_it_is_told_to() -> None:
    taken, enough = threading.Event(), threading.Event()

    def another() -> None:
        with state.locked("x"):
            taken.set()
            enough.wait()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(another)
        taken.wait()
        with pytest.raises(Refused), state.locked("x", 0.1):
            pass
        threading.Timer(0.2, enough.set).start()
        with state.locked("x", 60):
            assert enough.is_set()


def test_a_lock_leaves_no_file_once_the_lab_is_gone(state_root: Path) -> None:
    with state.locked("x"):
        state.make_directory(plan(LabSpec(name="x")))
    assert sorted(path.name for path in state_root.iterdir()) == [".x.lock", "x"]
    with state.locked("x"):
        state.remove_directory("x")
    assert not state_root.exists()


def test_a_lock_whose_file_was_taken_away_is_taken_again(
    state_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lab goes down between opening and locking: the file locked then has no name any more."""
    state_root.mkdir()
    flock = fcntl.flock
    taken_away: list[Path] = []

    def racing(descriptor: int, operation: int) -> None:
        if not taken_away:
            taken_away.append(state_root / ".x.lock")
            taken_away[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", racing)
    with state.locked("x"):
        assert taken_away[0].exists()
        with pytest.raises(Refused):
            by_another(lambda: state.locked("x").__enter__())


def test_ctrl_c_between_any_two_lines_leaves_no_lock() -> None:
    def take_and_give_back() -> None:
        with state.locked("x"):
            pass

    lines = 0
    for _ in each_line_interrupted(take_and_give_back, state, contextlib):
        lines += 1
        # Here what was interrupted is still there, frames and all, as where a lab is removed.
        with state.locked("x"):
            pass
    assert lines > 40
