"""Each check of `weft diagnose` finds what it is there for, and says what to do."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dataplane.backend import Usage
from dataplane.xdp import kernel, pins
from mesh.cli import app
from mesh.node import diagnosis
from mesh.node.config import read_config, render_config
from mesh.node.diagnosis import NAMES, Check, Peer
from tests.mesh.api_nodes import Running, founded, until

NEAR = Peer("b1", 0.01, 3.0, 100.0, True)


def wrong(check: Check, name: str, *words: str) -> None:
    assert (check.name, check.ok) == (name, False) and check.fix, check
    for word in words:
        assert word in check.what, check


# ---- from facts ----


@pytest.mark.parametrize(
    ("peers", "ok"),
    [
        ([NEAR], True),
        ([], None),
        ([replace(NEAR, clock_ahead_s=None)], None),
        ([NEAR, replace(NEAR, name="c1", clock_ahead_s=5.1)], False),
        ([replace(NEAR, name="c1", clock_ahead_s=-5.1)], False),
    ],
)
def test_clock(peers: list[Peer], ok: bool | None) -> None:
    check = diagnosis.judge_clock(peers)
    assert check.ok is ok
    if ok is False:
        wrong(check, "clock", "c1 is")


@pytest.mark.parametrize(
    ("peers", "ok"),
    [
        ([NEAR], True),
        ([], None),
        ([replace(NEAR, sync_age_s=30.1)], False),
        ([replace(NEAR, sync_age_s=None)], False),
        ([replace(NEAR, sync_age_s=None, link_age_s=9.0)], True),
    ],
)
def test_digests(peers: list[Peer], ok: bool | None) -> None:
    check = diagnosis.judge_digests(peers)
    assert check.ok is ok
    if ok is False:
        wrong(check, "digests", "b1")


def test_peers() -> None:
    assert diagnosis.judge_peers([], []).ok
    assert diagnosis.judge_peers(["b", "c", "d", "e"], ["b", "c", "d", "e", "f"]).ok
    wrong(diagnosis.judge_peers(["b"], ["b", "c"]), "peers", "1 of 2", "not: c")
    many = [f"n{i}" for i in range(100)]
    wrong(diagnosis.judge_peers(many[:3], many), "peers", "and 92 more")


def test_ports() -> None:
    assert diagnosis.judge_ports(["/ip4/1.2.3.4/tcp/1"], ["b"]).ok
    assert diagnosis.judge_ports(["/ip4/1.2.3.4/tcp/1"], []).ok
    wrong(diagnosis.judge_ports([], []), "ports")


def test_maps() -> None:
    room = {"endpoints": Usage(80, 100), "subnets": Usage(0, 10)}
    assert diagnosis.judge_maps(room, None).ok
    wrong(
        diagnosis.judge_maps({**room, "ports": Usage(81, 100)}, None), "maps", "ports (81 of 100)"
    )
    wrong(diagnosis.judge_maps(room, "table endpoints is full"), "maps", "is full")


def test_mtu() -> None:
    assert diagnosis.judge_mtu({}).ok
    assert diagnosis.judge_mtu({"b1": 1280}).ok
    wrong(diagnosis.judge_mtu({"b1": 1450, "c1": 1279}), "mtu", "1279 B to c1")
    wrong(diagnosis.judge_mtu({"b1": None}), "mtu", "no way to b1")


def test_kernel_as_it_forwards() -> None:
    assert diagnosis.judge_forwarding(True, None).what.startswith("XDP runs natively")
    assert "slow" in diagnosis.judge_forwarding(False, None).what
    assert diagnosis.judge_forwarding(None, None).ok
    wrong(diagnosis.judge_forwarding(None, "memory: not root"), "kernel", "not root")


def test_disk() -> None:
    least = diagnosis.FREE_BYTES_MIN
    assert diagnosis.judge_disk("/d", least + 10, 10, 0.001).ok
    wrong(diagnosis.judge_disk("/d", least + 9, 10, 0.001), "disk", "/d", "free")
    wrong(diagnosis.judge_disk("/d", 2 * least, 10, 0.2), "disk", "200.0 ms")


# ---- from the machine ----


@pytest.fixture
def any_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast this machine's disk is, and who else writes to it, says nothing here."""
    monkeypatch.setattr(diagnosis, "FSYNC_MAX_S", 60.0)


@pytest.fixture
def config(tmp_path: Path, any_disk: None) -> Path:
    """The file of a node that does not run, and would forward with XDP."""
    path = founded(tmp_path)
    path.write_text(render_config(replace(read_config(path), dataplane_mode="xdp")))
    return path


def told(config: Path) -> dict[str, Check]:
    answer = diagnosis.without_node(config)
    assert [check["name"] for check in answer["checks"]] == list(NAMES)
    found = {check["name"]: Check(**check) for check in answer["checks"]}
    assert answer["ok"] == all(check.ok is not False for check in found.values())
    return found


def test_config_that_is_wrong(config: Path) -> None:
    assert told(config)["config"].ok
    config.write_text("[mesh]\n")
    found = told(config)
    wrong(found["config"], "config", f"{config}:1: [mesh] name: is missing")
    assert found["disk"].ok is None and found["disk"].what == "needs --config"


def test_key_that_others_can_read(config: Path) -> None:
    assert told(config)["keys"].ok
    (config.parent / "node.key").chmod(0o644)
    wrong(told(config)["keys"], "keys", "node.key")


def test_port_that_is_taken(config: Path) -> None:
    assert told(config)["ports"].ok
    (addr,) = read_config(config).listen
    with socket.create_server(("127.0.0.1", int(addr.split("/")[-1]))):
        wrong(told(config)["ports"], "ports", addr, "in use")


def test_disk_that_cannot_be_written(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(config)["disk"].ok

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    wrong(told(config)["disk"], "disk", "No space left")


def test_privileges_that_are_missing(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.xdp.privilege.missing", lambda: ["CAP_NET_ADMIN", "CAP_BPF"])
    wrong(told(config)["privileges"], "privileges", "lacks CAP_NET_ADMIN and CAP_BPF")
    config.write_text(config.read_text().replace('mode = "xdp"', 'mode = "memory"'))
    assert told(config)["privileges"].ok, "memory needs none"


def test_kernel_that_refuses_bpf(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("dataplane.xdp.machine.lacking", lambda: None)
    monkeypatch.setattr(kernel, "prog_load", refuse)
    wrong(told(config)["kernel"], "kernel", "Operation not permitted")
    monkeypatch.setattr("dataplane.xdp.machine.lacking", lambda: "bcc not importable")
    wrong(told(config)["kernel"], "kernel", "bcc not importable")


def test_no_bpffs(config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pins, "BPFFS", tmp_path)
    wrong(told(config)["bpffs"], "bpffs", str(tmp_path))


# ---- the command ----

Command = Callable[..., tuple[int, Any]]


@pytest.fixture
def diagnose(capsys: pytest.CaptureFixture[str], any_disk: None) -> Command:
    def run(*options: str) -> tuple[int, Any]:
        code = app.run(["diagnose", "-o", "json", *options])
        return code, json.loads(capsys.readouterr().out)

    return run


def test_a_running_node_answers_for_all(diagnose: Command, first: Running, second: Running) -> None:
    def agreed() -> bool:
        peers = first.node.replica.peers()
        return bool(peers) and first.node.replica.in_sync_ns(peers[0]) is not None

    until(agreed, "the nodes agree")
    code, answer = diagnose("--socket", str(first.socket))
    assert (code, answer["ok"], answer["running"]) == (0, True, True), answer
    checks = {check["name"]: check for check in answer["checks"]}
    assert list(checks) == list(NAMES)
    assert checks["peers"]["what"] == "1 of 1 linked"
    assert "equal with 1 of 1" in checks["digests"]["what"]
    assert "reached by b1" in checks["ports"]["what"]
    assert all(check["fix"] == "" for check in answer["checks"])
    first.node.forwarder._failed = "table endpoints is full"
    try:
        code, answer = diagnose("--socket", str(first.socket))
    finally:
        first.node.forwarder._failed = None
    assert (code, answer["ok"]) == (1, False)
    assert [c["name"] for c in answer["checks"] if c["ok"] is False] == ["maps"]


def test_without_a_node_the_machine_is_told(
    diagnose: Command, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = str(config.parent / "nobody.sock")
    code, answer = diagnose("--socket", nobody, "--config", str(config))
    assert answer["running"] is False and code == (0 if answer["ok"] else 1)
    (config.parent / "node.key").unlink()
    code, answer = diagnose("--socket", nobody, "--config", str(config))
    assert code == 1 and not answer["ok"]
    assert app.run(["diagnose", "--socket", nobody, "--config", str(config)]) == 1
    out, err = capsys.readouterr()
    assert "✗   keys" in out and "no node answers there" in err
