"""The fault suite: thousands of schedules over all cores, each with the writes, frames and faults
that make it worth running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sim.reading import load
from sim.soaking import Sweep, pool_for, sweep

SCHEDULES = "sim/scenarios/schedules.toml"
EVERYTHING = "sim/scenarios/everything.toml"
"""Every kind of fault, in half of the runs with nodes that keep only what their sites have to do
with: longer runs, and fewer."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("file", "seeds"), [(SCHEDULES, range(1, 5001)), (EVERYTHING, range(1, 17))]
)
def test_everything_holds_in_every_schedule(file: str, seeds: range) -> None:
    scenario = load(Path(__file__).parents[2] / file)
    if file == SCHEDULES:
        least = scenario.expected
        assert (least.writes_min, least.frames_min, least.faults_min) >= (50, 200, 3)
    found = Sweep(seeds)
    pool = pool_for(scenario, seeds, os.cpu_count() or 1, None)
    try:
        for _ in sweep(pool, found):
            pass
    finally:
        pool.close()
    failed = found.failed
    assert failed is None, (f"weft sim run {file} --seed {failed.seed}", failed.violations)
    assert found.done == len(seeds)
