"""The bench of recovery in its short form: every section measures what it says."""

from __future__ import annotations

import math

import pytest

from tests.bench import recovery

NAMES = {
    "start": ("bytes stored", "forwarding, API answers", "bytes written / key and record"),
    "writes": ("one by one", "a write / one fdatasync", "at once", "imported", "bytes written"),
}


SECTIONS = [section for section in recovery.SECTIONS if section != "kill"]
"""Kills are the soak's, and tested there."""


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_gives_one_value_a_run(section: str) -> None:
    metrics = recovery.SECTIONS[section](recovery.SHORT)
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert len(metric.runs) == 1 and math.isfinite(metric.value) and metric.value >= 0, metric
    for words in NAMES[section]:
        assert any(words in metric.name for metric in metrics), words
    assert any(metric.target for metric in metrics)
