"""The fault suite: thousands of schedules over all cores, each with the writes, frames and faults
that make it worth running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sim.reading import load
from sim.soaking import Sweep, pool_for, sweep

SCHEDULES = "sim/scenarios/schedules.toml"
SEEDS = range(1, 5001)


@pytest.mark.timeout(900)
def test_everything_holds_in_every_schedule() -> None:
    scenario = load(Path(__file__).parents[2] / SCHEDULES)
    least = scenario.expected
    assert (least.writes_min, least.frames_min, least.faults_min) >= (50, 200, 3)
    found = Sweep(SEEDS)
    pool = pool_for(scenario, SEEDS, os.cpu_count() or 1, None)
    try:
        for _ in sweep(pool, found):
            pass
    finally:
        pool.close()
    failed = found.failed
    assert failed is None, (f"weft sim run {SCHEDULES} --seed {failed.seed}", failed.violations)
    assert found.done == len(SEEDS)
