"""What a scenario asks of real nodes, and what of it is refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mesh.core.errors import BadInput
from sim.core.clock import SECOND_NS
from sim.core.scenario import parse
from sim.lab.playing import topology_of
from sim.lab.script import PLAYED, check_playable, script_of
from sim.lab.topology import Gateway
from sim.reading import load

RAW: dict[str, Any] = {
    "duration_s": 20,
    "site": [{"name": "berlin", "gateways": 2}, {"name": "madrid"}],
    "vpc": [{"name": "web", "endpoints": {"berlin": 4, "madrid": 1}}],
    "workload": {"rate_per_s": 5},
    "event": [{"at_s": 5, "join": "oslo"}, {"at_s": 8, "join": "berlin"}],
}


def test_the_requests_are_those_of_the_simulation_in_the_labs_names() -> None:
    script = script_of(parse(RAW), 3)
    assert script.simulated.ok
    assert script.sites == {"berlin": "a", "madrid": "b", "oslo": "c"}
    assert script.gateways == {
        "berlin-1": "a1",
        "berlin-2": "a2",
        "madrid-1": "b1",
        "oslo-1": "c1",
        "berlin-3": "a3",
    }
    calls = [(r.call, r.arguments["name"], r.arguments.get("sites")) for r in script.founding]
    assert calls == [
        ("add_vpc", "web", None),
        ("add_subnet", "home-berlin", ["a"]),
        ("add_subnet", "home-madrid", ["b"]),
        ("add_subnet", "stretched", ["a", "b"]),
    ]
    asked = {(r.call, r.gateway, r.arguments.get("ip")) for r in script.requests}
    for gateway, ip in (
        ("a1", "10.1.0.10"),
        ("a2", "10.1.0.11"),
        ("a1", "10.1.0.12"),
        ("a2", "10.1.0.13"),
        ("b1", "10.2.0.10"),
    ):
        assert ("add_endpoint", gateway, ip) in asked
    assert {r.call for r in script.requests} <= set(PLAYED)
    vpcs = {str(r.arguments[k]) for r in script.requests for k in ("vpc", "a") if k in r.arguments}
    assert not any(len(vpc) == 32 for vpc in vpcs), "names, no ids"
    times = [request.at_s for request in script.requests]
    assert times == sorted(times) and times[-1] < 20
    mix = {"trespass": 1, "admit": 1, "create": 1}
    left = script_of(parse({**RAW, "workload": {"rate_per_s": 5, "mix": mix}}), 3).unplayed
    assert left.keys() == {"set_vpc sites", "what no API takes"}
    assert script_of(parse(RAW), 3) == script


def test_the_lab_has_the_gateways_of_the_scenario_and_no_others() -> None:
    script = script_of(parse(RAW), 3)
    topology = topology_of(script, "x")
    assert [gateway.name for gateway in topology.gateways] == ["a1", "a2", "a3", "b1", "c1"]
    assert all(isinstance(gateway, Gateway) for gateway in topology.gateways)
    assert (topology.pods, topology.vpcs, topology.subnets) == ((), (), ())
    assert topology.interest == "all"
    assert topology_of(script_of(parse({**RAW, "interest": "hosted"}), 3), "x").interest == "hosted"


@pytest.mark.parametrize("small", [False, True])
def test_the_scenarios_that_are_said_to_be_playable_are(small: bool) -> None:
    """By the README: by themselves, and with --small."""
    root = Path(__file__).parents[3] / "sim"
    text = (root / "README.md").read_text()
    said = text.partition("Of the scenarios here these can be: ")[2].partition(".\n")[0]
    by_themselves, _, with_small = said.partition("`--small`")
    names = set(re.findall(r"`([a-z-]+)\.toml`", with_small if small else by_themselves))
    assert len(names) >= 3
    for path in sorted((root / "scenarios").glob("*.toml")):
        playable = path.stem in names
        if small and not playable and path.stem in by_themselves:
            continue
        try:
            check_playable(load(path, small=small))
        except BadInput:
            assert not playable, path.stem
        else:
            assert playable, path.stem


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"event": [{"at_s": 5, "stall": "madrid"}]}, "[[event]] stall madrid-1 at 5 s: is not"),
        ({"event": [{"at_s": 5, "hostile": "madrid"}]}, "[[event]] hostile madrid-1 at 5 s"),
        ({"event": [{"at_s": 5, "full": "madrid"}]}, "[[event]] full madrid-1 at 5 s"),
        ({"event": [{"at_s": 5, "torn": "madrid"}]}, "[[event]] torn madrid-1 at 5 s"),
        ({"event": [{"at_s": 5, "clone": "madrid"}]}, "[[event]] clone madrid-1 at 5 s"),
        ({"event": [{"at_s": 5, "clock": "madrid", "step_s": 9}]}, "[[event]] clock madrid-1"),
        ({"event": [{"at_s": 5, "leave": "berlin"}]}, "berlin-1 is the only admin"),
        ({"faults": {"cuts": 2}}, "[faults] cuts: what is left to chance is not played live"),
        ({"faults": {"rotations": 1}}, "[faults] rotations: what is left to chance"),
        ({"faults": {"upgrades": 1}}, "[faults] upgrades: what is left to chance"),
        ({"network": {"mode": "datagram"}}, "[network] mode: real nodes have TCP"),
        ({"network": {"reset": 0.1}}, "[network] reset: real nodes have TCP"),
        ({"views": 1}, "views: real nodes all keep views"),
        ({"interest": "either"}, "interest: say which"),
        ({"duration_s": 5000}, "duration_s: 5000: a lab plays up to 1800"),
        ({"workload": {"rate_per_s": 500}}, "rate_per_s: 500: a lab plays up to 50"),
        ({"site": [{"name": "x", "release": 1}], "vpc": [], "event": []}, "[[site]] x release"),
        ({"start": "converged"}, "start: real nodes start empty"),
        ({"event": [{"at_s": 5, "upgrade": "madrid", "to": 2}]}, "[[event]] upgrade madrid-1"),
        ({"site": [{"name": f"s{i}"} for i in range(9)], "vpc": []}, "10 sites and 11 gateways"),
        (
            {"vpc": [{"name": "v", "endpoints": {"berlin": 2001}}], "duration_s": 5, "event": []},
            "claims of endpoints: a lab plays up to 2000",
        ),
    ],
)
def test_what_cannot_be_played_is_refused_by_name(more: dict[str, Any], said: str) -> None:
    raw = {**RAW, **more}
    if "site" in more and "event" not in more:
        raw["event"] = [{"at_s": 5, "join": "oslo"}, {"at_s": 8, "join": "s0"}]
    scenario = parse(raw)
    assert scenario.duration_ns >= 5 * SECOND_NS
    with pytest.raises(BadInput) as error:
        script_of(scenario, 0)
    assert said in str(error.value)
