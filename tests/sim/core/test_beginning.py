"""Runs that start converged: what nodes share is what each would have by itself."""

from __future__ import annotations

import pytest

from sim.core.scenario import Scenario, parse
from sim.core.shared import Steps
from sim.core.simulation import Simulation, run
from sim.seeding import chance_of


def converged(**over: object) -> Scenario:
    table: dict[str, object] = {
        "duration_s": 15,
        "quiet_s": 120,
        "sites": 12,
        "views": 4,
        "start": "converged",
        "network": {"latency_ms": 30, "loss": 0.05},
        "workload": {"vpcs": 3, "sites_per_vpc": 6, "endpoints": 3, "rate_per_s": 5},
        "faults": {"cuts": 1, "crashes": 2, "restores": 1, "power_losses": 1, "torn": 1},
    }
    return parse({**table, **over})


def test_everything_is_everywhere_from_the_first_moment() -> None:
    simulation = Simulation(converged(), chance_of(1))
    for machine in simulation.machines[:12]:
        machine.start()
    first, *others = [m.process for m in simulation.machines[:12] if m.process is not None]
    assert len(others) == 11
    assert len(first.view.vpcs) == 3
    assert {e.node for e in first.view.endpoints()} == {
        m.identity.node for m in simulation.machines
    }
    assert len(first.replica.lattice.shards()) == 4
    assert all(first.digests() == other.digests() for other in others)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_shared_is_what_each_would_have_by_itself(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = converged()
    shared = run(scenario, seed, chance_of(seed))
    assert shared.ok, shared.violations
    monkeypatch.setattr(Steps, "joined", lambda steps, given: None)
    monkeypatch.setattr(Steps, "stored", lambda steps, given: None)
    alone = run(scenario, seed, chance_of(seed))
    assert alone.fingerprint == shared.fingerprint
    assert alone == shared
