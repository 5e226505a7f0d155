"""Processes of a lab, with real ones: known by pid and start time, ended for certain."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import SIGTERM

import pytest

from sim.lab import netns, processes, signals
from sim.lab.processes import ProcessId
from sim.lab.topology import Topology
from tests.sim.lab.conftest import each_line_interrupted

Build = Callable[..., Topology]

DEADLINE_S = 30.0
IGNORES_TERM = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True)"


@pytest.fixture
def namespace(built: Build) -> Iterator[str]:
    name = built(sites=1, vpcs=0).gateways[0].netns
    yield name
    for process in processes.in_namespaces([name]):
        processes.kill(process)


def _await_line(log: Path, line: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while line not in log.read_text():
        assert time.monotonic() < deadline_s, log.read_text()


def test_a_process_runs_in_its_namespace_until_killed(namespace: str, tmp_path: Path) -> None:
    process = processes.spawn(namespace, ["sleep", "60"], log=tmp_path / "log")
    assert processes.alive(process)
    _await_namespace(process, namespace)
    assert not processes.wait_ended(process, 0.01)
    assert processes.kill(process)
    assert not processes.alive(process)
    assert not processes.kill(process)
    assert processes.wait_ended(process, 0.0)
    assert processes.in_namespaces([namespace]) == []


def _await_namespace(process: ProcessId, namespace: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while processes.in_namespaces([namespace]) != [process]:
        assert time.monotonic() < deadline_s


def test_output_and_environment_go_where_they_should(namespace: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = processes.spawn(
        namespace,
        ["sh", "-c", "echo $WEFT_SOCKET; echo oops >&2"],
        log=log,
        environment={"WEFT_SOCKET": "/run/x.sock"},
    )
    assert processes.wait_ended(process, DEADLINE_S)
    assert log.read_text() == "/run/x.sock\noops\n"
    assert processes.log_tail(log) == "/run/x.sock / oops"
    assert processes.log_tail(tmp_path / "none") == "its log is empty"


def test_a_process_that_ends_at_once_is_not_alive(namespace: str, tmp_path: Path) -> None:
    process = processes.spawn(namespace, ["no-such-command-at-all"], log=tmp_path / "log")
    assert processes.wait_ended(process, DEADLINE_S)
    assert not processes.alive(process)
    assert "no-such-command-at-all" in processes.log_tail(tmp_path / "log")


def test_another_process_with_the_same_pid_is_left_alone() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    former = ProcessId(me.pid, me.start_ticks - 1)
    assert not processes.alive(former)
    assert not processes.send_signal(former, SIGTERM), "or this test would be over"
    assert not processes.kill(former)
    assert processes.wait_ended(former, 0.0)


def test_the_remains_of_a_process_are_no_process() -> None:
    """A child that nobody has waited for keeps its pid."""
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{child.pid}").exists()
    assert processes.identify(child.pid) is None
    child.wait()


def test_what_a_process_waited_for_a_processor_only_grows() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    first = processes.waited_s(me)
    assert 0 <= first <= processes.waited_s(me)
    assert processes.waited_s(ProcessId(1 << 22, 0)) == 0.0, "none has this pid"


def test_a_process_does_not_get_the_terminals_signals(namespace: str, tmp_path: Path) -> None:
    process = processes.spawn(namespace, ["sleep", "60"], log=tmp_path / "log")
    assert os.getsid(process.pid) == process.pid


def test_who_looks_for_processes_is_not_among_them(namespace: str) -> None:
    """`weft lab down` from a shell inside the lab must not end itself half way."""
    look = f"from sim.lab.processes import in_namespaces; print(in_namespaces([{namespace!r}]))"
    command = netns.enter_command(namespace, [sys.executable, "-c", look])
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"


def test_processes_are_found_by_what_they_were_called_with(namespace: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import signal; signal.pause()", f"{tmp_path}/mark"]
    process = processes.spawn(namespace, command, log=tmp_path / "log")
    deadline_s = time.monotonic() + DEADLINE_S
    while processes.mentioning(f"{tmp_path}/mark") != [process]:
        # It has no command line at all while the kernel replaces its program.
        assert time.monotonic() < deadline_s
    processes.kill(process)
    assert processes.mentioning(f"{tmp_path}/mark") == []


def test_who_does_not_heed_sigterm_is_killed(
    namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TERM_GRACE_S", 0.2)
    log = tmp_path / "log"
    stubborn = processes.spawn(
        namespace, [sys.executable, "-c", f"{IGNORES_TERM}; time.sleep(60)"], log=log
    )
    meek = processes.spawn(namespace, ["sleep", "60"], log=tmp_path / "other")
    _await_line(log, "on")
    assert processes.end([stubborn, meek]) == []
    assert not processes.alive(stubborn)
    assert not processes.alive(meek)


def test_ctrl_c_between_any_two_lines_loses_no_process(namespace: str, tmp_path: Path) -> None:
    """One of them may not have entered the namespace yet when the lab goes."""
    mark = tmp_path / "mark"
    mark.touch()

    def start() -> None:
        processes.spawn(namespace, ["tail", "-f", str(mark)], log=tmp_path / "log")

    lines = 0
    for _ in each_line_interrupted(start, processes, signals):
        lines += 1
        known = {child.process for child in processes._children.values()}
        started = processes.mentioning(str(mark))
        assert set(started) <= known
        for process in started:
            processes.kill(process)
    assert lines > 15


def test_only_processes_of_the_namespaces_are_found(namespace: str) -> None:
    assert processes.in_namespaces([namespace]) == []
    assert processes.in_namespaces(["no-such-namespace"]) == []
