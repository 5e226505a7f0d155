"""`weft sim soak`: the same found by one process, by several and by a Dask cluster; what is left of
it when it is interrupted; the first violation."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mesh.cli.app import run
from mesh.core.errors import NotReady
from mesh.core.replica import Replica
from sim.core.simulation import Result
from sim.reading import load
from sim.soaking import Cores, Here, Sweep, run_piece, sweep

ROOT = Path(__file__).parents[2]
SCENARIO = """
duration_s = 5
sites = 2
[workload]
vpcs = 1
rate_per_s = 4
"""
DEADLINE_S = 60.0
Weft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    def call(*args: str) -> tuple[int, str, str]:
        code = run(["sim", "soak", *args])
        return code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two workers on loopback, each a process; the scheduler's address."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
    ) as made:
        yield made.scheduler_address


def _without_time(text: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(text)
    del found["seconds"], found["seeds_per_s"]
    return found


def test_one_process_several_and_a_cluster_find_the_same(
    weft: Weft, file: Path, cluster: str
) -> None:
    asked = (str(file), "--seeds", "1-9", "-o", "json")
    code, alone, said = weft(*asked, "--jobs", "1")
    assert code == 0, said
    found = _without_time(alone)
    assert (found["seeds"], found["done"], found["failed_seed"]) == (9, 9, None)
    assert found["faults"] == 0
    for more in (("--jobs", "2"), ("--jobs", "9"), ("--dask", cluster)):
        code, text, said = weft(*asked, *more)
        assert code == 0, said
        assert _without_time(text) == found, more
    assert _without_time(weft(str(file), "--seeds", "2-9", "-o", "json")[1]) != found


def test_a_soak_stops_at_the_first_violation(
    weft: Weft, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replica, "peer_up", lambda self, peer, now_ns, speaks: None)
    for jobs in ("1", "2"):  # other processes are forked from this one, with the bug in it
        code, text, said = weft(str(file), "--seeds", "4-90", "--jobs", jobs, "-o", "json")
        found = json.loads(text)
        assert (code, found["done"], found["failed_seed"]) == (1, 1, 4)
        assert f"weft sim run {file} --seed 4" in said
    code, text, said = weft(str(file), "--seeds", "4-90", "--jobs", "1")
    assert code == 1
    assert "comes to rest in time" in text


class Backwards(Here):
    """A pool whose last piece is done first."""

    workers = 2

    def next(self) -> list[Result]:
        return run_piece(self._scenario, self._seeds.pop())


def test_the_violation_with_the_lowest_seed_is_told_whichever_came_first(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Replica, "peer_up", lambda self, peer, now_ns, speaks: None)
    found = Sweep(range(7, 60))
    steps = sum(1 for _ in sweep(Backwards(load(file)), found))
    assert found.failed is not None
    assert (found.failed.seed, found.done) == (7, 1)
    assert steps == 6, "no piece is begun after a violation"


def test_what_came_out_of_order_counts_when_it_is_interrupted(file: Path) -> None:
    found, pool = Sweep(range(1, 90)), Backwards(load(file))
    steps = sweep(pool, found)
    next(steps)
    assert (found.done, found.seen) == (0, 4)
    found.interrupted()
    assert (found.done, found.seen, found.failed) == (4, 4, None)


@pytest.mark.parametrize("where", ["jobs", "dask"])
def test_ctrl_c_gives_what_was_found_until_then(
    file: Path, where: str, request: pytest.FixtureRequest
) -> None:
    """On a terminal: the bar says that results have come."""
    more = ["--jobs", "2"] if where == "jobs" else ["--dask", request.getfixturevalue("cluster")]
    command = [sys.executable, "-m", "mesh.cli", "sim", "soak", str(file), "--seeds", "1-9999999"]
    terminal, their_end = pty.openpty()
    child = subprocess.Popen(
        [*command, "-o", "json", *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=their_end,
        text=True,
        start_new_session=True,
    )
    os.close(their_end)
    shown = ""
    while "seeds/s" not in shown:
        shown += os.read(terminal, 4096).decode(errors="replace")
        assert child.poll() is None, shown
    os.killpg(child.pid, signal.SIGINT)  # as a terminal does
    text, _ = child.communicate(timeout=DEADLINE_S)
    while "interrupted: " not in shown:
        shown += os.read(terminal, 4096).decode(errors="replace")
    os.close(terminal)
    assert child.returncode == 128 + signal.SIGINT, shown
    found = json.loads(text)
    assert 0 < found["done"] < found["seeds"]
    assert (found["failed_seed"], found["violations"]) == (None, [])
    assert f"interrupted: {found['done']} of 9999999 seeds, no violation" in shown
    assert "Traceback" not in shown
    with pytest.raises(ProcessLookupError):
        for _ in range(int(DEADLINE_S / 0.02)):
            os.killpg(child.pid, 0)
            time.sleep(0.02)


def test_a_killed_process_is_told(file: Path) -> None:
    pool = Cores(load(file), 2)
    try:
        pool.submit(range(1, 1_000_000))
        while not pool.children():
            pass
        pool.children()[0].kill()
        with pytest.raises(NotReady, match="--jobs"):
            pool.next()
    finally:
        pool.close()
    assert pool.children() == []


def test_a_cluster_that_is_not_there_is_told(
    weft: Weft, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.soaking.CONNECT_S", 0.5)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{bound.getsockname()[1]}"
        code, _, said = weft(str(file), "--seeds", "1-9", "--dask", address)
    assert code == 3
    assert f"--dask: {address}: no scheduler answers there" in said
    for wrong in ("127.0.0.1", "http://127.0.0.1:80", ""):
        code, _, said = weft(str(file), "--seeds", "1-9", "--dask", wrong)
        assert code == 2
        assert "write tcp://HOST:8786" in said
    code, _, said = weft(str(file), "--seeds", "1-9", "--dask", address, "--jobs", "2")
    assert code == 2
    assert "one of the two" in said


def test_a_cluster_without_workers_or_with_other_code_is_told(
    weft: Weft, file: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=":0") as empty:
        code, _, said = weft(str(file), "--seeds", "1-9", "--dask", empty.scheduler_address)
    assert code == 3
    assert "the cluster has no workers" in said
    monkeypatch.setattr("sim.soaking.PACKAGES", ("crdt",))
    code, _, said = weft(str(file), "--seeds", "1-9", "--dask", cluster)
    assert code == 3
    assert "another version of weft" in said


def test_without_dask_the_fix_is_named(file: Path) -> None:
    code = (
        "import sys; sys.modules['distributed'] = None\n"
        "from mesh.cli.app import run; sys.exit(run(['sim', 'soak', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, str(file), "--seeds", "1-9", "--dask", "tcp://[::1]:1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'weft[dask]'" in done.stderr


@pytest.mark.parametrize("seeds", ["9-1", "x", "1-", "-3", "1-99999999999999999999"])
def test_wrong_seeds_exit_2(weft: Weft, file: Path, seeds: str) -> None:
    code, _, said = weft(str(file), f"--seeds={seeds}")
    assert code == 2
    assert "--seeds" in said
