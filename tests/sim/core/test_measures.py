"""What a run measures, where nodes do not all hold the same."""

from __future__ import annotations

from typing import Any

import pytest

from sim.core.scenario import parse
from sim.core.simulation import run
from sim.seeding import chance_of


@pytest.mark.parametrize("interest", ["every", "hosted"])
def test_a_heal_is_over_when_each_has_what_is_for_it(interest: str) -> None:
    """With "hosted", c keeps nothing of the first VPC and a nothing of the second."""
    raw: dict[str, Any] = {
        "duration_s": 20,
        "sites": 3,
        "interest": interest,
        "vpc": [
            {"name": "one", "endpoints": {"a": 2, "b": 2}},
            {"name": "two", "endpoints": {"b": 1, "c": 2}},
        ],
        "workload": {"rate_per_s": 6, "mix": {"create": 2, "delete": 1}},
        "event": [{"at_s": 5, "cut": [["b"]], "for_s": 8}],
    }
    result = run(parse(raw), 1, chance_of(1))
    assert result.ok, result.violations
    assert result.heal_s is not None and 0 < result.heal_s < 10


@pytest.mark.parametrize("sites", [2, 4])
def test_digests_are_equal_within_five_seconds_of_the_end_of_a_cut(sites: int) -> None:
    """Small differences, 50 ms between sites, and links that are lost in the cut."""
    raw: dict[str, Any] = {
        "duration_s": 70,
        "sites": sites,
        "vpc": [{"name": "one", "endpoints": {"a": 2, "b": 2}}],
        "network": {"latency_ms": 50},
        "workload": {"rate_per_s": 2, "mix": {"create": 2, "delete": 1, "claim": 4}},
        "event": [
            {"at_s": 5, "cut": [["a"]], "for_s": 20},
            {"at_s": 40, "cut": [["b"]], "for_s": 9},
        ],
    }
    for seed in range(3):
        result = run(parse(raw), seed, chance_of(seed))
        assert result.ok, (seed, result.violations)
        assert result.heal_s is not None and result.heal_s < 5, seed
