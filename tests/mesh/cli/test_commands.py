"""Every command against real nodes: what it prints, in both forms, and its exit code."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.cli import app
from tests.mesh.api_nodes import Running, in_memory, until
from tests.ports import free_port

pytestmark = pytest.mark.usefixtures("sites")

Weft = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def sites(first: Running, second: Running) -> None:
    """Two nodes of one mesh, with one VPC: homed subnets and a stretched one."""
    first.ask("POST", "/v1/vpcs", {"name": "red", "vni": 100, "cidrs": ["10.0.0.0/16"]})
    for name, cidr, at in (
        ("sa", "10.0.1.0/24", ["a"]),
        ("sb", "10.0.2.0/24", ["b"]),
        ("both", "10.0.200.0/24", ["a", "b"]),
    ):
        first.ask("POST", "/v1/subnets", {"name": name, "vpc": "red", "cidr": cidr, "sites": at})
    until(lambda: len(second.ask("GET", "/v1/subnets")[1]) == 3, "b1 knows the subnets")


@pytest.fixture
def weft(
    first: Running, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Weft]:
    """Runs a command at the first node, or at that of `--socket`."""
    monkeypatch.setenv("WEFT_SOCKET", str(first.socket))

    def run(*args: str) -> tuple[int, str, str]:
        code = app.run(args)
        return code, *capsys.readouterr()

    yield run


def document(answer: tuple[int, str, str], code: int = 0) -> Any:
    assert (answer[0], answer[2]) == (code, ""), answer
    return json.loads(answer[1])


def no(answer: tuple[int, str, str], code: int, *words: str) -> None:
    assert (answer[0], answer[1]) == (code, ""), answer
    assert answer[2].startswith("weft: ") and answer[2].count("\n") == 1
    for word in words:
        assert word in answer[2]


def test_status(weft: Weft) -> None:
    status = document(weft("status", "-o", "json", "--wait", "5"))
    assert (status["ready"], status["problems"]) == (True, [])
    code, out, _ = weft("status")
    assert code == 0
    assert "READY          yes" in out
    assert status["digest"] in out


def test_status_says_no_when_there_is_a_problem(weft: Weft, first: Running) -> None:
    first.node.alarms["node.cloned"] = "node=a1"
    try:
        code, out, err = weft("status", "--wait", "0.3", "-o", "json")
        assert (code, err) == (1, "")
        assert "stop the other process" in json.loads(out)["problems"][0]["fix"]
        assert "WHAT" in weft("status")[1]
    finally:
        del first.node.alarms["node.cloned"]


def test_members(weft: Weft) -> None:
    rows = document(weft("members", "-o", "json"))
    assert [row["node"] for row in rows] == ["a1", "b1"]
    heading = weft("members")[1].splitlines()[0].split()
    assert heading == ["NODE", "SITE", "STATE", "RTT", "PATH", "VERSION", "LAST-SYNC", "CLOCK"]
    for name in heading:
        assert name.lower().replace("-", "_") in rows[0]
    until(
        lambda: all(row["clock"] for row in document(weft("members", "-o", "json"))),
        "the clocks are compared",
    )
    for row in document(weft("members", "-o", "json")):
        assert abs(row["clock_offset_s"]) < 1
        assert row["clock"][0] in "+-" and row["clock"][-1] == "s"


def test_vpcs(weft: Weft) -> None:
    add = ("vpc", "add", "blue", "--vni", "200", "--cidr", "10.0.0.0/16", "--tenant", "acme")
    made = document(weft(*add, "-o", "json"))
    assert list(made) == ["name", "id", "vni", "cidrs", "tenant", "by", "state"]
    assert document(weft(*add, "-o", "json")) == made
    no(weft("vpc", "add", "blue", "--vni", "201", "--cidr", "10.0.0.0/16", "--tenant", "acme"), 1)
    no(weft("vpc", "add", "green", "--vni", "200", "--cidr", "10.0.0.0/16"), 1, "blue")
    no(weft("vpc", "add", "green", "--vni", "0", "--cidr", "10.0.0.0/16"), 2, "0", "16777215")
    no(weft("vpc", "add", "green", "--vni", "9", "--cidr", "10.0.0.1/16"), 2, "10.0.0.0/16")
    names = [row["name"] for row in document(weft("vpc", "ls", "-o", "json"))]
    assert names == ["blue", "red"]
    assert weft("vpc", "ls")[1].splitlines()[0].split() == [key.upper() for key in made]
    assert document(weft("vpc", "get", made["id"], "-o", "json")) == made
    changed = document(weft("vpc", "set", "blue", "--vni", "300", "-o", "json"))
    assert (changed["vni"], changed["id"], changed["tenant"]) == (300, made["id"], "acme")
    assert document(weft("vpc", "rm", "blue", "-o", "json"))["state"] == "removed"
    for command in ("get", "rm"):
        no(weft("vpc", command, "blue"), 1, "blue")


def test_an_ambiguous_name_lists_the_ids(weft: Weft) -> None:
    ids = []
    for vni, tenant in (("401", "x"), ("402", "y")):
        add = ("vpc", "add", "twin", "--vni", vni, "--cidr", "10.0.0.0/16", "--tenant", tenant)
        ids.append(document(weft(*add, "-o", "json"))["id"])
    no(weft("vpc", "get", "twin"), 1, *ids)
    for id in ids:
        assert weft("vpc", "rm", id)[0] == 0


def test_subnets(weft: Weft) -> None:
    add = ("subnet", "add", "s9", "--vpc", "red", "--cidr", "10.0.9.0/24", "--restrict")
    made = document(weft(*add, "-o", "json"))
    assert (made["sites"], made["restrict"], made["vpc"]) == (["a"], True, "red")
    assert document(weft(*add, "-o", "json")) == made
    no(weft("subnet", "add", "s9", "--vpc", "red", "--cidr", "10.0.9.0/24"), 1, "s9")
    no(weft("subnet", "add", "s10", "--vpc", "red", "--cidr", "10.0.9.0/25"), 1, "overlaps")
    no(weft("subnet", "add", "s10", "--vpc", "red", "--cidr", "10.1.0.0/24"), 1, "outside")
    no(weft("subnet", "add", "s10", "--vpc", "none", "--cidr", "10.0.9.0/24"), 1, "none")
    assert document(weft("subnet", "get", "s9", "--vpc", "red", "-o", "json")) == made
    rows = document(weft("subnet", "ls", "--vpc", "red", "-o", "json"))
    assert [row["name"] for row in rows] == ["both", "s9", "sa", "sb"]
    assert weft("subnet", "rm", "s9", "--vpc", "red")[0] == 0
    no(weft("subnet", "rm", "s9", "--vpc", "red"), 1)


def test_endpoints(weft: Weft, second: Running) -> None:
    add = ("endpoint", "add", "--vpc", "red", "--ip", "10.0.200.5")
    made = document(weft(*add, "--name", "web", "-o", "json"))
    assert list(made) == [
        "vpc", "ip", "mac", "name", "site", "node", "host", "mobility", "dot", "age_s", "state",
    ]  # fmt: skip
    assert document(weft(*add, "--name", "web", "-o", "json"))["dot"] == made["dot"]
    no(weft(*add, "--name", "other"), 1)
    at_b = ("--socket", str(second.socket))
    get = ("endpoint", "get", "--vpc", "red", "10.0.200.5", "-o", "json")
    until(lambda: weft(*get, *at_b)[0] == 0, "b1 knows the endpoint")
    no(weft(*add, *at_b), 1, "weft endpoint move")
    moved = document(weft("endpoint", "move", "--vpc", "red", "10.0.200.5", "-o", "json", *at_b))
    assert (moved["node"], moved["mobility"], moved["name"]) == ("b1", 1, "web")
    until(lambda: document(weft(*get))["node"] == "b1", "a1 knows the move")
    rows = document(weft("endpoint", "ls", "--vpc", "red", "-o", "json"))
    assert [(row["node"], row["state"]) for row in rows] == [("b1", "active"), ("a1", "shadowed")]
    assert document(weft("endpoint", "ls", "--site", "b", "-o", "json"))[0]["node"] == "b1"
    no(weft("endpoint", "ls", "--site", "nowhere"), 1, "nowhere")
    no(weft("endpoint", "add", "--vpc", "red", "--ip", "10.0.99.1"), 1, "no subnet")
    no(weft("endpoint", "add", "--vpc", "red", "--ip", "10.0.1.9", "--mac", "01:00:00:00:00:01"), 2)
    no(weft("endpoint", "get", "--vpc", "red", "10.0.1.77"), 1, "10.0.1.77")
    assert weft("endpoint", "rm", "--vpc", "red", "10.0.200.5")[0] == 0
    no(weft("endpoint", "rm", "--vpc", "red", "10.0.200.5"), 1)


def test_import(weft: Weft, tmp_path: Path) -> None:
    file = tmp_path / "endpoints"
    lines = [json.dumps({"vpc": "red", "ip": f"10.0.1.{last}"}) for last in range(10, 20)]
    bad = ["nonsense", '{"vpc": "red"}', '{"vpc": "red", "ip": 5}', '{"vpc":"red","ip":"10.9.9.9"}']
    twin = json.dumps({"vpc": "red", "ip": "10.0.1.10", "name": "twin"})
    file.write_text("\n".join([*lines[:5], *bad, "", *lines[5:], lines[0], twin]) + "\n")
    code, out, err = weft("endpoint", "import", str(file), "-o", "json")
    assert code == 2
    answer = json.loads(out)
    assert (answer["taken"], answer["bad"]) == (0, 5)
    assert [error["line"] for error in answer["errors"]] == [6, 7, 8, 9, 17]
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "line 6", "line 7", "line 8", "line 9", "line 17", "weft",
    ]  # fmt: skip
    assert document(weft("endpoint", "ls", "-o", "json")) == []
    code, out, _ = weft("endpoint", "import", str(file), "--partial", "-o", "json")
    assert (code, json.loads(out)["taken"]) == (1, 10)
    file.write_text("\n".join(lines))
    assert document(weft("endpoint", "import", str(file), "-o", "json"))["taken"] == 10
    assert len(document(weft("endpoint", "ls", "-o", "json"))) == 10
    for last in range(10, 20):
        assert weft("endpoint", "rm", "--vpc", "red", f"10.0.1.{last}")[0] == 0


def test_peerings(weft: Weft) -> None:
    weft("vpc", "add", "pink", "--vni", "500", "--cidr", "10.1.0.0/16")
    assert document(weft("peering", "add", "red", "pink", "-o", "json"))["state"] == "half"
    assert document(weft("peering", "add", "pink", "red", "-o", "json"))["state"] == "active"
    (row,) = document(weft("peering", "ls", "-o", "json"))
    assert ({row["a"], row["b"]}, row["state"]) == ({"red", "pink"}, "active")
    assert document(weft("peering", "rm", "red", "pink", "-o", "json"))["state"] == "half"
    no(weft("peering", "rm", "red", "pink"), 1)
    no(weft("peering", "add", "red", "red"), 2)
    no(weft("peering", "add", "red", "none"), 1)
    weft("peering", "rm", "pink", "red")
    weft("vpc", "rm", "pink")


def test_conflicts(weft: Weft) -> None:
    assert document(weft("conflicts", "ls", "-o", "json")) == []
    assert weft("conflicts", "ls")[1].split() == ["KEY", "CLAIMANTS", "WINNER", "RULE", "SINCE"]
    no(weft("conflicts", "resolve", "endpoint/red/10.0.1.5", "--keep", "a1"), 1)
    no(weft("conflicts", "resolve", "nonsense", "--keep", "a1"), 2)
    no(weft("conflicts", "resolve", "endpoint/red/10.0.1.5", "--keep", "nobody"), 1)


def test_state(weft: Weft, second: Running) -> None:
    at_b = ("--socket", str(second.socket))
    until(
        lambda: weft("state", "digest", *at_b) == weft("state", "digest"),
        "what was written before has come",
    )
    code, out, _ = weft("state", "digest")
    assert (code, len(out.strip())) == (0, 64)
    assert document(weft("state", "digest", "-o", "json"))["digest"] == out.strip()
    rows = document(weft("state", "dump", "-o", "json"))
    assert {row["signature"] for row in rows} == {"valid"}
    assert weft("state", "dump")[1].splitlines()[0].split()[:4] == [
        "NODE", "SHARD", "EPOCH", "HEAD",
    ]  # fmt: skip
    chain = weft("state", "dump", "--chain", "a1", "--shard", "mesh", "--records")
    assert "vpc/red" in chain[1] and "b1" not in chain[1].split()
    no(weft("state", "dump", "--chain", "nobody"), 1)
    no(weft("state", "digest", "--shard", "nothing"), 1)
    until(lambda: document(weft("state", "diff", "b1", "-o", "json")) == [], "b1 holds the same")
    assert weft("state", "diff", "b1")[1].split() == [
        "NODE", "SHARD", "CHAIN", "DIFFERENCE", "HERE", "THERE",
    ]  # fmt: skip
    first_word = document(weft("state", "history", "vpc/red", "-o", "json"))[0]
    assert (first_word["node"], first_word["what"]) == ("a1", "revision")
    assert first_word["value"]["name"] == "red" and first_word["at"].endswith("Z")
    assert weft("state", "history", "gateway/b1")[1].splitlines()[1].split()[1] == "b1"
    no(weft("state", "history", "vpc/nothing"), 1)
    no(weft("state", "history", "endpoint/red/10.0.99.99"), 1, "nothing is known")
    no(weft("state", "history", "red"), 2, "endpoint/VPC/IP")
    no(weft("state", "diff", "nobody"), 1)
    no(weft("state", "diff", "a1"), 2)


def test_route_explain(weft: Weft) -> None:
    weft("endpoint", "add", "--vpc", "red", "--ip", "10.0.1.30")
    code, out, _ = weft("route", "explain", "--vpc", "red", "10.0.1.30")
    assert code == 0
    assert "VERDICT" in out and "only claim" in out
    answer = document(weft("route", "explain", "--vpc", "red", "10.0.2.30", "-o", "json"))
    assert answer["next_hop"]["gateways"][0]["node"] == "b1"
    assert weft("route", "explain", "--vpc", "red", "192.0.2.1")[0] == 0
    no(weft("route", "explain", "--vpc", "none", "10.0.1.30"), 1)
    weft("endpoint", "rm", "--vpc", "red", "10.0.1.30")


def test_dataplane(weft: Weft, first: Running) -> None:
    until(lambda: first.node.forwarder.synced, "rows are written")
    assert document(weft("dataplane", "show", "-o", "json"))["mode"] == "memory"
    assert "subnets" in weft("dataplane", "show")[1]
    assert document(weft("dataplane", "audit", "-o", "json"))["clean"] is True
    assert "unclaimed" in weft("dataplane", "stats")[1]
    backend: Any = first.node.forwarder.backend
    first.on_loop(lambda: backend._subnets.pop(next(iter(backend._subnets))))
    code, out, err = weft("dataplane", "audit")
    assert (code, err) == (1, "")
    assert out.splitlines()[1].startswith("missing")
    assert weft("dataplane", "audit", "--repair")[0] == 0
    assert weft("dataplane", "audit")[0] == 0


def test_invite_and_join(weft: Weft, tmp_path: Path) -> None:
    quotas = ("--quota-mesh", "20", "--quota-vpc", "300000")
    code, token, _ = weft("invite", "--site", "c", "--ttl", "1m", *quotas)
    assert (code, token.count("\n")) == (0, 1)
    token = token.strip()
    node = ("--node", "c1", "--dir", str(tmp_path / "c1"))
    listen = ("--listen", f"/ip4/127.0.0.1/tcp/{free_port()}")
    no(weft("join", token, "--site", "d", *node), 1, "site c")
    no(weft("join", token[:-4], "--site", "c", *node), 1, "garbled")
    no(weft("join", token, "--site", "c", "--node", "C", "--dir", str(tmp_path / "c1")), 2)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"
    made = document(weft("join", token, "--site", "c", *node, *listen, "-o", "json"))
    assert sorted(path.name for path in (tmp_path / "c1").iterdir()) == [
        "node.key", "store.db", "store.db.contacts", "weft.toml",
    ]  # fmt: skip
    assert made["mesh"] == "edge"
    again = ("--node", "c2", "--dir", str(tmp_path / "c2"))
    no(weft("join", token, "--site", "c", *again), 1)
    assert not (tmp_path / "c2").exists()
    until(lambda: len(document(weft("members", "-o", "json"))) == 3, "the roster")
    by_name = {row["node"]: row["quotas"] for row in document(weft("members", "-o", "json"))}
    assert by_name["c1"] == {"mesh": 20, "vpc": 300_000}
    assert by_name["a1"] == {"mesh": 10_000, "vpc": 150_000}
    no(weft("invite", "--ttl", "1000d"), 2)


def test_a_token_of_nobody(weft: Weft, tmp_path: Path) -> None:
    import dataclasses

    from mesh.core.token import Token

    token = Token.decode(weft("invite")[1])
    where = (f"/ip4/127.0.0.1/tcp/{free_port()}",)
    join = ("--site", "c", "--node", "c9", "--dir", str(tmp_path / "c9"))
    unreachable = dataclasses.replace(token, addrs=where).encode()
    no(weft("join", unreachable, *join), 3, where[0])
    expired = dataclasses.replace(token, expires_s=1).encode()
    no(weft("join", expired, *join), 1, "expired")
    foreign = dataclasses.replace(token, secret=bytes(16)).encode()
    no(weft("join", foreign, *join), 1, "not one of this node's")
    assert list(tmp_path.iterdir()) == []


def test_a_node_as_a_process(tmp_path: Path) -> None:
    """init, run, status, SIGTERM: each the real command in a process of its own."""
    command = [sys.executable, "-m", "mesh.cli"]
    home = tmp_path / "n"
    options = ["--site", "s", "--node", "n", "--underlay", "127.0.0.1", "--socket", "weft.sock"]
    listen = ["--listen", f"/ip4/127.0.0.1/tcp/{free_port()}"]
    init = [*command, "init", "--dir", str(home), "--mesh", "m", *options, *listen]
    subprocess.run(init, check=True, capture_output=True, timeout=120)
    in_memory(home / "weft.toml")
    with (tmp_path / "log").open("w") as log:
        node = subprocess.Popen(
            [*command, "run", "--config", str(home / "weft.toml")], stderr=log, stdout=log
        )
        try:
            status = [*command, "status", "--wait", "60", "--socket", str(home / "weft.sock")]
            done = subprocess.run(status, capture_output=True, text=True, timeout=120)
            assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
            again = [*command, "run", "--config", str(home / "weft.toml")]
            twin = subprocess.run(again, capture_output=True, text=True, timeout=120)
            assert twin.returncode == 3, twin.stderr
            assert "in use by another process" in twin.stderr.splitlines()[-1]
            node.send_signal(signal.SIGTERM)
            assert node.wait(60) == 0
        finally:
            node.kill()
            node.wait(60)
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines and all(" event=" in line for line in lines)
    assert not (home / "weft.sock").exists()


def test_run_refuses_an_address_that_is_not_here(weft: Weft, tmp_path: Path) -> None:
    options = ("--site", "s", "--node", "n", "--underlay", "203.0.113.9")
    assert weft("init", "--dir", str(tmp_path / "n"), "--mesh", "m", *options)[0] == 0
    no(weft("run", "--config", str(tmp_path / "n/weft.toml")), 2, "[node] underlay", "203.0.113.9")
