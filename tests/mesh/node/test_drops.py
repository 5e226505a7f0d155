"""Drops as people see them: summed and one by one, in bounds."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from dataplane.drops import DropEvent
from dataplane.reasons import DropReason
from mesh.node import drops
from mesh.node.drops import DropLog
from tests.mesh.api_nodes import Running, until


def event(number: int, packets: int = 1, dst: str = "10.0.2.1") -> DropEvent:
    return DropEvent(number, DropReason.UNCLAIMED, packets, 7, "10.0.1.1", dst, "", "p0")


@pytest.mark.trio
async def test_what_packets_have_in_common_is_summed_the_latest_first() -> None:
    log = DropLog()
    log.add([event(1, 5), event(2, 1, "10.0.2.2"), event(3, 4)])
    assert log.sums() == [event(3, 9), event(2, 1, "10.0.2.2")]
    log.add(event(10 + n, dst=f"10.9.0.{n}") for n in range(drops.KINDS_MAX))
    assert len(log.sums()) == drops.KINDS_MAX
    assert event(3, 9) not in log.sums(), "the one that is longest ago went"


@pytest.mark.trio
async def test_who_follows_is_given_what_comes_and_told_what_was_missed(
    autojump_clock: MockClock,
) -> None:
    log = DropLog()
    log.add([event(1)])
    assert await log.after(0) == ([event(1)], 0)
    got: list[tuple[list[DropEvent], int]] = []

    async def follow() -> None:
        got.append(await log.after(1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
        log.add([event(2)])
    assert got == [([event(2)], 0)] * 2
    begun_s = trio.current_time()
    assert await log.after(2) == ([], 0)
    assert trio.current_time() - begun_s == drops.WAIT_S
    log.add(event(n) for n in range(drops.EVENTS_MAX + 3))
    events, missed = await log.after(1)
    assert (len(events), missed) == (drops.EVENTS_MAX, 4)
    assert await log.after(10**9) == ([], 0), "from before a restart"


def drop_two(node: Running) -> None:
    """A packet from an interface without a port, and one from a stranger."""
    backend: Any = node.node.forwarder.backend
    backend.forward("nic", "10.0.1.5", "10.0.2.5")
    backend.receive("198.51.100.1", 100, "10.0.2.5", "10.0.1.5")


def test_the_api_sums_drops_and_lets_one_follow_them(first: Running) -> None:
    _, before = first.ask("GET", "/v1/dataplane/drops")
    drop_two(first)
    seen: list[Any] = []
    answer = before
    while len(seen) < 2:
        status, answer = first.ask("GET", f"/v1/dataplane/drops/{answer['next']}")
        assert (status, answer["missed"]) == (200, 0)
        seen += answer["drops"]
    at = seen[0].pop("at")
    assert at.endswith("Z")
    assert seen[0] == {
        "reason": "no-port",
        "vpc": None,
        "vni": None,
        "src": "10.0.1.5",
        "dst": "10.0.2.5",
        "peer": None,
        "interface": "nic",
        "count": 1,
    }
    assert (seen[1]["reason"], seen[1]["peer"]) == ("unknown-peer", "198.51.100.1")
    _, summed = first.ask("GET", "/v1/dataplane/drops")
    assert summed["next"] == before["next"] + 2
    assert {row["reason"] for row in summed["drops"]} >= {"no-port", "unknown-peer"}
    assert first.ask("GET", "/v1/dataplane/drops/minus")[0] == 400


def test_the_command_shows_drops_and_follows_them(first: Running) -> None:
    drop_two(first)
    until(lambda: first.node.forwarder.drops.count > 1, "they are taken up")
    base = [sys.executable, "-m", "mesh.cli", "dataplane", "drops", "--socket", str(first.socket)]
    shown = subprocess.run(base, capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[0].split() == [
        *("REASON", "VPC", "SRC", "DST", "PEER", "INTERFACE", "COUNT", "AT"),
    ]
    assert any("no-port" in line and "10.0.2.5" in line for line in shown)
    as_json = subprocess.run([*base, "-o", "json"], capture_output=True, text=True, check=True)
    assert {row["reason"] for row in json.loads(as_json.stdout)} >= {"no-port"}
    waiting = first.node.forwarder.drops
    with subprocess.Popen([*base, "--follow"], stdout=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: bool(waiting._told.statistics().tasks_waiting), "it follows")
            drop_two(first)
            assert process.stdout is not None
            rows = [json.loads(process.stdout.readline()) for _ in range(2)]
            assert [row["reason"] for row in rows] == ["no-port", "unknown-peer"]
        finally:
            process.send_signal(2)  # SIGINT, as Ctrl-C
        assert process.wait(60) == 130
