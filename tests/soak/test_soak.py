"""A minute of the soak, a short form of the kills, and what tells growth from noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import __main__ as soaks
from tests.soak.kills import kill_nodes
from tests.soak.node import SETTLE_ROUNDS, soak
from tests.soak.slopes import LIMITS, MIB, grows, slope_per_hour

SOAK_S = 60.0
ROUNDS = SETTLE_ROUNDS + 3
"""At the least, however long they take: a slow machine is to see as much as a fast one."""
KILLS = 3


def test_a_slope_is_that_of_the_line() -> None:
    assert slope_per_hour([(s, 5.0 + s / 3600) for s in range(0, 100, 7)]) == pytest.approx(1.0)
    assert slope_per_hour([(1.0, 5.0)]) == slope_per_hour([]) == 0.0


def test_a_leak_is_told_from_noise() -> None:
    limit = LIMITS["resident"]
    leak = [(float(s), (100 + s / 20) * MIB) for s in range(1800)]
    steps = [(float(s), (100 + 20 * (s > 300)) * MIB) for s in range(1800)]
    flat = [(float(s), (100 + s % 7) * MIB) for s in range(1800)]
    assert grows(leak, limit)
    assert not grows(steps, limit) and not grows(flat, limit) and not grows([], limit)


def test_real_nodes_under_churn_and_kills_converge_and_do_not_grow(tmp_path: Path) -> None:
    *_, report = soak(tmp_path, SOAK_S, 1, ROUNDS)
    assert report.kills and report.rows
    assert report.ok, [row for row in report.rows if row[-1]]


def test_nothing_acknowledged_is_lost_when_nodes_are_killed(tmp_path: Path) -> None:
    assert len(kill_nodes(tmp_path, KILLS, 1)) == KILLS


def test_schedules_are_run_from_a_seed_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert soaks.main(["sim", "2", "7"]) == 0
    said = capsys.readouterr().out.split()
    assert said[said.index("DONE") + 1] == "2"


def test_an_unknown_part_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert soaks.main(["nothing"]) == 2
    assert "sim|kills|stores" in capsys.readouterr().err
