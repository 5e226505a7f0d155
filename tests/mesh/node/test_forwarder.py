"""What the node does when rows cannot be installed: it says so and tries again."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from dataplane.backend import DataplaneError
from mesh.node import forwarder
from tests.mesh.api_nodes import Running, joined, running, until


@pytest.fixture
def backend(first: Running) -> Any:
    first.ask("POST", "/v1/vpcs", {"name": "red", "vni": 100, "cidrs": ["10.0.0.0/16"]})
    first.ask("POST", "/v1/subnets", {"name": "s", "vpc": "red", "cidr": "10.0.1.0/24"})
    until(lambda: first.node.forwarder.synced, "the subnet is installed")
    return first.node.forwarder.backend


def problems(first: Running) -> list[dict[str, str]]:
    found: list[dict[str, str]] = first.ask("GET", "/v1/status")[1]["problems"]
    return found


def endpoint(first: Running, number: int, method: str = "POST") -> None:
    ip = f"10.0.1.{number}"
    if method == "POST":
        assert first.ask("POST", "/v1/endpoints", {"vpc": "red", "ip": ip})[0] in (200, 201)
    else:
        assert first.ask("DELETE", f"/v1/vpcs/red/endpoints/{ip}")[0] == 200


def test_a_table_is_told_before_it_is_full_and_when_it_is(
    first: Running, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = len(backend._endpoints) + 10
    monkeypatch.setattr(backend, "_endpoints_max", room)
    used = room - 10
    limit = int(0.8 * room)
    for number in range(10, 10 + limit - used):
        endpoint(first, number)
    until(lambda: len(backend._endpoints) == limit, "rows are installed")
    assert problems(first) == []
    endpoint(first, 100)
    until(lambda: bool(problems(first)), "it is told")
    (told,) = problems(first)
    assert told["what"] == f"data plane: tables are nearly full: endpoints ({limit + 1} of {room})"
    assert "[dataplane] endpoints_max" in told["fix"]
    for number in range(101, 101 + room - limit + 1):
        endpoint(first, number)
    words = f"table endpoints is full ({room} of {room}): 2 rows are not installed"
    until(lambda: any(words in p["what"] for p in problems(first)), "it is told with the numbers")
    status = first.ask("GET", "/v1/status")[1]
    assert (status["ready"], status["dataplane"]["synced"]) == (True, False)
    assert not first.ask("POST", "/v1/dataplane/audit", {})[1]["clean"]
    for number in (10, 11):
        endpoint(first, number, "DELETE")
    until(lambda: first.node.forwarder.problem is None, "there is room, and they are in")
    assert first.ask("POST", "/v1/dataplane/audit", {})[1]["clean"]
    until(lambda: first.node.forwarder.synced, "and nothing is left")


def test_what_failed_is_mended_without_anybody_s_help(
    first: Running, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder, "MEND_FIRST_S", 0.01)
    tried: list[str] = []
    apply, repair = backend.apply, backend.repair

    def refuse(_: object) -> None:
        tried.append("refused")
        raise DataplaneError("apply: the kernel refuses: no")

    monkeypatch.setattr(backend, "apply", refuse)
    monkeypatch.setattr(backend, "repair", refuse)
    endpoint(first, 10)
    until(lambda: len(tried) >= 3, "it is tried again and again")
    (told,) = [p for p in problems(first) if p["what"].startswith("data plane")]
    assert told["what"] == "data plane: apply: the kernel refuses: no"
    assert not first.node.forwarder.synced
    monkeypatch.setattr(backend, "apply", apply)
    monkeypatch.setattr(backend, "repair", repair)
    until(lambda: first.node.forwarder.problem is None, "it succeeded")
    assert first.ask("POST", "/v1/dataplane/audit", {})[1]["clean"]
    until(lambda: first.node.forwarder.synced, "and nothing is left")


class Told:
    """A backend's changes: each byte that is sent is one."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)

    def fileno(self) -> int:
        return self.theirs.fileno()

    def take(self) -> bool:
        try:
            return bool(self.theirs.recv(1))
        except BlockingIOError:
            return False


def test_what_the_kernel_tells_is_looked_at_and_not_only_now_and_then(
    first: Running, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    gone: list[str] = []
    refresh, told = backend.refresh_adjacency, Told()

    def look() -> int:
        looks.append(len(looks))
        return int(refresh())

    def tell() -> None:
        before = len(looks)
        told.ours.send(b"x")
        until(lambda: len(looks) > before, "it looks because it was told")

    monkeypatch.setattr(backend, "refresh_adjacency", look)
    monkeypatch.setattr(backend, "missing_interfaces", lambda: tuple(gone))
    with monkeypatch.context() as patch:
        patch.setattr(forwarder, "ADJACENCY_PERIOD_S", 1e6)
        patch.setattr(forwarder, "FOLLOWED_PERIOD_S", 1e6)
        patch.setattr(type(backend), "changes", told)
        until(lambda: bool(looks), "the look that was due")
        tell()
        gone.append("p1")
        tell()
        until(lambda: bool(problems(first)), "it says what it has found")
        gone.clear()
        tell()
        until(lambda: not problems(first), "as long as that is so")
        patch.setattr(forwarder, "ADJACENCY_PERIOD_S", 0.01)
        patch.setattr(forwarder, "FOLLOWED_PERIOD_S", 0.01)
        tell()
    before = len(looks)
    until(lambda: len(looks) > before + 1, "nobody waits for what is told any more")
    told.ours.close()


def test_attached_interfaces_that_are_gone_are_told(
    first: Running, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "missing_interfaces", lambda: ("p1", "p2"))
    until(lambda: bool(problems(first)), "it is a problem")
    (told,) = problems(first)
    assert told["what"].startswith("2 attached interfaces are gone") and "p1, p2" in told["what"]
    monkeypatch.undo()
    until(lambda: not problems(first), "they are back")


def test_gateways_that_no_tunnel_leads_to_are_told_with_what_to_do(
    first: Running, home: Path
) -> None:
    """Of the other IP family: on both sides."""
    with running(joined(home, first, "c1", "c", "::1")) as six:
        for node, other in ((first, "c1"), (six, "a1")):
            wanted = f"of the other IP family: {other}"
            until(lambda: any(wanted in p["what"] for p in problems(node)), "it is told")  # noqa: B023
