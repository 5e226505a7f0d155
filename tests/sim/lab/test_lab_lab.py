"""What can be done to a lab, on real namespaces, with stand-ins where a node would run."""

from __future__ import annotations

import os
import shutil

import pytest

from dataplane.backend import Capacity, Unavailable
from dataplane.xdp import layout, pins
from mesh.core.errors import BadInput, NotFound, NotReady, Refused
from sim.lab import lab as lab_module
from sim.lab import netns, processes, state
from sim.lab.lab import Lab, leftovers
from sim.lab.state import State
from sim.lab.topology import LabSpec, plan
from tests.sim.lab.conftest import by_another


def test_down_leaves_nothing_and_can_be_repeated(stand_in_lab: Lab) -> None:
    lab = stand_in_lab
    pids = [gateway.pid for gateway in lab.gateways()]
    assert all(pids)
    stray = processes.spawn(
        lab.pod("a-v1-1").netns, ["sleep", "300"], log=lab.directory / "stray.log"
    )
    lab.down()
    assert leftovers(lab.name) == []
    assert not lab.directory.exists()
    assert not (state.STATE_ROOT / f".{lab.name}.lock").exists()
    assert not processes.alive(stray)
    assert not [pid for pid in pids if pid is not None and processes.identify(pid)]
    assert not Lab.take_down(lab.name)
    with pytest.raises(NotFound):
        Lab.open(lab.name)


def test_down_of_a_half_made_lab(xdp: None, lab_name: str) -> None:
    """Interrupted anywhere: with a state file or none, with some namespaces or none."""
    topology = plan(LabSpec(name=lab_name, sites=2, vpcs=1))
    netns.create_namespace(topology.gateways[1].netns)
    assert Lab.take_down(lab_name)
    assert leftovers(lab_name) == []

    state.make_directory(topology)
    state.save(State(topology))
    with pytest.raises(NotReady, match="half made"):
        Lab.open(lab_name)
    with pytest.raises(Refused, match="is up already"):
        Lab.up(LabSpec(name=lab_name))
    (state.lab_directory(lab_name) / state.STATE_NAME).write_text("{")
    netns.create_namespace(topology.wan_netns)
    assert Lab.take_down(lab_name)
    assert leftovers(lab_name) == []
    assert not state.exists(lab_name)


def test_pins_of_the_nodes_go_with_the_lab(root: None, bpffs: None, lab_name: str) -> None:
    mine, other = pins.PinDir(f"wl-{lab_name}-a1"), pins.PinDir(f"wl-{lab_name}-x-a1")
    for directory in (mine, other):
        directory.make()
        os.close(*directory.require_maps([layout.maps(Capacity(endpoints=16))["endpoints"]]))
    try:
        assert leftovers(lab_name) == [f"pins {mine.path}"]
        assert Lab.take_down(lab_name)
        assert leftovers(lab_name) == []
        assert other.path.exists()
    finally:
        pins.remove(other.path)


def test_an_up_that_fails_takes_everything_down(
    xdp: None, lab_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the first node is set up: namespaces and processes are there already."""

    def interrupted(node: object, mesh: str) -> None:
        assert leftovers(lab_name)
        raise KeyboardInterrupt

    monkeypatch.setattr(lab_module, "found", interrupted)
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Lab.up(LabSpec(name=lab_name, sites=2, vpcs=1), said.append)
    assert "taking everything down" in said[-1]
    assert leftovers(lab_name) == []
    assert not state.exists(lab_name)


def test_only_root_makes_a_lab(lab_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NotReady, match="run this as root"):
        Lab.up(LabSpec(name=lab_name))


def test_what_a_lab_lacks_is_said_before_anything_is_made(
    root: None, lab_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack() -> None:
        raise Unavailable("bcc not importable")

    monkeypatch.setattr(lab_module, "require_xdp", lack)
    with pytest.raises(NotReady, match="cannot run here: bcc not importable"):
        Lab.up(LabSpec(name=lab_name))
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    with pytest.raises(NotReady, match="nsenter is not installed"):
        Lab.up(LabSpec(name=lab_name))
    assert leftovers(lab_name) == []


def test_a_killed_node_is_gone_and_shown_as_such(stand_in_lab: Lab) -> None:
    lab = stand_in_lab
    pid = lab.gateway("a1").pid
    assert lab.kill("a1") == pid
    assert lab.gateway("a1").pid is None
    gateways = {g["name"]: g for site in lab.status()["sites"] for g in site["gateways"]}
    assert gateways["a1"]["pid"] is None
    assert gateways["b1"]["pid"] == lab.gateway("b1").pid is not None
    with pytest.raises(Refused, match="the node of a1 does not run"):
        lab.kill("a1")
    with pytest.raises(NotFound, match="no gateway 'z1'"):
        lab.kill("z1")


def test_status_has_the_shape_that_scripts_depend_on(stand_in_lab: Lab) -> None:
    lab = stand_in_lab
    status = lab.status()
    assert list(status) == ["name", "sites", "partitions"]
    assert status["partitions"] == []
    site = status["sites"][0]
    assert list(site) == ["name", "gateways", "pods"]
    gateway, pod = site["gateways"][0], site["pods"][0]
    assert list(gateway) == ["name", "netns", "socket", "underlay_ip", "pid", "wan_if"]
    assert pod == {
        "name": "a-v1-1",
        "netns": f"wl-{lab.name}-a-v1-1",
        "vpc": "v1",
        "ip": "10.0.1.10",
        "mac": "02:01:0a:00:01:0a",
    }


def test_partitions_are_remembered_until_healed(stand_in_lab: Lab) -> None:
    lab = stand_in_lab
    lab.partition("a", "b")
    assert Lab.open(lab.name).status()["partitions"] == [["a"], ["b"]]
    with pytest.raises(BadInput):
        lab.partition("a,b")
    assert Lab.open(lab.name).state.partitions == (("a",), ("b",))
    lab.heal()
    assert Lab.open(lab.name).status()["partitions"] == []


def test_commands_run_where_they_are_asked_for(stand_in_lab: Lab) -> None:
    lab = stand_in_lab
    done = lab.run_in("a-v1-1", ["ip", "-4", "-o", "addr", "show", "eth0"])
    assert "10.0.1.10/24" in done.stdout
    done = lab.run_in("b1", ["sh", "-c", "echo $WEFT_SOCKET; exit 7"])
    assert (done.returncode, done.stdout.strip()) == (7, str(lab.node("b1").socket))
    with pytest.raises(NotFound, match="no pod or gateway 'q'"):
        lab.run_in("q", ["true"])


def test_a_ping_that_nobody_answers_is_counted(stand_in_lab: Lab) -> None:
    lab = stand_in_lab
    result = lab.ping("a-v1-1", "b-v1-1", count=2, interval_s=0.01, timeout_s=0.05)
    assert (result.sent, result.received, result.rtt_ms) == (2, 0, None)
    with pytest.raises(BadInput, match=r"'10.0.1'"):
        lab.ping("a-v1-1", "10.0.1")
    with pytest.raises(NotFound, match="no pod 'nobody'"):
        lab.ping("a-v1-1", "nobody")


def test_a_pod_whose_endpoint_is_refused_is_not_added(stand_in_lab: Lab) -> None:
    """The stand-in answers no API, so the mesh cannot have taken it."""
    lab = stand_in_lab
    with pytest.raises(NotReady):
        lab.add_pod("a-v1-9", "a1", "v1", "10.0.1.99")
    assert f"wl-{lab.name}-a-v1-9" not in netns.list_namespaces()
    with pytest.raises(NotFound):
        Lab.open(lab.name).pod("a-v1-9")


def test_a_lab_is_changed_by_one_command_at_a_time(stand_in_lab: Lab) -> None:
    lab = stand_in_lab
    with state.locked(lab.name), pytest.raises(Refused, match="another command"):
        by_another(lab.heal)
