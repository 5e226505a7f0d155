"""The node's bench in its short form: every section measures what it says, on real processes."""

from __future__ import annotations

import math

import pytest

from tests.bench import node
from tests.bench.node_mesh import sent_bytes, sent_since

NAMES = {
    "latency": ("p50", "p99", "durable at A"),
    "idle": ("CPU", "memory", "a link"),
    "partition": ("heal to equal digests", "bytes sent"),
    "spread": ("p99 of all deliveries", "CPU a 5 nodes"),
    "large": ("bytes on disk", "until the API answers", "from its link", "loop, its CPU"),
}


@pytest.mark.parametrize("section", list(node.SECTIONS))
def test_a_section_gives_one_value_a_run(section: str) -> None:
    metrics = node.SECTIONS[section](node.SHORT)
    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert len(metric.runs) == 1 and math.isfinite(metric.value) and metric.value >= 0, metric
    for words in NAMES[section]:
        assert any(words in metric.name for metric in metrics), words
    assert any(metric.target for metric in metrics)


def test_no_connection_has_sent_nothing() -> None:
    assert sent_bytes([1]) == {}
    kept, ended, new = ("a", "b"), ("a", "c"), ("a", "d")
    assert sent_since({kept: 5, ended: 7}, {kept: 6, new: 3}) == 4
