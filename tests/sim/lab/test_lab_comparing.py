"""The figures of real nodes beside those of the simulator: what is told apart, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sim.core.scenario import parse
from sim.core.simulation import Result, run
from sim.lab.comparing import PUSHES_MIN, compare
from sim.lab.playing import Live
from sim.seeding import chance_of

SIMULATED = replace(
    run(parse({"duration_s": 5, "sites": 2}), 1, chance_of(1)),
    heal_s=2.0,
    push_p50_s=0.04,
    push_p99_s=0.5,
    bytes_per_site=50_000,
)
LIVE = Live(
    converged=True,
    heal_s=2.5,
    bytes_per_site=60_000,
    push_p50_s=0.05,
    push_p99_s=0.6,
    lost=0,
    resurrected=0,
    writes=20,
    refused=1,
    pushes=PUSHES_MIN,
)


def _rows(simulated: Result, live: Live) -> dict[str, dict[str, Any]]:
    return {row["figure"]: row for row in compare(simulated, live)}


def _apart(simulated: Result, live: Live) -> set[str]:
    return {figure for figure, row in _rows(simulated, live).items() if row["differs"]}


def test_figures_within_twice_of_each_other_are_not_apart() -> None:
    assert _apart(SIMULATED, LIVE) == set()
    assert _rows(SIMULATED, LIVE)["heal_s"]["ratio"] == 1.25
    assert all(row["unjudged"] is None for row in _rows(SIMULATED, LIVE).values())


@pytest.mark.parametrize(
    ("more", "apart"),
    [
        ({"heal_s": 4.1}, {"heal_s"}),
        ({"heal_s": None}, {"heal_s"}),
        ({"bytes_per_site": 24_000}, {"bytes_per_site"}),
        ({"push_p50_s": 0.02}, set()),  # below the floor
        ({"push_p99_s": 1.1}, {"push_p99_s"}),
        ({"converged": False}, {"converged"}),
        ({"lost": 1}, {"lost"}),
        ({"writes": 99, "refused": 99}, set()),
    ],
)
def test_what_is_further_apart_is_said(more: dict[str, Any], apart: set[str]) -> None:
    assert _apart(SIMULATED, replace(LIVE, **more)) == apart


def test_a_99th_percentile_of_few_writes_is_shown_and_not_judged() -> None:
    few = replace(LIVE, push_p99_s=50.0, pushes=PUSHES_MIN - 1)
    row = _rows(SIMULATED, few)["push_p99_s"]
    assert (row["simulated"], row["live"], row["ratio"]) == (0.5, 50.0, 100.0)
    assert row["differs"] is False
    assert row["unjudged"] == "no verdict: 299 timed writes, fewer than 300"
    assert _apart(SIMULATED, few) == set()
