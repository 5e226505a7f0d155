"""The fault suite: thousands of schedules over all cores, each with the writes, frames and faults
that make it worth running. The pure modules are compiled for it, and what they are compiled from is
what every other test runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from sim.reading import load
from tests.compiled.tree import ROOT, environment_if_any

SCHEDULES = "sim/scenarios/schedules.toml"
EVERYTHING = "sim/scenarios/everything.toml"
"""Every kind of fault, in half of the runs with nodes that keep only what their sites have to do
with: longer runs, and fewer."""


@pytest.mark.timeout(1800)  # s; of which compiling takes one or two minutes where nobody has
@pytest.mark.parametrize(
    ("file", "seeds"), [(SCHEDULES, range(1, 5001)), (EVERYTHING, range(1, 17))]
)
def test_everything_holds_in_every_schedule(file: str, seeds: range) -> None:
    if file == SCHEDULES:
        least = load(ROOT / file).expected
        assert (least.writes_min, least.frames_min, least.faults_min) >= (50, 200, 3)
    command = ["sim", "soak", file, "--seeds", f"{seeds[0]}-{seeds[-1]}", "-o", "json"]
    with subprocess.Popen(
        [sys.executable, "-m", "mesh.cli", *command],
        cwd=ROOT,
        env=environment_if_any(),
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            out, _ = child.communicate()
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # it ends its own children, then
    found = json.loads(out)
    assert child.returncode == 0, (f"weft sim run {file} --seed {found['failed_seed']}", found)
    assert found["done"] == len(seeds)
