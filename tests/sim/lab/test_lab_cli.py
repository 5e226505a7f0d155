"""`weft lab` as people and scripts use it: output, exit codes, errors of one line."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from mesh.cli import app
from sim.lab.lab import Lab
from sim.lab.topology import LabSpec

Run = Callable[..., "Result"]
COMMAND = [sys.executable, "-m", "mesh.cli", "lab"]


@dataclass(frozen=True)
class Result:
    exit_code: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """`weft lab ARGUMENTS` in this process."""

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        code = app.run(["lab", *arguments])
        return Result(code, *capsys.readouterr())

    return run


def test_status_for_scripts_is_what_the_lab_says(stand_in_lab: Lab, run: Run) -> None:
    result = run("status", "--name", stand_in_lab.name, "-o", "json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == stand_in_lab.status()


def test_status_for_people_shows_everything_in_columns(stand_in_lab: Lab, run: Run) -> None:
    stand_in_lab.kill("b1")
    stand_in_lab.partition("a")
    lines = run("status", "--name", stand_in_lab.name).stdout.splitlines()
    assert lines[0].split() == ["GATEWAY", "SITE", "UNDERLAY-IP", "PID", "NETNS", "SOCKET"]
    assert lines[1].split()[:3] == ["a1", "a", "198.18.1.1"]
    assert lines[2].split()[:4] == ["b1", "b", "198.18.2.1", "-"]
    assert lines[1].index("198.18") == lines[0].index("UNDERLAY")
    assert lines[-1] == "Partition: a | b"


def test_partition_and_heal(stand_in_lab: Lab, run: Run) -> None:
    name = stand_in_lab.name
    assert run("partition", "a", "b", "--name", name).exit_code == 0
    assert json.loads(run("status", "--name", name, "-o", "json").stdout)["partitions"] == [
        *(["a"], ["b"]),
    ]
    assert run("heal", "--name", name).exit_code == 0
    assert run("heal", "--name", name).exit_code == 0
    assert json.loads(run("status", "--name", name, "-o", "json").stdout)["partitions"] == []


def test_an_unanswered_ping_is_a_no(stand_in_lab: Lab, run: Run) -> None:
    result = run("ping", "a-v1-1", "b-v1-1", "-c", "1", "--name", stand_in_lab.name, "-o", "json")
    assert result.exit_code == 1
    document = {"from": "a-v1-1", "to": "b-v1-1", "sent": 1, "received": 0, "rtt_ms": None}
    assert json.loads(result.stdout) == document
    result = run("ping", "a-v1-1", "10.0.1.10", "-c", "1", "--name", stand_in_lab.name)
    assert result.exit_code == 0, "a pod answers itself"
    assert "1 of 1 answered, rtt 0." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["kill", "z1"], 1, "no gateway 'z1'"),
        (["ping", "a-v1-1", "nobody"], 1, "no pod 'nobody'"),
        (["ping", "a-v1-1", "10.0.0.256"], 2, "'10.0.0.256'"),
        (["partition", "a,b"], 2, "cuts nothing"),
        (["partition", "a", "x"], 2, "'x' is no site"),
        (["exec", "z9", "--", "true"], 1, "'z9'"),
    ],
)
def test_errors_are_one_line_with_the_exit_code_of_their_kind(
    stand_in_lab: Lab, arguments: list[str], code: int, said: str, run: Run
) -> None:
    result = run(arguments[0], "--name", stand_in_lab.name, *arguments[1:])
    assert result.exit_code == code
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["up", "--sites", "27"], 2),
        (["up", "--gateways", "0"], 2),
        (["up", "--pods", "many"], 2),
        (["up", "--name", "No Name"], 2),
        (["down", "--name", "../etc"], 2),
        (["partition"], 2),
        (["ping", "x", "y", "-c", "0"], 2),
        (["exec", "a1"], 2),
        (["exec", "a1", "--"], 2),
        (["exec", "a1", "--name", "x"], 2),
        (["exec", "a1", "--name", "not-there", "--", "true"], 1),
        (["status", "--name", "not-there"], 1),
        (["exec", "--name", "not-there", "a1", "true"], 1),
        (["down", "--name", "not-there"], 0),
    ],
)
def test_exit_codes_without_a_lab(root: None, arguments: list[str], code: int, run: Run) -> None:
    assert run(*arguments).exit_code == code


def test_without_root_the_answer_is_one_line(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = run("up", "--name", "not-there")
    assert result.exit_code == 3
    assert "run this as root" in result.stderr


@pytest.mark.parametrize("code", [0, 1, 42])
def test_exec_passes_output_and_exit_code_through(stand_in_lab: Lab, code: int) -> None:
    script = f"echo out; echo err >&2; exit {code}"
    done = subprocess.run(
        [*COMMAND, "exec", "--name", stand_in_lab.name, "a-v1-1", "--", "sh", "-c", script],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "out\n", "err\n")


def test_exec_tells_the_socket_of_a_gateway_and_takes_options_without_dashes(
    stand_in_lab: Lab,
) -> None:
    done = subprocess.run(
        [*COMMAND, "exec", "b1", "printenv", "-0", "WEFT_SOCKET"],
        env={**os.environ, "WEFT_LAB": stand_in_lab.name},
        capture_output=True,
        text=True,
    )
    assert done.stdout == f"{stand_in_lab.node('b1').socket}\0"


@pytest.mark.parametrize("words", [["--name", "{}"], ["--name={}"]])
def test_exec_takes_the_lab_s_name_after_the_pod_s_and_finds_weft(
    stand_in_lab: Lab, words: list[str]
) -> None:
    named = [word.format(stand_in_lab.name) for word in words]
    done = subprocess.run(
        [*COMMAND, "exec", "b1", *named, "--", "weft", "--version"],
        env={**os.environ, "PATH": os.defpath},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.split()[0]) == (0, "weft")


def test_exec_gives_an_interactive_command_the_terminal(stand_in_lab: Lab) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        child = subprocess.Popen(
            [
                *COMMAND,
                "exec",
                "--name",
                stand_in_lab.name,
                "a-v1-1",
                "sh",
                "-c",
                "test -t 0; read x; exit $x",
            ],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
        os.close(theirs)
        terminal.write(b"9\n")
        assert child.wait(60) == 9


def test_exec_of_a_command_that_is_not_there(stand_in_lab: Lab) -> None:
    done = subprocess.run(
        [*COMMAND, "exec", "--name", stand_in_lab.name, "a1", "no-such-command"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 127
    assert "no-such-command" in done.stderr


def test_a_lab_is_not_made_twice(xdp: None, stand_in_lab: Lab, run: Run) -> None:
    result = run("up", "--name", stand_in_lab.name)
    assert result.exit_code == 1
    assert "is up already" in result.stderr


def test_down_twice(stand_in_lab: Lab, run: Run) -> None:
    first, second = (run("down", "--name", stand_in_lab.name) for _ in range(2))
    assert first.exit_code == second.exit_code == 0
    assert first.stderr == f"lab {stand_in_lab.name} is down\n"
    assert second.stderr == f"lab {stand_in_lab.name} is not up\n"


def test_help_names_the_defaults_of_the_manual(run: Run) -> None:
    text = run("up", "--help").stdout
    assert LabSpec() == LabSpec(name="lab", sites=3, gateways=1, pods=1, vpcs=2)
    for option in ("--sites", "--gateways", "--pods", "--vpcs", "--underlay", "--name"):
        assert option in text
