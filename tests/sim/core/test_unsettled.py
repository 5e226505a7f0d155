"""What is said of a mesh that did not come to rest: what had not settled, and how to mend it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from mesh.core.replica import Replica
from sim.core.scenario import parse
from sim.core.simulation import Result, run
from sim.seeding import chance_of

MOVES: dict[str, Any] = {
    "duration_s": 20,
    "quiet_s": 8,
    "sites": 3,
    "workload": {"vpcs": 1, "rate_per_s": 3, "mix": {"create": 3, "move": 3}},
}
SEEDS = range(4)


def _said(result: Result) -> list[str]:
    assert not result.converged
    assert {violation.check for violation in result.violations} == {"comes to rest in time"}
    return [violation.detail for violation in result.violations]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_time_that_is_said_to_be_enough_is(seed: int) -> None:
    """A claim is withdrawn 30 s after a move outranks it."""
    *due, last = _said(run(parse(MOVES), seed, chance_of(seed)))
    for words in due:
        assert re.match(
            r"[abc]-1 withdraws .*10\.0\.\d+\.\d+ in VPC vpc-0.*due \d+\.\d s after", words
        )
    enough = re.fullmatch(r"quiet_s is 8: use at least (\d+)", last)
    assert enough is not None, last
    assert 20 < int(enough[1]) < 40
    longer = run(parse({**MOVES, "quiet_s": int(enough[1])}), seed, chance_of(seed))
    assert longer.ok, longer.violations


def test_a_mesh_that_is_at_rest_when_its_time_is_over_is_at_rest() -> None:
    """Nothing happens at the end: the last look is one at the end itself."""
    for seed in SEEDS:
        result = run(parse({**MOVES, "quiet_s": 33}), seed, chance_of(seed))
        assert result.ok, (seed, result.violations)


def test_who_holds_what_is_said_where_that_differs() -> None:
    slow = {**MOVES, "quiet_s": 1, "network": {"latency_ms": 3000}}
    said = _said(run(parse({**slow, "workload": {"rate_per_s": 3}}), 1, chance_of(1)))
    assert any(re.fullmatch(r"shard mesh differs: [abc]-1.* \| [abc]-1.*", line) for line in said)
    assert said[-1].startswith("quiet_s is 1: use more")


def test_who_starts_in_the_last_moment_is_named() -> None:
    event = [{"at_s": 10, "crash": "c", "for_s": 100}]
    quiet = {"rate_per_s": 0, "endpoints": 0}
    table = {**MOVES, "quiet_s": 1, "event": event, "workload": quiet}
    said = _said(run(parse({**table, "network": {"latency_ms": 400}}), 1, chance_of(1)))
    assert any(line.startswith("c-1 takes no writes yet: it has just started") for line in said)


def test_nodes_that_hold_nothing_of_each_other_are_not_all_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Replica, "peer_up", lambda self, peer, now_ns, speaks: None)
    many = {**MOVES, "sites": 30, "workload": {"rate_per_s": 0, "endpoints": 0}}
    said = _said(run(parse(many), 1, chance_of(1)))
    differing = next(line for line in said if line.startswith("shard mesh differs: a-1 | b-1 | "))
    assert differing.endswith(" | and 22 more")
    assert len(said) <= 14
