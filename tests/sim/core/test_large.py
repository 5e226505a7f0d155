"""The bounds of `thousand-sites`, in a tenth of it: where something grew with the square of the
nodes, frames and bytes of an update would show it."""

from __future__ import annotations

from sim.core.scenario import parse
from sim.core.simulation import run
from sim.seeding import chance_of

SITES = 100


def test_an_update_is_everywhere_soon_and_costs_each_node_little() -> None:
    scenario = parse(
        {
            "duration_s": 6,
            "quiet_s": 120,
            "sites": SITES,
            "views": 4,
            "start": "converged",
            "network": {"latency_ms": 50, "loss": 0.05},
            "workload": {
                "vpcs": 5,
                "sites_per_vpc": 40,
                "endpoints": 20,
                "addresses": 200,
                "rate_per_s": 20,
                "mix": {"create": 4, "delete": 3, "recreate": 2, "move": 1},
            },
            "expect": {"push_p99_s_max": 0.8, "copies_max": 5},
        }
    )
    result = run(scenario, 1, chance_of(1))
    assert result.ok, result.violations
    assert result.updates > 100
    assert result.reached == 1
    deliveries = result.updates * (SITES - 1)
    # Each is a good third above what it is, and half of what it was when no link rested.
    assert result.frames / deliveries < 4.2
    assert result.events / deliveries < 5.8
    assert result.bytes_per_site / result.updates < 2400  # heartbeats and all that TCP carries
