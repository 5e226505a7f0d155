"""Watching the view of real nodes: every change once it is there, and nothing that is not one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from mesh.node import watching
from tests.mesh.api_nodes import Running, cut, heal, until


@pytest.fixture
def watch(first: Running) -> Iterator[str]:
    status, begun = first.ask("POST", "/v1/watches", {})
    assert status == 200
    yield begun["watch"]
    first.ask("DELETE", f"/v1/watches/{begun['watch']}")


def changes(node: Running, watch: str, wanted: str) -> dict[str, Any]:
    """Keys and last values of what changes, until there is something of the key `wanted`."""
    seen: dict[str, Any] = {}
    while wanted not in seen:
        status, rows = node.ask("GET", f"/v1/watches/{watch}")
        assert (status, bool(rows)) == (200, True), f"nothing of {wanted} comes: {seen}"
        seen |= {row["key"]: row["value"] for row in rows}
    return seen


def test_objects_come_and_go_before_a_watchers_eyes(
    first: Running, second: Running, watch: str
) -> None:
    first.ask("POST", "/v1/vpcs", {"name": "red", "vni": 100, "cidrs": ["10.0.0.0/16"]})
    subnet = {"name": "s1", "vpc": "red", "cidr": "10.0.1.0/24", "sites": ["a", "b"]}
    first.ask("POST", "/v1/subnets", subnet)
    seen = changes(first, watch, "subnet/red/s1")
    assert seen["vpc/red"]["vni"] == 100
    assert seen["subnet/red/s1"]["cidr"] == "10.0.1.0/24"

    until(lambda: len(second.ask("GET", "/v1/subnets")[1]) == 1, "b1 knows the subnet")
    second.ask("POST", "/v1/endpoints", {"vpc": "red", "ip": "10.0.1.5"})
    value = changes(first, watch, "endpoint/red/10.0.1.5")["endpoint/red/10.0.1.5"]
    assert (value["node"], value["state"]) == ("b1", "active")
    second.ask("DELETE", "/v1/vpcs/red/endpoints/10.0.1.5")
    seen = changes(first, watch, "endpoint/red/10.0.1.5")
    assert seen["endpoint/red/10.0.1.5"] is None

    first.ask("POST", "/v1/vpcs", {"name": "blue", "vni": 101, "cidrs": ["10.0.0.0/16"]})
    first.ask("POST", "/v1/peerings", {"a": "red", "b": "blue"})
    assert changes(first, watch, "peering/red/blue")["peering/red/blue"]["state"] == "half"
    first.ask("DELETE", "/v1/peerings/red/blue")
    assert changes(first, watch, "peering/red/blue")["peering/red/blue"] is None
    first.ask("DELETE", "/v1/vpcs/red/subnets/s1")
    assert changes(first, watch, "subnet/red/s1")["subnet/red/s1"] is None
    for name in ("red", "blue"):
        first.ask("DELETE", f"/v1/vpcs/{name}")
        assert changes(first, watch, f"vpc/{name}")[f"vpc/{name}"] is None


def test_a_conflict_is_shown_when_it_begins_and_when_it_is_resolved(
    first: Running, second: Running, watch: str
) -> None:
    first.ask("POST", "/v1/vpcs", {"name": "con", "vni": 200, "cidrs": ["10.0.0.0/16"]})
    subnet = {"name": "c", "vpc": "con", "cidr": "10.0.1.0/24", "sites": ["a", "b"]}
    first.ask("POST", "/v1/subnets", subnet)
    until(lambda: second.ask("GET", "/v1/subnets?vpc=con")[0] == 200, "b1 knows the VPC")
    until(lambda: len(second.ask("GET", "/v1/subnets?vpc=con")[1]) == 1, "b1 knows the subnet")
    cut(first, second)
    for node in (first, second):
        assert node.ask("POST", "/v1/endpoints", {"vpc": "con", "ip": "10.0.1.9"})[0] == 200
    heal(first, second)
    key = "conflict/endpoint/con/10.0.1.9"
    assert sorted(changes(first, watch, key)[key]["claimants"]) == ["a1", "b1"]
    resolve = {"key": "endpoint/con/10.0.1.9", "keep": "a1"}
    assert first.ask("POST", "/v1/conflicts/resolve", resolve)[0] == 200
    assert changes(first, watch, key)[key] is None


def test_a_watch_of_one_shard_hears_of_that_alone(first: Running) -> None:
    first.ask("POST", "/v1/vpcs", {"name": "one", "vni": 300, "cidrs": ["10.0.0.0/16"]})
    first.ask("POST", "/v1/subnets", {"name": "s", "vpc": "one", "cidr": "10.0.1.0/24"})
    ids = {}
    for shard in ("mesh", "one"):
        status, begun = first.ask("POST", "/v1/watches", {"shard": shard})
        assert status == 200
        ids[shard] = begun["watch"]
    first.ask("POST", "/v1/endpoints", {"vpc": "one", "ip": "10.0.1.7"})
    first.ask("PATCH", "/v1/vpcs/one", {"tenant": "t"})
    assert set(changes(first, ids["mesh"], "vpc/one")) == {"vpc/one"}
    assert set(changes(first, ids["one"], "endpoint/one/10.0.1.7")) == {"endpoint/one/10.0.1.7"}
    assert first.ask("POST", "/v1/watches", {"shard": "nothing"})[0] == 404
    for id in ids.values():
        first.ask("DELETE", f"/v1/watches/{id}")


def test_watches_are_bounded_and_end_when_nobody_asks(
    first: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WAIT_S", 0.05)
    readers = len(first.node.view._readers)
    answers = [first.ask("POST", "/v1/watches", {}) for _ in range(watching.WATCHES_MAX + 1)]
    assert [status for status, _ in answers] == [200] * watching.WATCHES_MAX + [409]
    id = answers[0][1]["watch"]
    assert first.ask("GET", f"/v1/watches/{id}")[0] == 200, "nothing has changed, and that is told"
    monkeypatch.setattr(watching, "KEPT_S", 0.0)
    until(lambda: len(first.node.view._readers) == readers, "they are let go")
    status, answer = first.ask("GET", f"/v1/watches/{id}")
    assert (status, "begin anew" in answer["error"]) == (404, True)


def test_the_command_prints_a_line_a_change_until_it_is_ended(first: Running) -> None:
    command = [sys.executable, "-m", "mesh.cli", "watch", "--socket", str(first.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: len(first.node.watches._open) > 0, "it watches")
            first.ask("POST", "/v1/vpcs", {"name": "seen", "vni": 400, "cidrs": ["10.0.0.0/16"]})
            assert process.stdout is not None
            while (row := json.loads(process.stdout.readline()))["key"] != "vpc/seen":
                pass  # what the tests before have left to be tidied up
            assert row["value"]["vni"] == 400
        finally:
            process.send_signal(2)  # SIGINT, as Ctrl-C
        assert process.wait(60) == 130
    until(lambda: not first.node.watches._open, "it has said that it ends")
