"""Compiled, the pure modules do what they do interpreted, and keep the laws."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest

from tests.compiled.tree import ROOT, NoCompiler, environment

RUNS = """
from pathlib import Path
from crdt import compiled
from sim.core.simulation import run
from sim.reading import load
from sim.seeding import chance_of
print(compiled())
scenarios = sorted(Path("sim/scenarios").glob("*.toml"))
runs = [(path, True, 5) for path in scenarios]
runs += [(Path("sim/scenarios/schedules.toml"), False, seed) for seed in range(1, 31)]
for path, small, seed in runs:
    print(path.stem, run(load(path, small=small), seed, chance_of(seed)))
"""
"""Every frame and flush of a run is in its fingerprint."""


@pytest.fixture(scope="module")
def compiled() -> dict[str, str]:
    """The environment of a process that imports the compiled modules."""
    try:
        return environment()
    except NoCompiler as missing:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI lacks {missing}")
        pytest.skip(f"{missing} is missing")


@pytest.mark.timeout(1800)  # s; of which compiling takes one or two minutes where nobody has
def test_every_scenario_runs_the_same_to_the_last_byte(compiled: dict[str, str]) -> None:
    interpreted = {name: value for name, value in compiled.items() if name != "PYTHONPATH"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RUNS],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        for env in (compiled, interpreted)
    ]
    fast, slow = (child.communicate()[0].splitlines() for child in children)
    assert (fast[0], slow[0]) == ("True", "False")
    assert len(slow) > 30
    assert fast[1:] == slow[1:]


LAWS = [
    "tests/crdt",
    "tests/fuzz/test_fuzz.py::test_a_decoder_takes_what_encodes_again_or_raises_its_own_error",
    *(
        f"tests/mesh/core/test_{name}.py"
        for name in ("forks", "model", "statements", "validate", "wire")
    ),
]
"""The laws of the lattice, and hostile input for every decoder."""


@pytest.mark.timeout(1800)
def test_the_laws_hold_and_hostile_input_is_refused(compiled: dict[str, str]) -> None:
    command = ["-m", "pytest", "-x", "-p", "no:cacheprovider", "-p", "tests.compiled.unpatched"]
    done = subprocess.run(
        [sys.executable, *command, *LAWS], cwd=ROOT, env=compiled, stdout=subprocess.PIPE, text=True
    )
    replay = shlex.join(["./just", "compiled", *command, *LAWS])
    assert done.returncode == 0, f"{replay}\n{done.stdout[-4000:]}"
