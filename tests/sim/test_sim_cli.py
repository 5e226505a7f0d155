"""`weft sim`: output, exit codes, and the command that replays a violation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mesh.cli.app import run
from mesh.core.replica import Replica

SCENARIO = """
duration_s = 5
sites = 2
[workload]
vpcs = 1
rate_per_s = 4
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two sites.toml"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes that do not push and do not ask."""
    monkeypatch.setattr(Replica, "peer_up", lambda self, peer, now_ns: None)


class Done(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


Weft = Callable[..., Done]


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    """Runs `weft sim` with these arguments."""

    def call(*args: str) -> Done:
        code = run(["sim", *args])
        return Done(code, *capsys.readouterr())

    return call


def test_run_prints_the_documented_fields(weft: Weft, file: Path) -> None:
    done = weft("run", str(file), "--seed", "3", "-o", "json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert list(found) == [
        "seed",
        "sites",
        "converged",
        "heal_s",
        "bytes_per_site",
        "push_p50_s",
        "push_p99_s",
        "lost",
        "resurrected",
        "violations",
    ]
    assert (found["seed"], found["sites"], found["converged"]) == (3, 2, True)
    assert (found["lost"], found["resurrected"], found["violations"]) == (0, 0, [])


def test_a_violation_exits_1_with_the_command_that_replays_it(
    weft: Weft, file: Path, broken: None
) -> None:
    done = weft("run", str(file), "--seed", "3", "-o", "json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["violations"][0]["check"] == "comes to rest in time"
    assert f"weft sim run '{file}' --seed 3" in done.stderr


def test_a_soak_stops_at_the_first_violation(weft: Weft, file: Path, broken: None) -> None:
    done = weft("soak", str(file), "--seeds", "4-90", "--jobs", "1", "-o", "json")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert (found["done"], found["failed_seed"]) == (1, 4)
    assert f"weft sim run '{file}' --seed 4" in done.stderr


def test_a_soak_over_processes_finds_the_same(weft: Weft, file: Path) -> None:
    done = weft("soak", str(file), "--seeds", "1-9", "--jobs", "2", "-o", "json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["seeds"], found["done"], found["failed_seed"]) == (9, 9, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sites = [", "not TOML"),
        ("site = 3", "[[site]]"),
        ("duration = 5", "duration: is not known here: did you mean duration_s"),
    ],
)
def test_a_mistake_in_the_file_exits_2_and_names_it(
    weft: Weft, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    done = weft("run", str(path))
    assert done.exit_code == 2
    assert f"{path}: " in done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("seeds", ["9-1", "x", "1-", "-3", "1-99999999999999999999"])
def test_wrong_seeds_exit_2(weft: Weft, file: Path, seeds: str) -> None:
    done = weft("soak", str(file), f"--seeds={seeds}")
    assert done.exit_code == 2
    assert "--seeds" in done.stderr
