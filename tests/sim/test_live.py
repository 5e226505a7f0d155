"""`weft sim from-live`: the scenario is of the mesh that a node sees, and it runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mesh.cli.app import run
from mesh.core.errors import Refused
from sim.core.clock import MS_NS, SECOND_NS
from sim.core.scenario import LaidOut
from sim.live import Seen, scenario_text
from sim.reading import checked, load
from tests.mesh.api_nodes import founded, joined, running, until

Json = dict[str, Any]
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def member(node: str, site: str, rtt: float | None = None, state: str = "active") -> Json:
    return {"node": node, "site": site, "state": state, "rtt": rtt, "path": "direct"}


def endpoints(vpc: str, site: str, count: int, age_s: float = 9999.0) -> list[Json]:
    return [{"vpc": vpc, "site": site, "age_s": age_s}] * count


def seen(**other: Any) -> Seen:
    """Three sites; the links to two of them are measured."""
    shards = {"mesh": {"chains": 3, "records": 9}, "id1": {"chains": 2, "records": 5}}
    found: Json = {
        "status": {"mesh": "m", "node": "a1", "site": "a", "shards": shards},
        "members": [
            member("a1", "a"),
            member("a2", "a", 0.3),
            member("b1", "b", 30.0),
            member("b2", "b", 34.0),
            member("c1", "c"),
            member("d1", "d", 80.0),
            member("e1", "e", state="retired"),
        ],
        "vpcs": [{"name": "web", "id": "1" * 32}, {"name": "extra-x", "id": "2" * 32}],
        "subnets": [{"vpc": "extra-x", "sites": ["c", "e"]}],
        "endpoints": [*endpoints("web", "a", 7, 60.0), *endpoints("web", "b", 2)],
        "elsewhere": [],
    }
    return Seen(**(found | other))


def test_what_was_seen_is_in_it_and_what_was_guessed_is_said() -> None:
    text = scenario_text(seen(), NOON)
    scenario = checked(text, "x")
    assert [(s.name, s.gateways) for s in scenario.sites] == [
        ("a", 2), ("b", 2), ("c", 1), ("d", 1),
    ]  # fmt: skip
    assert scenario.links == {
        ("a", "b"): 16 * MS_NS,
        ("b", "a"): 16 * MS_NS,
        ("a", "d"): 40 * MS_NS,
        ("d", "a"): 40 * MS_NS,
    }
    assert scenario.latency_ns == 28 * MS_NS
    assert scenario.workload.laid_out == (
        LaidOut("web", {"a": 7, "b": 2}),
        LaidOut("vpc-extra-x", {"c": 0}),
    )
    for said in (
        "# The mesh m as node a1 of site a saw it on 2030-01-01 12:00 UTC.",
        "# each VPC at each site. It holds 2 shards: 5 chains, 14 records.",
        "# Left out: 1 members that were retired or forgotten.",
        "a guess, the median of those measured",
        "# Not linked to this node, so not measured: c.",
        "7 claims were made in the last hour",
    ):
        assert said in text
    assert max(map(len, text.splitlines())) <= 120


def test_of_vpcs_that_are_not_kept_there_nothing_is_claimed() -> None:
    scenario = checked(scenario_text(seen(elsewhere=["web"]), NOON), "x")
    assert [vpc.name for vpc in scenario.workload.laid_out] == ["vpc-extra-x"]
    assert scenario.hosted_share == 1.0
    text = scenario_text(seen(vpcs=[], endpoints=[], subnets=[]), NOON)
    assert checked(text, "x").workload.vpcs == 1
    assert "made up" in text
    gone = [member("a1", "a", state="retired"), member("b1", "b"), member("c1", "c")]
    assert len(checked(scenario_text(seen(members=gone), NOON), "x").sites) == 2


def test_two_vpcs_of_one_name_go_by_their_ids() -> None:
    twins = [{"name": "twin", "id": "1" * 32}, {"name": "twin", "id": "2" * 32}]
    text = scenario_text(seen(vpcs=twins, endpoints=endpoints("2" * 32, "b", 3)), NOON)
    laid_out = checked(text, "x").workload.laid_out
    assert laid_out == (LaidOut("1" * 32, {"a": 0}), LaidOut("2" * 32, {"b": 3}))


def test_a_large_mesh_is_cut_down_and_that_is_said() -> None:
    members = [member("a1", "a"), *(member(f"s{i}-1", f"s{i}", 10.0) for i in range(250))]
    many = [row for i in range(250) for row in endpoints("web", f"s{i}", 10)]
    found = seen(members=members, endpoints=[*many, *endpoints("web", "s0", 20_000)])
    text = scenario_text(found, NOON)
    scenario = checked(text, "x")
    assert scenario.views == 20
    (web, _) = scenario.workload.laid_out
    assert (len(web.endpoints), web.endpoints["s0"]) == (199, 10_000)
    assert "# There are s0 = 20010; a run takes 10000 at a site." in text
    assert "# And at 51 more sites: a run takes 199." in text
    huge = seen(endpoints=[row for v in "vwxyz" for row in endpoints(v, "a", 50_000)])
    assert "# 250000 are more than a run takes" in scenario_text(huge, NOON)
    with pytest.raises(Refused, match="site a has 17 gateways"):
        scenario_text(seen(members=[member(f"a{i}", "a") for i in range(17)]), NOON)
    with pytest.raises(Refused, match="1001 nodes"):
        scenario_text(seen(members=[member("x", f"s{i}") for i in range(1001)]), NOON)


def test_it_is_made_from_real_nodes_and_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(founded(tmp_path)) as first:
        config = joined(tmp_path, first, "b1", "b", "127.0.0.2")
        with running(config) as second:
            body = {"name": "web", "vni": 7, "cidrs": ["10.0.0.0/16"]}
            assert first.ask("POST", "/v1/vpcs", body)[0] == 200
            subnet = {"name": "s", "vpc": "web", "cidr": "10.0.1.0/24", "sites": ["a", "b"]}
            assert first.ask("POST", "/v1/subnets", subnet)[0] == 200
            until(_knows(second, "subnets", 1), "the subnet is known")
            for node, hosts in ((first, (5, 6)), (second, (7,))):
                for host in hosts:
                    claim = {"vpc": "web", "ip": f"10.0.1.{host}"}
                    assert node.ask("POST", "/v1/endpoints", claim)[0] == 200
            until(_knows(first, "endpoints", 3), "all endpoints are known")
            until(lambda: all(m["rtt"] for m in first.ask("GET", "/v1/members")[1]
                              if m["node"] == "b1"), "the round trip is measured")  # fmt: skip
            path = tmp_path / "mine.toml"
            options = ["--socket", str(first.socket)]
            assert run(["sim", "from-live", str(path), *options]) == 0
            assert run(["sim", "from-live", str(path), *options]) == 2, "not written over"
            assert run(["sim", "from-live", str(path), "--force", *options]) == 0
            capsys.readouterr()
            assert run(["sim", "from-live", *options]) == 0
            assert checked(capsys.readouterr().out, "stdout") == load(path)
    scenario = load(path)
    assert [site.name for site in scenario.sites] == ["a", "b"]
    assert 0 < scenario.links["a", "b"] < SECOND_NS
    assert scenario.workload.laid_out == (LaidOut("web", {"a": 2, "b": 1}),)
    assert run(["sim", "run", str(path)]) == 0
    assert run(["sim", "from-live", *options]) == 3, "nobody answers any more"


def _knows(node: Any, kind: str, count: int) -> Callable[[], bool]:
    return lambda: len(node.ask("GET", f"/v1/{kind}")[1]) == count
