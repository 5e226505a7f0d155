"""`weft sim`: output, exit codes, and the command that replays a violation."""

from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from mesh.cli.app import run
from mesh.core.replica import Replica
from sim.cli import EXAMPLE
from sim.core.clock import SECOND_NS
from sim.core.events import KINDS
from sim.core.simulation import Result, Simulation

ROOT = Path(__file__).parents[2]
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
    monkeypatch.setattr(Replica, "peer_up", lambda self, peer, now_ns, speaks: None)


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
        "updates",
        "reached",
        "copies",
    ]
    assert (found["seed"], found["sites"], found["converged"]) == (3, 2, True)
    assert (found["lost"], found["resurrected"], found["violations"]) == (0, 0, [])
    cost = r"simulated in \d+\.\d s \(\d+\.\d s of CPU\), at most \d+ MiB of memory"
    assert re.search(cost, done.stderr), "what it cost is no part of the result"


def test_a_violation_exits_1_with_the_command_that_replays_it(
    weft: Weft, file: Path, broken: None
) -> None:
    done = weft("run", str(file), "--seed", "3", "-o", "json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["violations"][0]["check"] == "comes to rest in time"
    assert f"weft sim run '{file}' --seed 3" in done.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "sites = [",
            ", line 1: is not TOML: Invalid value: something that was opened is not closed",
        ),
        ("site = 3", ", line 1: site: 3 is no list of tables: write [[site]] for each"),
        ("duration = 5", ", line 1: duration: is not known here: did you mean duration_s?"),
    ],
)
def test_a_mistake_in_the_file_exits_2_and_names_it(
    weft: Weft, tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    done = weft("run", str(path))
    assert done.exit_code == 2
    assert str(path) in done.stderr
    assert said in done.stderr


def test_a_mistake_is_named_with_its_line(weft: Weft, tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text("sites = 2\n[network]\nlatency_ms = 5\n# high\nloss = 3\n")
    done = weft("run", str(path))
    assert done.exit_code == 2
    assert f"{path}, line 5: [network] loss: 3 is out of bounds" in done.stderr


def test_the_command_that_is_printed_replays_a_planted_bug(tmp_path: Path) -> None:
    """In a process of its own, with the bug in it: the same violations to the last word."""
    path = tmp_path / "two sites.toml"
    path.write_text(SCENARIO + "[small]\nsites = 3\n[small.faults]\ncuts = 2\ncrashes = 2\n")
    bug = (
        "import sys\n"
        "from mesh.core.replica import Replica\n"
        "Replica._note_own_changes = lambda self: None\n"
        "from mesh.cli.app import run\n"
        "sys.exit(run(sys.argv[1:]))"
    )

    def weft(*args: str) -> Done:
        command = [sys.executable, "-c", bug, *args]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        return Done(done.returncode, done.stdout, done.stderr)

    found = weft("sim", "soak", str(path), "--seeds", "3-20", "--small", "--jobs", "1")
    assert found.exit_code == 1
    replay = found.stderr.partition("replay: ")[2].strip()
    program, *args = shlex.split(replay)
    assert program == "weft"
    again = weft(*args)
    assert again.exit_code == 1
    said = [line for line in found.stdout.splitlines() if " s  " in line]
    assert said
    assert said == [line for line in again.stdout.splitlines() if " s  " in line]
    assert again.stderr.endswith(found.stderr), "and before that what the run cost"


def test_the_example_runs_and_is_not_written_over(weft: Weft, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    done = weft("init", str(path))
    assert done.exit_code == 0
    assert f"weft sim run {path}" in done.stderr
    assert weft("run", str(path)).exit_code == 0
    assert weft("run", str(path), "--small").exit_code == 0
    path.write_text("mine")
    done = weft("init", str(path))
    assert (done.exit_code, path.read_text()) == (2, "mine")
    assert "--force" in done.stderr
    assert weft("init", str(path), "--force").exit_code == 0
    assert path.read_text() == EXAMPLE.read_text()
    assert weft("init", str(tmp_path / "no" / "file")).exit_code == 2
    assert weft("init", str(tmp_path)).exit_code == 2


def test_the_example_says_something_of_every_table_and_event() -> None:
    text = EXAMPLE.read_text()
    tables = {"[[site]]", "[[vpc]]", "[[event]]", "[network]", "[workload]", "[workload.mix]"}
    for table in tables | {"[faults]", "[expect]", "[small]"}:
        assert f"\n{table}" in text, table
    for kind in KINDS:
        assert re.search(rf"\b{kind}\b", text), kind


def test_a_report_is_written_beside_the_same_result(weft: Weft, file: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    plain = weft("run", str(file), "--seed", "3", "-o", "json")
    done = weft("run", str(file), "--seed", "3", "-o", "json", "--report", str(page))
    assert done.exit_code == 0, done.stderr
    assert done.stdout == plain.stdout
    text = page.read_text()
    assert html.escape(f"weft sim run '{file}' --seed 3") in text
    assert html.escape(SCENARIO) in text


def test_a_violation_has_its_report_too(
    weft: Weft, file: Path, tmp_path: Path, broken: None
) -> None:
    page = tmp_path / "out.html"
    done = weft("run", str(file), "--seed", "3", "--report", str(page))
    assert done.exit_code == 1
    assert "comes to rest in time" in page.read_text()


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody presses Ctrl-C when two virtual seconds are over."""

    class Interrupted(Simulation):
        def run(self, seed: int) -> Result:
            def press() -> None:
                raise KeyboardInterrupt

            self.clock.at(2 * SECOND_NS, press)
            return super().run(seed)

    monkeypatch.setattr("sim.cli.Simulation", Interrupted)


def test_ctrl_c_gives_what_is_known_by_then(weft: Weft, file: Path, interrupted: None) -> None:
    done = weft("run", str(file), "-o", "json")
    assert done.exit_code == 130
    assert "interrupted: at 2.0 of 5 virtual s, no violations until then" in done.stderr
    found = json.loads(done.stdout)
    assert (found["interrupted_at_s"], found["converged"], found["violations"]) == (2.0, False, [])
    assert found["updates"] > 0
    assert weft("run", str(file)).stdout.startswith("SEED")


def test_ctrl_c_gives_the_report_until_then(
    weft: Weft, file: Path, tmp_path: Path, interrupted: None
) -> None:
    page = tmp_path / "out.html"
    assert weft("run", str(file), "--report", str(page)).exit_code == 130
    text = page.read_text()
    assert "Interrupted after 2 s of virtual time" in text
    assert "None until the run was interrupted" in text
    assert "every check held" not in text


def test_a_report_that_cannot_be_written_is_refused_before_the_run(
    weft: Weft, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.cli.Simulation", lambda *_: pytest.fail("ran"))
    done = weft("run", str(file), "--report", str(tmp_path / "no" / "out.html"))
    assert done.exit_code == 2
    assert "--report: " in done.stderr
    assert "No such file or directory" in done.stderr


def test_a_report_does_not_take_the_place_of_its_scenario(weft: Weft, file: Path) -> None:
    done = weft("run", str(file), "--report", str(file.parent / "." / file.name))
    assert done.exit_code == 2
    assert "is the scenario" in done.stderr
    assert file.read_text() == SCENARIO


def test_without_matplotlib_the_fix_is_named(file: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from mesh.cli.app import run; sys.exit(run(['sim', 'run', *sys.argv[1:]]))"
    )
    command = [sys.executable, "-c", code, str(file), "--report", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'weft[report]'" in done.stderr
    assert not page.exists()


def test_matplotlib_is_imported_for_a_report_only() -> None:
    code = "import sys, sim.cli; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
