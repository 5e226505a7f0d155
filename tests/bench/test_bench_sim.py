"""The simulator's bench in its short form: every section measures what it says."""

from __future__ import annotations

import math

import pytest

from tests.bench import sim

NAMES = {
    "schedules": ("over", "CPU of one"),
    "day": ("virtual hours",),
    "thousand-sites": (
        "wall",
        "CPU",
        "peak",
        "p50",
        "p99",
        "copies of an update",
        "sent by a site",
    ),
}


@pytest.mark.parametrize("section", list(sim.SECTIONS))
def test_a_section_gives_one_value_a_run(section: str) -> None:
    metrics = sim.SECTIONS[section](sim.SHORT)
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert len(metric.runs) == 1 and math.isfinite(metric.value) and metric.value > 0, metric
    for words in NAMES[section]:
        assert any(words in metric.name for metric in metrics), words
    assert any(metric.target for metric in metrics)


def test_an_update_is_sent_at_least_once_to_every_node() -> None:
    *_, copies, _ = sim.thousand_sites(sim.SHORT)
    assert "copies" in copies.name and copies.value >= 1
