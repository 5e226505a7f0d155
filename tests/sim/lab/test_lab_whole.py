"""Whole labs: real nodes, real libp2p, real XDP, through what a person can do to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mesh.cli.client import Client
from mesh.core.errors import Refused
from sim.core.scenario import LaidOut
from sim.lab import demo, objects
from sim.lab.lab import Lab, leftovers
from sim.lab.topology import LabSpec
from sim.reading import load

DEADLINE_S = 60.0


@pytest.fixture(scope="module")
def lab(xdp: None) -> Iterator[Lab]:
    """Two gateways at each of two sites; the second pod of each is in the stretched subnet. The
    underlay is IPv6: other tests' labs have IPv4."""
    name = f"t{os.getpid()}-whole"
    lab = Lab.up(LabSpec(name=name, sites=2, gateways=2, pods=2, vpcs=2, underlay="ipv6"))
    yield lab
    lab.down()
    assert leftovers(name) == []


def _await(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what


def _answered(lab: Lab, source: str, target: str) -> bool:
    return lab.ping(source, target, count=1, timeout_s=0.3).received == 1


def _linked(api: Client, count: int) -> bool:
    connected: int = api.get("/v1/status")["peers"]["connected"]
    return connected == count


def test_every_node_is_ready_and_knows_every_pod(lab: Lab) -> None:
    for gateway in lab.gateways():
        status = gateway.api.get("/v1/status")
        assert status["ready"] and status["dataplane"]["mode"] == "xdp"
        assert status["peers"]["known"] == 3
        _await(partial(_linked, gateway.api, 3), "every node is linked to every other")
        endpoints = gateway.api.get("/v1/endpoints")
        found = {(e["name"], e["ip"], e["mac"], e["site"], e["node"]) for e in endpoints}
        pods = lab.topology.pods
        assert found == {(p.name, p.ip, p.mac, p.site, p.gateway) for p in pods}
    _await(
        lambda: len({str(objects.digests(gateway.node)) for gateway in lab.gateways()}) == 1,
        "all hold the same",
    )


def test_the_objects_are_those_that_the_manual_promises(lab: Lab) -> None:
    api = lab.gateway("b2").api
    vpcs = {v["name"]: v for v in api.get("/v1/vpcs")}
    assert {name: v["cidrs"] for name, v in vpcs.items()} == {
        "v1": ["10.0.0.0/16"],
        "v2": ["10.0.0.0/16"],
    }
    assert vpcs["v1"]["tenant"] != vpcs["v2"]["tenant"]
    subnets = api.get("/v1/subnets", {"vpc": "v1"})
    assert {s["cidr"]: sorted(s["sites"]) for s in subnets} == {
        "10.0.1.0/24": ["a"],
        "10.0.2.0/24": ["b"],
        "10.0.200.0/24": ["a", "b"],
    }


def test_a_scenario_of_it_is_made_and_runs(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "lab.toml"
    done = lab.gateway("a1").weft("sim", "from-live", str(path))
    assert done.returncode == 0, done.stderr
    scenario = load(path)
    assert [(site.name, site.gateways) for site in scenario.sites] == [("a", 2), ("b", 2)]
    assert 0 < scenario.links["a", "b"] < 1_000_000_000
    assert scenario.workload.laid_out == (
        LaidOut("v1", {"a": 2, "b": 2}),
        LaidOut("v2", {"a": 2, "b": 2}),
    )
    assert lab.gateway("a1").weft("sim", "run", str(path)).returncode == 0


def test_weft_is_asked_at_a_gateway(lab: Lab) -> None:
    assert lab.gateway("a2").weft("status").returncode == 0
    done = lab.gateway("a2").weft("endpoint", "get", "--vpc", "v1", "10.0.99.99")
    assert done.returncode == 1


def test_a_cut_holds_for_what_xdp_sends(lab: Lab) -> None:
    lab.partition("a", "b")
    assert not _answered(lab, "a-v1-1", "b-v1-1")
    assert not _answered(lab, "b-v2-2", "a-v2-2")
    _await(lambda: _answered(lab, "a-v1-1", "a-v1-2"), "of two gateways of one site")
    lab.heal()
    _await(lambda: _answered(lab, "a-v1-1", "b-v1-1"), "pings go across again")
    _await(lambda: _answered(lab, "b-v2-2", "a-v2-2"), "pings go across again")


def test_pods_talk_on_while_a_node_is_killed_and_started(lab: Lab) -> None:
    with lab.pinger([("a-v1-1", "b-v1-1"), ("b-v1-1", "a-v1-2")]) as pinger:
        pinger.start(interval_s=0.01, timeout_s=DEADLINE_S)
        former = lab.kill("b1")
        with pytest.raises(Refused):
            lab.kill("b1")
        assert lab.start("b1") != former
        assert lab.start("b1") == lab.gateway("b1").pid, "one that runs is left alone"
        results = pinger.stop()
    assert [result.lost for result in results] == [0, 0]
    assert all(result.sent > 10 for result in results)
    _await(lambda: lab.gateway("b1").weft("status").returncode == 0, "b1 is ready again")
    assert lab.gateway("b1").weft("dataplane", "audit").returncode == 0


def test_a_pod_added_later_is_reached_from_everywhere(lab: Lab) -> None:
    lab.add_pod("b-v2-7", "b2", "v2", "10.0.200.77")
    _await(lambda: _answered(lab, "a-v2-1", "b-v2-7"), "the new pod answers")
    assert not _answered(lab, "a-v1-1", "10.0.200.77"), "it is in the other VPC"
    assert Lab.open(lab.name).pod("b-v2-7").ip == "10.0.200.77"
    with pytest.raises(Refused):
        lab.add_pod("a-v2-7", "a1", "v2", "10.0.200.77")
    assert [pod.name for pod in Lab.open(lab.name).topology.pods][-1] == "b-v2-7"


def test_the_demo_tells_its_story(xdp: None, capsys: pytest.CaptureFixture[str]) -> None:
    code = demo.run()
    told = capsys.readouterr().out
    assert code == 0, told
    assert "✗" not in told
    assert "0 of" in told
    assert told.count("s that are promised") == 1


def test_the_demo_says_whether_a_heal_took_as_long_as_is_promised() -> None:
    assert demo.in_time(1.234, 9.0) == "1.23 s after: within the 5 s that are promised"
    late = "7.10 s after: NOT within the 5 s that are promised (the nodes waited 2.5 s"
    assert demo.in_time(7.1, 2.5).startswith(late)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_interrupted_leaves_nothing(xdp: None, number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "sim.lab.demo"], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        # The first node runs then, others are being set up.
        while "founds the mesh" not in child.stdout.readline():
            assert child.poll() is None
        child.send_signal(number)
        child.stdout.read()
    assert child.wait(DEADLINE_S) == 128 + signal.SIGINT
    assert leftovers(f"{demo.LAB_PREFIX}{child.pid}") == []
