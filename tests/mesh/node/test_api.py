"""The local API of a real node: shapes, statuses, bounds, and what a hostile client can do."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.core.errors import BadInput, NotReady
from mesh.core.ops import Put
from mesh.node import api
from mesh.node.routes import BODY_BYTES_MAX, ROUTES, openapi
from mesh.node.schema import array, boolean, check, integer, mapping, parse_query, record, text
from tests.mesh.api_nodes import Running, cut, founded, heal, running, until

STATUS_KEYS = {
    "mesh", "site", "node", "version", "ready", "peers", "digest", "shards", "oldest_sync_s",
    "dataplane", "conflicts", "problems",
}  # fmt: skip
VPC_KEYS = {"name", "id", "vni", "cidrs", "tenant", "by", "state"}
ENDPOINT_KEYS = {
    "vpc", "ip", "mac", "name", "site", "node", "host", "mobility", "dot", "age_s", "state",
}  # fmt: skip


@pytest.fixture(scope="module")
def vpc(first: Running) -> str:
    """A VPC with a homed and a stretched subnet."""
    body = {"name": "red", "vni": 100, "cidrs": ["10.0.0.0/16"], "tenant": "acme"}
    assert first.ask("POST", "/v1/vpcs", body)[0] == 200
    subnet = {"name": "s1", "vpc": "red", "cidr": "10.0.1.0/24"}
    assert first.ask("POST", "/v1/subnets", subnet)[0] == 200
    return "red"


def test_status(first: Running) -> None:
    code, status = first.ask("GET", "/v1/status")
    assert code == 200
    assert set(status) == STATUS_KEYS
    assert (status["mesh"], status["site"], status["node"]) == ("edge", "a", "a1")
    assert status["ready"] is True
    assert status["problems"] == []
    assert status["dataplane"].keys() >= {
        "mode", "endpoints", "subnets", "map_used", "map_max", "synced",
    }  # fmt: skip
    assert status["shards"]["mesh"]["digest"] == status["digest"]
    assert first.ask("GET", "/v1/state/digest")[1]["digest"] == status["digest"]


def test_a_vpc_from_its_making_to_its_end(first: Running) -> None:
    body = {"name": "tmp", "vni": 9, "cidrs": ["10.9.0.0/16"]}
    code, made = first.ask("POST", "/v1/vpcs", body)
    assert code == 200
    assert set(made) == VPC_KEYS
    digest = first.ask("GET", "/v1/state/digest")[1]["digest"]
    assert first.ask("POST", "/v1/vpcs", body) == (200, made)
    assert first.ask("GET", "/v1/state/digest")[1]["digest"] == digest, "nothing was written"
    code, refusal = first.ask("POST", "/v1/vpcs", {**body, "vni": 10})
    assert (code, refusal["code"]) == (409, "refused")
    code, changed = first.ask("PATCH", "/v1/vpcs/tmp", {"vni": 11, "name": "tmp2"})
    assert (code, changed["vni"], changed["name"], changed["id"]) == (200, 11, "tmp2", made["id"])
    assert first.ask("GET", f"/v1/vpcs/{made['id']}") == (200, changed)
    assert first.ask("DELETE", "/v1/vpcs/tmp2")[0] == 200
    code, missing = first.ask("GET", "/v1/vpcs/tmp2")
    assert (code, missing["code"]) == (404, "not-found")


def test_two_tenants_may_use_one_name(first: Running) -> None:
    one = {"name": "twin", "vni": 21, "cidrs": ["10.0.0.0/16"], "tenant": "t1"}
    _, first_made = first.ask("POST", "/v1/vpcs", one)
    _, second_made = first.ask("POST", "/v1/vpcs", {**one, "vni": 22, "tenant": "t2"})
    assert (first_made["tenant"], second_made["tenant"]) == ("t1", "t2")
    code, error = first.ask("GET", "/v1/vpcs/twin")
    assert code == 404
    assert first_made["id"] in error["error"] and second_made["id"] in error["error"]
    for made in (first_made, second_made):
        assert first.ask("DELETE", f"/v1/vpcs/{made['id']}")[0] == 200


def tables(node: Running) -> Any:
    """What is installed once everything compiled is."""
    until(lambda: node.on_loop(lambda: node.node.forwarder.synced), "rows are written")
    return node.ask("GET", "/v1/dataplane")[1]["tables"]


def test_an_endpoint_from_its_making_to_its_end(first: Running, vpc: str) -> None:
    body = {"vpc": vpc, "ip": "10.0.1.5", "name": "web", "attach": "veth5"}
    code, made = first.ask("POST", "/v1/endpoints", body)
    assert (code, set(made)) == (200, ENDPOINT_KEYS)
    assert re.fullmatch(r"a1/\d+/\d+", made["dot"])
    assert made["state"] == "active"
    assert 0 <= made["age_s"] < 10
    ports = tables(first)["ports"]
    assert [(port["ifname"], port["ip"]) for port in ports] == [("veth5", "10.0.1.5")]
    code, error = first.ask("POST", "/v1/endpoints", {**body, "ip": "10.0.1.6"})
    assert (code, "veth5 carries 10.0.1.5" in error["error"]) == (409, True)
    assert first.ask("GET", f"/v1/vpcs/{vpc}/endpoints/10.0.1.6")[0] == 404, "nothing was written"
    assert first.ask("POST", "/v1/endpoints", {**body, "attach": "veth6"})[0] == 200
    ports = tables(first)["ports"]
    assert [port["ifname"] for port in ports] == ["veth6"], "another interface takes its place"
    assert first.ask("DELETE", f"/v1/vpcs/{vpc}/endpoints/10.0.1.5")[0] == 200
    assert tables(first)["ports"] == []
    assert first.node.store.attachments() == ()
    assert first.ask("DELETE", f"/v1/vpcs/{vpc}/endpoints/10.0.1.5")[0] == 404
    del body["attach"]
    assert first.ask("POST", "/v1/endpoints", body)[0] == 200
    assert tables(first)["ports"] == [], "the interface was let go with the endpoint"
    assert first.ask("DELETE", f"/v1/vpcs/{vpc}/endpoints/10.0.1.5")[0] == 200


def test_an_attachment_survives_a_restart(tmp_path: Path) -> None:
    config = founded(tmp_path)
    with running(config) as node:
        node.ask("POST", "/v1/vpcs", {"name": "v", "vni": 1, "cidrs": ["10.0.0.0/16"]})
        node.ask("POST", "/v1/subnets", {"name": "s", "vpc": "v", "cidr": "10.0.1.0/24"})
        body = {"vpc": "v", "ip": "10.0.1.5", "attach": "veth5"}
        assert node.ask("POST", "/v1/endpoints", body)[0] == 200
        before = tables(node)
    with running(config) as node:
        assert tables(node) == before


def test_import_takes_all_or_none_or_the_good(first: Running, vpc: str) -> None:
    good = [{"vpc": vpc, "ip": f"10.0.1.{last}"} for last in (100, 101)]
    bad = {"vpc": vpc, "ip": "10.0.77.1"}
    path = "/v1/endpoints/import"
    code, answer = first.ask("POST", path, {"endpoints": [good[0], bad]})
    assert (code, answer["taken"]) == (200, 0)
    assert [error["index"] for error in answer["errors"]] == [1]
    assert first.ask("GET", f"/v1/vpcs/{vpc}/endpoints/10.0.1.100")[0] == 404
    assert first.ask("POST", path, {"endpoints": good, "check": True})[1]["taken"] == 0
    assert first.ask("GET", f"/v1/vpcs/{vpc}/endpoints/10.0.1.100")[0] == 404
    answer = first.ask("POST", path, {"endpoints": [good[0], bad], "partial": True})[1]
    assert answer["taken"] == 1
    assert first.ask("POST", path, {"endpoints": good})[1]["taken"] == 2
    ips = [e["ip"] for e in first.ask("GET", f"/v1/endpoints?vpc={vpc}&site=a")[1]]
    assert {"10.0.1.100", "10.0.1.101"} <= set(ips)


def test_explain_joins_reasons_and_rows(first: Running, second: Running, vpc: str) -> None:
    body = {"name": "stretched", "vpc": vpc, "cidr": "10.0.200.0/24", "sites": ["a", "b"]}
    assert first.ask("POST", "/v1/subnets", body)[0] == 200
    until(lambda: len(second.ask("GET", "/v1/subnets")[1]) >= 2, "b1 knows the subnets")
    assert second.ask("POST", "/v1/endpoints", {"vpc": vpc, "ip": "10.0.200.7"})[0] == 200
    path = f"/v1/route?vpc={vpc}&ip=10.0.200.7"
    until(lambda: bool(first.ask("GET", path)[1]["claims"]), "a1 knows the endpoint")
    until(lambda: first.node.forwarder.synced, "its rows are written")
    answer = first.ask("GET", path)[1]
    assert answer["claims"][0]["signer"] == "b1"
    assert answer["claims"][0]["dot"].startswith("b1/")
    assert answer["next_hop"]["gateways"] == [
        {"node": "b1", "site": "b", "underlay": "127.0.0.2", "up": True}
    ]
    assert answer["row"]["kind"] == "endpoint"
    unclaimed = first.ask("GET", f"/v1/route?vpc={vpc}&ip=10.0.1.250")[1]
    assert (unclaimed["claims"], unclaimed["row"]["kind"]) == ([], "subnet")
    outside = first.ask("GET", f"/v1/route?vpc={vpc}&ip=192.0.2.1")[1]
    assert (outside["subnet"], outside["row"]["kind"]) == (None, "none")


def test_members_and_links(first: Running, second: Running) -> None:
    until(lambda: len(first.on_loop(first.node.transport.peers)) == 1, "the link")
    members = first.ask("GET", "/v1/members")[1]
    assert [(m["node"], m["site"], m["state"]) for m in members] == [
        ("a1", "a", "active"),
        ("b1", "b", "active"),
    ]
    assert [m["path"] for m in members] == ["self", "direct"]


def test_conflicts_are_listed_and_resolved(first: Running, second: Running, vpc: str) -> None:
    body = {"name": "both", "vpc": vpc, "cidr": "10.0.201.0/24", "sites": ["a", "b"]}
    assert first.ask("POST", "/v1/subnets", body)[0] == 200
    until(lambda: len(second.ask("GET", "/v1/subnets")[1]) >= 3, "b1 knows the subnet")
    cut(first, second)
    claim = {"vpc": vpc, "ip": "10.0.201.9"}
    assert first.ask("POST", "/v1/endpoints", claim)[0] == 200
    assert second.ask("POST", "/v1/endpoints", claim)[0] == 200
    heal(first, second)
    until(lambda: bool(first.ask("GET", "/v1/conflicts")[1]), "the heal")
    until(lambda: bool(second.ask("GET", "/v1/conflicts")[1]), "the heal")
    (conflict,) = first.ask("GET", "/v1/conflicts")[1]
    assert conflict.keys() == {"key", "claimants", "winner", "rule", "since"}
    assert conflict["key"] == f"endpoint/{vpc}/10.0.201.9"
    assert set(conflict["claimants"]) == {"a1", "b1"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]{12}Z", conflict["since"])
    assert second.ask("GET", "/v1/conflicts")[1] == [conflict]
    states = [e["state"] for e in first.ask("GET", "/v1/endpoints")[1] if e["ip"] == "10.0.201.9"]
    assert states == ["active", "conflict"]
    body = {"key": conflict["key"], "keep": "b1"}
    assert second.ask("POST", "/v1/conflicts/resolve", body)[0] == 409, "b1 is neither owner"
    assert first.ask("POST", "/v1/conflicts/resolve", body)[0] == 200
    assert first.ask("GET", "/v1/conflicts")[1] == []
    assert first.ask("GET", f"/v1/vpcs/{vpc}/endpoints/10.0.201.9")[1]["node"] == "b1"


def test_dump_shows_every_chain_with_its_records(first: Running, vpc: str) -> None:
    chains = first.ask("GET", "/v1/state/dump?shard=mesh&records=true")[1]
    mine = next(chain for chain in chains if chain["node"] == "a1")
    assert mine["signature"] == "valid"
    assert len(mine["entries"]) == mine["records"]
    assert f"vpc/{vpc}" in [entry["key"] for entry in mine["entries"]]
    seqs = [entry["seq"] for entry in mine["entries"]]
    assert seqs == sorted(seqs) and seqs[-1] <= mine["head"]
    assert first.ask("GET", "/v1/state/dump?chain=nobody")[0] == 404
    assert first.ask("GET", "/v1/state/dump?shard=nothing")[0] == 404
    by_name = first.ask("GET", f"/v1/state/digest?shard={vpc}")[1]
    assert first.ask("GET", f"/v1/state/digest?shard={by_name['shard']}")[1] == by_name


def test_an_audit_finds_and_mends_what_was_changed_behind_its_back(first: Running) -> None:
    assert first.ask("POST", "/v1/dataplane/audit", {})[1]["clean"] is True
    backend: Any = first.node.forwarder.backend
    key = next(iter(backend._subnets))
    first.on_loop(lambda: backend._subnets.pop(key))
    report = first.ask("POST", "/v1/dataplane/audit", {})[1]
    assert (report["clean"], len(report["missing"])) == (False, 1)
    mended = first.ask("POST", "/v1/dataplane/audit", {"repair": True})[1]
    assert (mended["clean"], mended["repaired"], len(mended["missing"])) == (True, True, 1)
    assert first.ask("POST", "/v1/dataplane/audit", {})[1]["clean"] is True


def test_metrics_are_well_formed(first: Running) -> None:
    code, page = first.ask("GET", "/metrics")
    assert code == 200
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[^"]*"(,[a-z]+="[^"]*")*\})? -?[0-9.e+-]+')
    families = set()
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            families.add(line.split()[2])
        elif not line.startswith("#"):
            assert sample.fullmatch(line), line
            name = line.split("{")[0].split()[0]
            assert any(name.startswith(family) for family in families), line
    assert {"weft_peers_connected", "weft_records", "weft_fib_rows", "weft_drops_total"} <= families


def test_the_document_names_every_route() -> None:
    document = openapi()
    for route in ROUTES:
        operation = document["paths"][route.path][route.method.lower()]
        assert ("requestBody" in operation) == (route.body is not None)
        assert operation["summary"]


# ---- what is refused ------------------------------------------------------------------------

ADD_VPC = {"name": "x", "vni": 1, "cidrs": ["10.0.0.0/16"]}


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/v1/nothing", None, 404),
        ("GET", "/", None, 404),
        ("PUT", "/v1/vpcs", None, 400),
        ("GET", "/v1/vpcs?x=1", None, 400),
        ("GET", "/v1/endpoints?vpc=a&vpc=b", None, 400),
        ("GET", "/v1/endpoints?site=nowhere", None, 404),
        ("DELETE", "/v1/vpcs/red?force=maybe", None, 400),
        ("GET", "/v1/route?vpc=red", None, 400),
        ("GET", "/v1/route?vpc=red&ip=10.0.0.300", None, 400),
        ("GET", "/v1/route?vpc=none&ip=10.0.0.1", None, 404),
        ("POST", "/v1/vpcs", b"", 400),
        ("POST", "/v1/vpcs", b"{", 400),
        ("POST", "/v1/vpcs", b"\xff", 400),
        ("POST", "/v1/vpcs", b"[" * 60_000, 400),
        ("POST", "/v1/vpcs", b"1" * 10_000, 400),
        ("POST", "/v1/vpcs", b" " * (BODY_BYTES_MAX + 1), 400),
        ("POST", "/v1/vpcs", [], 400),
        ("POST", "/v1/vpcs", {}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "color": "red"}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "vni": "1"}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "vni": True}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "vni": 1 << 24}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "vni": 1.5}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "cidrs": "10.0.0.0/16"}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "cidrs": []}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "cidrs": ["10.0.0.1/16"]}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "cidrs": ["10.0.0.0/16"] * 100}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "name": "A"}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "name": ""}, 400),
        ("POST", "/v1/vpcs", {**ADD_VPC, "name": "a\nb"}, 400),
        ("POST", "/v1/endpoints", {"vpc": "red", "ip": "10.0.1.9", "labels": {"a": 1}}, 400),
        ("POST", "/v1/endpoints", {"vpc": "red", "ip": "10.0.1.9", "attach": "a/b"}, 400),
        ("POST", "/v1/endpoints", {"vpc": "none", "ip": "10.0.1.9"}, 404),
        ("POST", "/v1/invitations", {"ttl_s": 0}, 400),
        ("POST", "/v1/conflicts/resolve", {"key": "nonsense", "keep": "a1"}, 400),
        ("GET", "/v1/state/diff/a1", None, 400),
        ("GET", "/v1/state/diff/nobody", None, 404),
    ],
)
def test_wrong_requests(
    first: Running, vpc: str, method: str, path: str, body: object, code: int
) -> None:
    answered, answer = first.ask(method, path, body)
    assert answered == code, answer
    assert answer.keys() == {"error", "code"}
    assert answer["code"] == {400: "bad-input", 404: "not-found", 409: "refused"}[code]
    assert "\n" not in answer["error"]


def test_a_declared_size_is_refused_before_the_body_is_sent(first: Running) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(first.socket))
        head = f"POST /v1/vpcs HTTP/1.1\r\nHost: x\r\nContent-Length: {10**12}\r\n\r\n"
        client.sendall(head.encode())
        assert client.recv(4096).startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"\x00" * 100,
        b"GET",
        b"GET / HTTP/1.1\r\n",
        b"POST /v1/vpcs HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /v1/vpcs HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/vpcs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
    ],
)
def test_a_client_that_talks_nonsense_ends_nothing(first: Running, garbage: bytes) -> None:
    for _ in range(10):  # whether the server still sends when the client leaves is chance
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(first.socket))
            with contextlib.suppress(OSError):  # it has read enough
                client.sendall(garbage)
    assert first.ask("GET", "/v1/status")[0] == 200


def test_a_client_that_has_left_takes_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "CONNECTIONS_MAX", 4)
    with running(founded(tmp_path)) as node:
        for _ in range(40):
            assert node.ask("GET", "/v1/status")[0] == 200


def test_a_failure_inside_is_an_answer(first: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> list[object]:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(first.node.view, "conflicts", fail)
    code, answer = first.ask("GET", "/v1/conflicts")
    assert (code, answer["code"]) == (503, "not-ready")
    assert "ZeroDivisionError" in answer["error"]
    monkeypatch.undo()
    assert first.ask("GET", "/v1/conflicts")[0] == 200


# ---- the socket -----------------------------------------------------------------------------


def test_only_the_owner_can_use_the_socket(first: Running) -> None:
    assert stat.S_IMODE(first.socket.stat().st_mode) == 0o600


def test_a_socket_that_answers_is_not_taken_over(first: Running, tmp_path: Path) -> None:
    config = founded(tmp_path)
    config.write_text(config.read_text().replace(str(tmp_path / "a1/weft.sock"), str(first.socket)))
    with pytest.raises(BaseExceptionGroup) as raised, running(config):
        pass
    found, _ = raised.value.split(NotReady)
    assert found is not None and "another process answers there" in str(leaf(found))
    assert first.ask("GET", "/v1/status")[0] == 200


def leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def test_a_socket_left_by_a_killed_node_is_replaced(tmp_path: Path) -> None:
    config = founded(tmp_path)
    path = tmp_path / "a1/weft.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with running(config) as node:
        assert node.ask("GET", "/v1/status")[0] == 200
    assert not path.exists()


def test_a_file_in_the_sockets_place_is_kept(tmp_path: Path) -> None:
    config = founded(tmp_path)
    path = tmp_path / "a1/weft.sock"
    path.write_text("mine")
    with pytest.raises(BaseExceptionGroup), running(config):
        pass
    assert path.read_text() == "mine"


# ---- schemas --------------------------------------------------------------------------------

SHAPE = record(
    {"name": text("", 5), "count": integer("", 0, 9)},
    {"on": boolean(""), "list": array(text("", 3), 2, ""), "map": mapping(text("", 3), "")},
)


@pytest.fixture
def good() -> Iterator[dict[str, object]]:
    yield {"name": "ab", "count": 3, "on": True, "list": ["a"], "map": {"k": "v"}}


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("name", "", "name"),
        ("name", "abcdef", "name"),
        ("name", None, "name"),
        ("count", 10, "count"),
        ("count", -1, "count"),
        ("count", False, "count"),
        ("count", 1.0, "count"),
        ("on", 1, "on"),
        ("list", ["a", "b", "c"], "list"),
        ("list", ["long"], "list[0]"),
        ("list", {}, "list"),
        ("map", {"k": 1}, "map.k"),
        ("other", 1, "other"),
    ],
)
def test_schemas_name_what_is_wrong(
    good: dict[str, object], field: str, value: object, named: str
) -> None:
    check(SHAPE, good, "body")
    with pytest.raises(BadInput, match=re.escape(named)):
        check(SHAPE, {**good, field: value}, "body")


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ({"ip": "a"}, ""),
        ({"ip": "abc", "mac": "m"}, ""),
        ({"ip": "a", "labels": {"k": "v"}}, ""),
        ({}, "[1]: ip is missing"),
        ({"mac": "m"}, "[1]: ip is missing"),
        ({"ip": ""}, "[1].ip"),
        ({"ip": "abcd"}, "[1].ip"),
        ({"ip": 1}, "[1].ip"),
        ({"ip": "a", "mac": None}, "[1].mac"),
        ({"ip": "a", "labels": {"k": 1}}, "[1].labels.k"),
        ({"ip": "a", "other": "b"}, "[1]: 'other'"),
        (["ip"], "[1]"),
    ],
)
def test_entries_of_a_long_list_are_looked_at_as_any_other(entry: object, named: str) -> None:
    optional = {"mac": text("", 3), "labels": mapping(text("", 3), "")}
    shape = record({"all": array(record({"ip": text("", 3)}, optional), 9, "")})
    entries = [{"ip": "b"}, entry, {"ip": "c"}]
    if not named:
        check(shape, {"all": entries}, "body")
        return
    with pytest.raises(BadInput, match=re.escape(f"all{named}")):
        check(shape, {"all": entries}, "body")


def test_a_missing_field_is_named(good: dict[str, object]) -> None:
    del good["count"]
    with pytest.raises(BadInput, match="count is missing"):
        check(SHAPE, good, "body")


def test_queries() -> None:
    schemas = {"on": boolean(""), "name": text("", 3)}
    assert parse_query(schemas, [("on", "true"), ("name", "abc")]) == {"on": True, "name": "abc"}
    for pairs in ([("on", "yes")], [("name", "abcd")], [("x", "1")], [("on", "true")] * 2):
        with pytest.raises(BadInput):
            parse_query(schemas, pairs)


def test_the_socket_is_created_without_a_wide_moment(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with running(founded(tmp_path)) as node:
            assert stat.S_IMODE(node.socket.stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_what_a_newer_version_wrote_is_shown_and_counted_as_unknown(
    first: Running, second: Running, vpc: str
) -> None:
    vpc_id = first.ask("GET", f"/v1/vpcs/{vpc}")[1]["id"]
    ops = [
        Put("mesh", b"Q-kind", b"\x01\x02\x03"),
        Put(vpc_id, b"Q-kind", b""),
        Put(vpc_id, b"e\x0a\x00\x01\x63", b"\x81\x00\x02"),
    ]
    first.on_loop(lambda: first.node.replica.local(ops, 0))
    first.on_loop(first.node._absorb)

    def counted(node: Running) -> tuple[int, int]:
        shards = node.ask("GET", "/v1/status")[1]["shards"]
        return shards["mesh"]["unknown"], shards.get(vpc_id, {"unknown": 0})["unknown"]

    assert counted(first) == (1, 2)
    until(lambda: counted(second)[0] == 1, "it has come")
    for node in (first, second):
        shown: dict[tuple[str, str], Any] = {}
        for chain in node.ask("GET", "/v1/state/dump?chain=a1&records=true")[1]:
            shown |= {(chain["shard"], e["key"]): e["value"] for e in chain["entries"]}
        assert shown["mesh", "unknown/512d6b696e64"] == {
            "kind": "unknown", "size_bytes": 3, "record": "010203",
        }  # fmt: skip
        if node is first:
            assert shown[vpc_id, "unknown/512d6b696e64"]["size_bytes"] == 0
            assert shown[vpc_id, "endpoint/red/10.0.1.99"]["kind"] == "unknown"
        metrics = node.ask("GET", "/metrics")[1]
        assert 'weft_records_unknown{shard="mesh"} 1' in metrics
    assert first.ask("GET", "/v1/status")[1]["problems"] == []
