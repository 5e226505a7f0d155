"""`weft lab run`: a scenario on real nodes beside the simulator, and what is left when it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from sim.lab.comparing import APART
from sim.lab.lab import Lab, leftovers
from sim.lab.processes import mentioning

DEADLINE_S = 60.0

QUIET_S = 60
SCENARIO = f"""
duration_s = 24
quiet_s = {QUIET_S}

[[site]]
name = "berlin"
gateways = 2
[[site]]
name = "madrid"
[[site]]
name = "oslo"

[network]
latency_ms = 40
jitter_ms = 1

[[vpc]]
name = "web"
endpoints = {{ berlin = 6, madrid = 3, oslo = 3 }}

[workload]
rate_per_s = 3
addresses = 20
mix = {{ create = 4, delete = 2, recreate = 1 }}

[[event]]
at_s = 2
rotate = "oslo"

[[event]]
at_s = 6
cut = [["madrid"]]
for_s = 8

[[event]]
at_s = 16
retire = "berlin-2"

[[event]]
at_s = 19
restore = "oslo"
from_s = 8
for_s = 1
"""
STABLE = ("bytes_per_site", "writes")
"""What a busy machine does not change much."""


def _command(path: Path, name: str) -> list[str]:
    return [sys.executable, "-m", "mesh.cli", "lab", "run", str(path), "--name", name]


def _expect_gone(name: str) -> None:
    assert leftovers(name) == []
    deadline_s = time.monotonic() + DEADLINE_S
    while mentioning(f"wl-{name}-wan"):  # it ends with its input, once it has started
        assert time.monotonic() < deadline_s


def test_real_nodes_do_as_simulated_ones(xdp: None, lab_name: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.toml"
    path.write_text(SCENARIO)
    done = subprocess.run([*_command(path, lab_name), "-o", "json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _expect_gone(lab_name)
    found = json.loads(done.stdout)
    assert found["gateways"] == {
        "berlin-1": "a1",
        "berlin-2": "a2",
        "madrid-1": "b1",
        "oslo-1": "c1",
    }
    for which in ("simulated", "live"):
        figures = found[which]
        assert figures["converged"] is True
        assert (figures["lost"], figures["resurrected"]) == (0, 0)
        assert figures["push_p50_s"] >= 0.04, "no write is there before its frames"
        assert 0 < figures["heal_s"] < QUIET_S
    for figure in STABLE:
        simulated, live = found["simulated"][figure], found["live"][figure]
        assert simulated / APART <= live <= simulated * APART, found
    assert found["pushes"] > 20
    assert set(found["ratios"]) == {"heal_s", "push_p50_s", "push_p99_s", "bytes_per_site"}
    apart = {figure for figure, ratio in found["ratios"].items() if not 0.5 <= ratio <= 2}
    assert apart - found["unjudged"].keys() == set(found["differ"])
    assert found["unjudged"].keys() <= {"push_p99_s"}
    assert (found["events_not_played"], found["unsettled"]) == ([], [])


def test_ctrl_c_takes_everything_down(xdp: None, lab_name: str, tmp_path: Path) -> None:
    path = tmp_path / "cut.toml"
    path.write_text(SCENARIO)
    child = subprocess.Popen(_command(path, lab_name), stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    with child.stderr:
        while "is up" not in child.stderr.readline():
            assert child.poll() is None
        child.send_signal(signal.SIGINT)
        said = child.stderr.read()
    assert child.wait(DEADLINE_S) == 128 + signal.SIGINT, said
    assert "taking everything down" in said
    assert "Traceback" not in said
    _expect_gone(lab_name)


def test_a_lab_of_that_name_stays(stand_in_lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "cut.toml"
    path.write_text(SCENARIO)
    done = subprocess.run(_command(path, stand_in_lab.name), capture_output=True, text=True)
    assert done.returncode == 1
    assert "is up already" in done.stderr
    assert leftovers(stand_in_lab.name) != []


def test_what_cannot_be_played_is_refused_before_a_lab_is_made(
    lab_name: str, tmp_path: Path
) -> None:
    path = tmp_path / "stall.toml"
    path.write_text("sites = 2\n[[event]]\nat_s = 5\nstall = 'b'\n")
    done = subprocess.run(_command(path, lab_name), capture_output=True, text=True)
    assert done.returncode == 2
    assert "[[event]] stall b-1 at 5 s: is not played live" in done.stderr
    assert "founds the mesh" not in done.stderr
