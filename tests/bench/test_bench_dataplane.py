"""The data plane's bench in its short form: every section measures what it says."""

from __future__ import annotations

import math

import pytest

from tests.bench import dataplane
from tests.dataplane.conftest import xdp_machine as xdp_machine

NAMES = {
    "packet": ("encapsulation, always", "decapsulation, endpoints by chance", "IPv6 against"),
    "capacity": ("packets", "VXLAN"),
    "flows": ("1 stream", "4 streams", "ping"),
    "rows": ("fill", "audit", "one endpoint"),
}


@pytest.mark.parametrize("section", NAMES)
def test_a_section_gives_one_value_a_run(section: str, xdp_machine: None) -> None:
    metrics = dataplane.SECTIONS[section](dataplane.SHORT)
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert len(metric.runs) == 1 and math.isfinite(metric.value) and metric.value > 0, metric
    for words in NAMES[section]:
        assert any(words in metric.name for metric in metrics), words
    assert any(metric.target for metric in metrics)
