"""Taking nodes out of a mesh of real ones: who may, what it says, and that it is for good."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mesh.cli import app
from mesh.core.errors import BadInput
from mesh.node.config import read_config
from mesh.node.node import Node
from tests.mesh.api_nodes import Running, founded, joined, running, until

Weft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Running]]:
    """a1, which founded the mesh, and b1 and c1, all linked."""
    with ExitStack() as stack:
        nodes = [stack.enter_context(running(founded(tmp_path)))]
        for name, underlay in (("b1", "127.0.0.2"), ("c1", "127.0.0.3")):
            config = joined(tmp_path, nodes[0], name, name[0], underlay)
            nodes.append(stack.enter_context(running(config)))
        for node in nodes:
            until(lambda node=node: len(linked(node)) == 2, "all are linked")  # type: ignore[misc]
        yield nodes


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    def run(node: Running, *args: str) -> tuple[int, str, str]:
        code = app.run([*args, "--socket", str(node.socket), "-o", "json"])
        return code, *capsys.readouterr()

    return run


def linked(node: Running) -> set[str]:
    members = node.ask("GET", "/v1/members")[1]
    return {m["node"] for m in members if m["path"] not in (None, "self")}


def state(node: Running, name: str) -> str:
    states = {m["node"]: m["state"] for m in node.ask("GET", "/v1/members")[1]}
    return str(states[name])


def said(answer: tuple[int, str, str]) -> Any:
    assert (answer[0], answer[2]) == (0, ""), answer
    return json.loads(answer[1])


def refused(answer: tuple[int, str, str], *words: str) -> None:
    assert (answer[0], answer[1]) == (1, ""), answer
    assert all(word in answer[2] for word in words), answer


def holds(node: Running, writer: Running) -> bool:
    def look() -> bool:
        return any(id.node == writer.node.id for id in node.node.replica.lattice.chains())

    return bool(node.on_loop(look))


def test_a_retired_node_is_cut_off_for_good_and_forgotten_once_unseen(
    three: list[Running], weft: Weft
) -> None:
    a, b, c = three
    a.ask("POST", "/v1/vpcs", {"name": "red", "vni": 100, "cidrs": ["10.0.0.0/16"]})
    subnet = {"name": "s", "vpc": "red", "cidr": "10.0.1.0/24", "sites": ["a", "b", "c"]}
    a.ask("POST", "/v1/subnets", subnet)
    until(lambda: len(c.ask("GET", "/v1/subnets")[1]) == 1, "c1 knows the subnet")
    c.ask("POST", "/v1/endpoints", {"vpc": "red", "ip": "10.0.1.5"})
    until(lambda: len(a.ask("GET", "/v1/endpoints")[1]) == 1, "a1 knows the endpoint")

    refused(weft(b, "retire", "c1"), "no admin", "at a1")
    refused(weft(b, "forget", "c1"), "no admin", "at a1")
    refused(weft(a, "retire", "nobody"), "nobody")
    refused(weft(a, "forget", "c1"), "active", "weft retire c1")

    retired = said(weft(a, "retire", "c1"))
    assert (retired["node"], retired["state"]) == ("c1", "retired")
    assert said(weft(a, "retire", "c1")) == retired
    until(lambda: linked(a) == {"b1"} and linked(b) == {"a1"}, "c1's links are cut")
    until(lambda: state(c, "c1") == "retired", "c1 has heard of it")
    status, answer = c.ask("POST", "/v1/endpoints", {"vpc": "red", "ip": "10.0.1.6"})
    assert (status, "retired" in answer["error"]) == (503, True)
    problems = c.ask("GET", "/v1/status")[1]["problems"]
    assert any("retired" in problem["what"] for problem in problems)
    assert len(b.ask("GET", "/v1/endpoints")[1]) == 1  # nothing vanishes

    refused(weft(a, "forget", "c1"), "still seen in endpoint/", "10.0.1.5")
    assert a.ask("POST", "/v1/vpcs/red/endpoints/10.0.1.5/move", {})[0] == 200
    assert holds(b, c)
    assert said(weft(a, "forget", "c1"))["state"] == "forgotten"
    until(lambda: not holds(a, c) and not holds(b, c), "nothing of c1 is left")
    assert not a.on_loop(lambda: [x for x in a.node.store.load().branches
                                  if x.chain.node == c.node.id])  # fmt: skip
    assert [row["ip"] for row in b.ask("GET", "/v1/endpoints")[1]] == ["10.0.1.5"]


def test_who_leaves_stays_out_and_what_it_wrote_stays(three: list[Running], weft: Weft) -> None:
    a, b, c = three
    b.ask("POST", "/v1/vpcs", {"name": "blue", "vni": 7, "cidrs": ["10.0.0.0/16"]})
    until(lambda: len(a.ask("GET", "/v1/vpcs")[1]) == 1, "a1 knows the VPC")
    assert said(weft(b, "leave"))["state"] == "retired"
    assert said(weft(b, "leave"))["state"] == "retired"
    until(lambda: linked(a) == {"c1"} and linked(c) == {"a1"}, "b1's links are cut")
    assert state(a, "b1") == "retired"
    assert [vpc["name"] for vpc in a.ask("GET", "/v1/vpcs")[1]] == ["blue"]
    refused(weft(a, "forget", "b1"), "vpc/blue")
    code, out, _ = weft(b, "status")
    assert (code, json.loads(out)["ready"]) == (1, False)


def test_a_compromised_node_is_forgotten_at_once(three: list[Running], weft: Weft) -> None:
    a, b, c = three
    b.ask("POST", "/v1/vpcs", {"name": "blue", "vni": 7, "cidrs": ["10.0.0.0/16"]})
    until(lambda: len(c.ask("GET", "/v1/vpcs")[1]) == 1, "c1 knows the VPC")
    assert said(weft(a, "retire", "b1", "--compromised"))["state"] == "forgotten"
    until(lambda: not holds(a, b) and not holds(c, b), "nothing of b1 is left")
    until(lambda: linked(a) == {"c1"} and linked(c) == {"a1"}, "b1's links are cut")
    assert a.ask("GET", "/v1/vpcs")[1] == c.ask("GET", "/v1/vpcs")[1] == []


def test_a_retired_node_does_not_start_again(tmp_path: Path, weft: Weft) -> None:
    with running(founded(tmp_path)) as a:
        config = joined(tmp_path, a, "b1", "b", "127.0.0.2")
        with running(config) as b:
            said(weft(b, "leave"))
        with pytest.raises(BadInput, match="retired"):
            Node(read_config(config))


def test_the_founding_node_dies_for_good_and_the_mesh_goes_on(tmp_path: Path, weft: Weft) -> None:
    """Its machine and its disk are gone; another admin had been made, and the root key is safe."""
    with ExitStack() as stack:
        founder = running(founded(tmp_path))
        a = founder.__enter__()
        try:
            config = joined(tmp_path, a, "b1", "b", "127.0.0.2")
            b = stack.enter_context(running(config))
            root = ("--root-key", str(tmp_path / "a1" / "root.key"))
            said(weft(a, "admin", "add", "b1", *root))
            a.ask("POST", "/v1/vpcs", {"name": "red", "vni": 100, "cidrs": ["10.0.0.0/16"]})
            subnet = {"name": "s", "vpc": "red", "cidr": "10.0.1.0/24", "sites": ["b"]}
            assert a.ask("POST", "/v1/subnets", subnet)[0] == 200
            a.ask("POST", "/v1/endpoints", {"vpc": "red", "ip": "10.0.1.5"})
            until(lambda: ips(b) == {"10.0.1.5"}, "b1 knows the endpoint")
            until(lambda: member_is_admin(b, "b1"), "b1 knows that it is an admin")
        finally:
            founder.__exit__(None, None, None)
        shutil.rmtree(tmp_path / "a1")

        c = stack.enter_context(running(joined(tmp_path, b, "c1", "c", "127.0.0.3")))
        said(weft(b, "retire", "a1"))
        until(lambda: state(c, "a1") == "retired", "c1 has heard of it")
        assert ips(b) == {"10.0.1.5"}, "nothing vanishes"
        assert c.ask("POST", "/v1/endpoints", {"vpc": "red", "ip": "10.0.1.6"})[0] == 200
        # What the founder owned is an admin's to change, and its endpoints are any site's to take.
        assert b.ask("POST", "/v1/vpcs/red/endpoints/10.0.1.5/move", {})[0] == 200
        assert b.ask("PATCH", "/v1/vpcs/red", {"tenant": "kept"})[0] == 200
        until(lambda: ips(b) == ips(c) == {"10.0.1.5", "10.0.1.6"}, "both claims are seen")
        until(lambda: tenant(c) == "kept", "c1 has heard of the change")
        refused(weft(b, "forget", "a1"), "still seen")


def member_is_admin(node: Running, name: str) -> bool:
    return any(m["node"] == name and m["admin"] for m in node.ask("GET", "/v1/members")[1])


def ips(node: Running) -> set[str]:
    return {endpoint["ip"] for endpoint in node.ask("GET", "/v1/endpoints")[1]}


def tenant(node: Running) -> object:
    return node.ask("GET", "/v1/vpcs/red")[1]["tenant"]
