"""VPCs laid out one by one: what a scenario says is what there is at the start."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sim.core.clock import SECOND_NS
from sim.core.scenario import parse
from sim.core.simulation import Simulation
from sim.seeding import chance_of

RAW: dict[str, Any] = {
    "duration_s": 20,
    "site": [{"name": "x", "gateways": 2}, {"name": "y"}, {"name": "z"}],
    "vpc": [
        {"name": "web", "endpoints": {"x": 300, "z": 7}},
        {"name": "ledger", "endpoints": {"y": 1}},
    ],
    "workload": {"rate_per_s": 0},
}


def test_each_site_has_the_endpoints_that_are_said_dealt_over_its_gateways() -> None:
    simulation = Simulation(parse(RAW), chance_of(1))
    result = simulation.run(1)
    assert result.ok, result.violations
    assert simulation.clock.now_ns >= 20 * SECOND_NS
    for machine in simulation.machines:
        assert machine.process is not None
        view = machine.process.view
        names = {vpc.id: vpc.name for vpc in view.vpcs.values()}
        members = machine.process.replica.roster.members()
        found = Counter((names[e.vpc], members[e.node].name) for e in view.endpoints())
        assert found == {
            ("web", "x-1"): 150,
            ("web", "x-2"): 150,
            ("web", "z-1"): 7,
            ("ledger", "y-1"): 1,
        }
        assert not view.conflicts()


def test_users_find_their_way_in_it() -> None:
    raw = {**RAW, "workload": {"rate_per_s": 20, "addresses": 200}}
    result = Simulation(parse(raw), chance_of(1)).run(1)
    assert result.ok, result.violations
    assert result.writes > 308 + 100
