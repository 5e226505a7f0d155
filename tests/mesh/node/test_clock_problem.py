"""When a node's clock is said to be wrong: by what its linked peers' clocks show."""

from __future__ import annotations

import pytest

from mesh.core.clock import span_text
from mesh.node.service.membership import clock_problem
from tests.mesh.api_nodes import Running, until

S = 10**9
YEAR = 365 * 86_400 * S


@pytest.mark.parametrize(
    ("offsets_ns", "words"),
    [
        ([], None),
        ([10 * S, -10 * S], None),
        ([10 * S + 1], "10.00s behind those of 1 of 1"),
        ([YEAR], "365d behind those of 1 of 1"),
        ([-300 * S, -300 * S, 0], "5m ahead of those of 2 of 3"),
        ([YEAR, 0], None),
        ([YEAR, -YEAR], None),
        ([YEAR, -YEAR, YEAR], "365d behind those of 2 of 3"),
        ([YEAR, YEAR, 0, 0], None),
    ],
)
def test_the_majority_of_the_linked_peers_decides(offsets_ns: list[int], words: str | None) -> None:
    problems = clock_problem(offsets_ns)
    if words is None:
        assert problems == []
    else:
        (problem,) = problems
        assert words in problem["what"]
        assert "NTP" in problem["fix"]


@pytest.mark.parametrize(
    ("span_s", "text"),
    [(0, "0.00s"), (0.016, "0.02s"), (99.99, "99.99s"), (100, "2m"), (7200, "2h"),
     (365 * 86_400, "365d"), (2**64 / 1e9, "213504d")],
)  # fmt: skip
def test_spans_are_in_the_unit_people_think_of(span_s: float, text: str) -> None:
    assert span_text(span_s) == text


def test_it_is_said_of_a_real_node_whose_clock_is_off(first: Running, second: Running) -> None:
    def problems(node: Running) -> list[str]:
        return [p["what"] for p in node.ask("GET", "/v1/status")[1]["problems"]]

    until(lambda: clock_of(first, "b1") is not None, "the clocks are compared")
    assert problems(first) == []
    right_ns = second.node.transport._clock_ns
    second.node.transport._clock_ns = lambda: right_ns() - YEAR
    # A link takes the clock over when it begins.
    second.on_loop(lambda: second.node.transport.drop(first.node.id, "anew", 0))
    until(lambda: clock_of(first, "b1") == "-365d", "a1 sees b1's clock")
    until(lambda: clock_of(second, "a1") == "+365d", "b1 sees a1's clock")
    assert any("365d behind" in what for what in problems(second))
    metrics = second.ask("GET", "/metrics")[1]
    assert 'weft_peer_clock_offset_seconds{peer="a1"} 3153' in metrics
    until(lambda: second.ask("GET", "/v1/members")[1][0]["last_sync"] is not None, "they agree")


def clock_of(node: Running, name: str) -> str | None:
    members = {m["node"]: m["clock"] for m in node.ask("GET", "/v1/members")[1]}
    return members.get(name)
