"""Scenario files: what is read, and what is said about a mistake."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.core.errors import BadInput
from sim.core.clock import SECOND_NS
from sim.core.events import Crash, Cut, Flap
from sim.core.scenario import parse
from sim.core.tables import Misread


def test_a_number_of_writes_leaves_no_rate_to_choose() -> None:
    with pytest.raises(Misread, match="leave out one of the two"):
        parse({"workload": {"writes": 5, "rate_per_s": 2}})


def test_nothing_said_is_three_sites_without_faults() -> None:
    scenario = parse({})
    assert scenario.node_names == ("a-1", "b-1", "c-1")
    assert scenario.events == ()
    assert scenario.weather.mode == "stream"


def test_events_are_read_and_ordered() -> None:
    scenario = parse(
        {
            "site": [{"name": "x", "gateways": 2}, {"name": "y"}, {"name": "z"}],
            "network": {"link": [["x", "y", 80]]},
            "event": [
                {"at_s": 20, "restore": "x-2", "from_s": 5, "for_s": 1},
                {"at_s": 10, "cut": [["x"]], "for_s": 3},
                {"at_s": 15, "flap": ["x", "y"], "period_s": 2, "for_s": 9},
                {"at_s": 12, "crash": "y"},
            ],
        }
    )
    second = SECOND_NS
    assert scenario.events == (
        Cut(10 * second, (("x",), ("y", "z")), 3 * second),
        Crash(12 * second, "y-1", 0),
        Flap(15 * second, "x", "y", 2 * second, 9 * second),
        Crash(20 * second, "x-2", second, 5 * second),
    )
    assert scenario.links == {("x", "y"): 80_000_000, ("y", "x"): 80_000_000}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"duration": 5}, "duration: is not known here: did you mean duration_s?"),
        ({"sites": 0}, "sites: 0 is out of bounds: use 1 to 1000"),
        ({"sites": "3"}, "sites: '3' is not a whole number"),
        ({"sites": 2, "site": [{"name": "a"}]}, "sites: there is a [[site]]"),
        ({"site": [{"name": "A"}]}, "[[site]] 1 name: 'A' is no name"),
        ({"site": [{"name": "a"}, {"name": "a"}]}, "[[site]] 2 name: there is a site a already"),
        ({"network": 5}, "[network]: 5 is not a table"),
        ({"network": {"los": 0.1}}, "[network] los: is not known here: did you mean loss?"),
        ({"network": {"loss": 2}}, "[network] loss: 2 is out of bounds"),
        ({"network": {"loss": True}}, "[network] loss: True is not a number"),
        ({"network": {"mode": "tcp"}}, "[network] mode: 'tcp' is none of stream, datagram"),
        ({"network": {"duplicate": 0.1}}, 'duplicate and reorder need "datagram"'),
        ({"network": {"mode": "datagram", "reset": 0.1}}, 'reset needs "stream"'),
        ({"network": {"link": [["a", "q", 5]]}}, "[network] link[0]: no site 'q'"),
        ({"network": {"link": [["a", 5]]}}, "[network] link[0]: write"),
        ({"workload": {"mix": {"creat": 1}}}, "[workload.mix] creat: is not known here"),
        ({"workload": {"mix": {"create": 0}}}, "[workload] mix: all weights are 0"),
        ({"event": [{"cut": [["a"]]}]}, "[[event]] 1 at_s: is missing"),
        ({"event": [{"at_s": 5}]}, "[[event]] 1: does not say what happens: give one of cut"),
        (
            {"event": [{"at_s": 5, "cutt": 1}]},
            "[[event]] 1 cutt: is not known here: did you mean cut?",
        ),
        ({"event": [{"at_s": 5, "crash": "a", "leave": "a"}]}, "crash and leave in one"),
        ({"event": [{"at_s": 5, "crash": ["a"]}]}, "no node ['a']"),
        ({"event": [{"at_s": 5, "crash": 16**5000}]}, "no node …"),
        ({"event": [{"at_s": 5, "join": 16**5000}]}, "join: … is no site"),
        ({"event": [{"at_s": -5, "crash": "a"}]}, "at_s: -5 is out of bounds"),
        ({"event": [{"at_s": 5, "crash": "a", "for_s": -1}]}, "for_s: -1 is out of bounds"),
        ({"event": [{"at_s": 5, "forget": "b"}]}, "b-1 is still a member: retire it before"),
        ({"event": [{"at_s": i, "leave": "b"} for i in (1, 2)]}, "2 leave: b-1 has gone already"),
        ({"event": [3]}, "[[event]] 1: 3 is not a table"),
        ({"site": [{}]}, "[[site]] 1 name: is missing"),
        ({"vpc": [{"name": "v"}]}, "[[vpc]] 1 endpoints: name 1 to 199 sites: { a = 5 }"),
        (
            {"vpc": [{"name": "v", "endpoints": {"a": 1}}, {"name": "v", "endpoints": {"b": 2}}]},
            "[[vpc]] 2 name: there is a VPC v already",
        ),
        ({"vpc": [{"name": "v", "endpoints": {"d": 1}}]}, "[[vpc]] 1 endpoints d: is not known"),
        ({"vpc": [{"name": "v", "endpoints": {"a": -1}}]}, "endpoints a: -1 is out of bounds"),
        ({"vpc": [{"name": "extra-v", "endpoints": {"a": 1}}]}, "choose another"),
        (
            {"vpc": [{"name": "v", "endpoints": {"a": 1}}], "workload": {"endpoints": 3}},
            "[workload] endpoints: each [[vpc]] says so itself",
        ),
        (
            {"vpc": [{"name": f"v{i}", "endpoints": {"a": 10_000}} for i in range(21)]},
            "vpc: 210000 endpoints in all: have at most 200000",
        ),
        ({"event": [{"at_s": 5, "cut": [["a", "b", "c"]]}]}, "one group of all sites"),
        ({"event": [{"at_s": 5, "cut": [["a"], ["a"]]}]}, "site a is in two groups"),
        ({"event": [{"at_s": 5, "cut": ["a"]}]}, "write groups of sites"),
        ({"event": [{"at_s": 5, "crash": "d"}]}, "[[event]] 1 crash: no node 'd': there are"),
        ({"event": [{"at_s": 5, "crash": "b-11"}]}, "no node 'b-11': did you mean b-1?"),
        ({"event": [{"at_s": 5, "flap": ["a"]}]}, "write the two sites"),
        ({"event": [{"at_s": 99, "crash": "a"}]}, "at_s: 99 is after the end: use at most 60"),
        ({"event": [{"at_s": 5, "restore": "a", "from_s": 6}]}, "from_s: 6 is out of bounds"),
        ({"event": {}}, "event: {} is no list of tables: write [[event]] for each"),
        ({"site": [{"name": f"s{i}", "gateways": 16} for i in range(63)]}, "1008 gateways"),
    ],
)
def test_mistakes_are_told_with_their_place(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as error:
        parse(raw)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistake_knows_its_place() -> None:
    with pytest.raises(Misread) as error:
        parse({"event": [{"at_s": 1, "crash": "a"}, {"at_s": 999, "crash": "a"}]})
    assert error.value.place == ("event", 2, "at_s")


def test_small_replaces_what_it_names() -> None:
    raw = {
        "sites": 5,
        "workload": {"vpcs": 3, "rate_per_s": 9},
        "event": [{"at_s": 1, "crash": "e"}],
        "small": {"sites": 2, "workload": {"rate_per_s": 1}, "event": []},
    }
    whole, small = parse(raw), parse(raw, small=True)
    assert (len(whole.sites), whole.workload.rate_per_s, len(whole.events)) == (5, 9, 1)
    assert (len(small.sites), small.workload.rate_per_s, len(small.events)) == (2, 1, 0)
    assert small.workload.vpcs == 3


def test_latency_follows_from_places() -> None:
    berlin, madrid = [52.5, 13.4], [40.4, -3.7]
    scenario = parse({"site": [{"name": "a", "at": berlin}, {"name": "b", "at": madrid}]})
    assert 14_000_000 < scenario.links["a", "b"] == scenario.links["b", "a"] < 18_000_000


def test_who_joins_is_named_after_who_is_there() -> None:
    raw = {"sites": 2, "event": [{"at_s": 1, "join": "b"}, {"at_s": 2, "join": "z"}]}
    assert parse(raw).joining == (("b-2", "b"), ("z-1", "z"))


def test_a_hostile_node_needs_real_signatures() -> None:
    hostile = {"event": [{"at_s": 1, "hostile": "b"}]}
    assert parse(hostile).real_signatures
    assert not parse({}).real_signatures
    with pytest.raises(BadInput, match="forges"):
        parse({**hostile, "signatures": "keyed-hash"})
