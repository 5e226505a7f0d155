"""Scenario files: what is read, and what is said about a mistake."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import mesh.core
from mesh.core.effects import ALARMS
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
        ({"network": {"link": [["a", "q", 5]]}}, "[network] link[1]: no site 'q'"),
        ({"network": {"link": [["a", 5]]}}, "[network] link[1]: write"),
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
        ({"sites": ["a", "b"]}, "sites: is how many there are: write a [[site]]"),
        ({"site": [{"nme": "a"}]}, "[[site]] 1 nme: is not known here: did you mean name?"),
        ({"event": [{"at": 5, "cut": [["a"]]}]}, "1 at: is not known here: did you mean at_s?"),
        (
            {"event": [{"at_s": 5, "cut": [["a"]], "factor": 3}]},
            "factor: is not known here: known: at_s, cut, for_s",
        ),
        ({"small": {"small": {}}}, "[small] small: there is one [small] only"),
        ({"expect": {"alarms": ["nod.cloned"]}}, "no alarm 'nod.cloned': did you mean node.cloned"),
        ({"expect": {"alarms": [3]}}, "[expect] alarms: no alarm 3: there are chain.disproved"),
        ({"network": {"link": [["a", "a", 5]]}}, "link[1]: a twice: gateways of one site are on"),
        (
            {"network": {"link": [["a", "b", 5], ["b", "a", 6]]}},
            "link[2]: b and a are linked above already",
        ),
        ({"network": {"latency_ms": [[0, 1]]}}, "is one number for all links: call a table matrix"),
        ({"network": {"matrix_ms": 5}}, "[network] matrix_ms: 5 is not a list"),
        (
            {"network": {"matrix_ms": [[0, 1], [1, 0]]}},
            "matrix_ms: 2 rows for 3 sites: write one for each, in this order: a, b, c",
        ),
        (
            {"network": {"matrix_ms": [[0, 1, 2], [1, 0], [2, 1, 0]]}},
            "matrix_ms[2]: 2 numbers from b: write one to each of a, b, c",
        ),
        (
            {"network": {"matrix_ms": [[0, 1, 2], 7, [2, 1, 0]]}},
            "matrix_ms[2]: no numbers from b",
        ),
        (
            {"network": {"matrix_ms": [[0, 1, 2], [1, 0, -3], [2, 1, 0]]}},
            "matrix_ms[2]: -3 is out of bounds: use 0 to 60000",
        ),
        (
            {"network": {"matrix_ms": [[0, 1, 2], [1, 0, 3], [2, 1, 4]]}},
            "matrix_ms[3]: 4 from c to itself: write 0 there",
        ),
    ],
)
def test_mistakes_are_told_with_their_place(raw: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInput) as error:
        parse(raw)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        (
            [{"at_s": 5, "leave": "b"}, {"at_s": 9, "crash": "b"}],
            "2 crash: b-1 has gone at 5 s: leave this out",
        ),
        (
            [{"at_s": 9, "join": "d"}, {"at_s": 5, "stall": "d"}],
            "2 stall: d-1 joins at 9 s only: write a later at_s",
        ),
        (
            [{"at_s": 9, "join": "b"}, {"at_s": 5, "join": "b"}, {"at_s": 7, "crash": "b-3"}],
            "3 crash: b-3 joins at 9 s only",
        ),
        (
            [{"at_s": 9, "join": "d"}, {"at_s": 20, "restore": "d"}],
            "2 from_s: d-1 joins at 9 s, and has no disk before: use more",
        ),
        (
            [{"at_s": 9, "join": "d"}, {"at_s": 12, "power": "d", "lost_s": 4}],
            "2 lost_s: d-1 joins at 9 s, and has no disk before: use less",
        ),
        (
            [{"at_s": 9, "join": "d"}, {"at_s": 12, "clone": "d", "from_s": 4}],
            "2 from_s: d-1 joins at 9 s, and has no disk before: use more",
        ),
        ([{"at_s": 5, "retire": "a"}], "1 retire: a-1 is the only admin"),
        ([{"at_s": 5, "compromise": "a"}], "1 compromise: a-1 is the only admin"),
        (
            [{"at_s": 5, "leave": "a"}, {"at_s": 9, "join": "d"}],
            "2 join: a-1, the only admin, has left before: let it leave later",
        ),
        (
            [{"at_s": 5, "leave": "a"}, {"at_s": 9, "retire": "b"}],
            "2 retire: a-1, the only admin, has left before",
        ),
        (
            [{"at_s": i, "leave": site} for i, site in enumerate("cba")],
            "3 leave: no node is left that anything could be promised of",
        ),
    ],
)
def test_who_is_not_there_does_nothing(events: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(BadInput) as error:
        parse({"event": events})
    assert f"[[event]] {said}" in str(error.value)


def test_who_is_there_may_go() -> None:
    events: list[dict[str, Any]] = [
        {"at_s": 1, "join": "d"},
        {"at_s": 9, "restore": "d", "from_s": 2},
        {"at_s": 10, "hostile": "b"},
        {"at_s": 20, "compromise": "b"},
        {"at_s": 20, "forget": "b"},
        {"at_s": 30, "leave": "a"},
        {"at_s": 31, "leave": "d"},
    ]
    assert len(parse({"event": events}).events) == len(events)


def test_a_matrix_has_each_direction_and_measured_links_count_before_it() -> None:
    matrix = [[0, 10, 20], [11, 0, 30], [21, 31, 0]]
    scenario = parse({"network": {"matrix_ms": matrix, "link": [["a", "c", 5]]}})
    found = {pair: ns // 1_000_000 for pair, ns in scenario.links.items()}
    assert found == {
        **{("a", "b"): 10, ("b", "a"): 11, ("b", "c"): 30, ("c", "b"): 31},
        **{("a", "c"): 5, ("c", "a"): 5},
    }


def test_every_alarm_that_the_nodes_raise_is_known() -> None:
    core = Path(mesh.core.__file__).parent
    raised = {
        event
        for path in core.glob("*.py")
        for event in re.findall(r'\bAlarm\(\s*"([^"]+)"', path.read_text())
    }
    assert raised == set(ALARMS)


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
