"""Admins made and retired with the root key, on two real nodes: the key stays with the command."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.cli import app
from mesh.core.statements import ADMIN, make_statement
from mesh.node.keys import read_seed
from mesh.node.setup import found
from tests.mesh.api_nodes import Running, joined, new_node, until

Weft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    def run(node: Running, *args: str) -> tuple[int, str, str]:
        code = app.run([*args, "--socket", str(node.socket), "-o", "json"])
        return code, *capsys.readouterr()

    return run


def said(answer: tuple[int, str, str]) -> Any:
    assert (answer[0], answer[2]) == (0, ""), answer
    return json.loads(answer[1])


def no(answer: tuple[int, str, str], code: int, *words: str) -> None:
    assert (answer[0], answer[1]) == (code, ""), answer
    assert all(word in answer[2] for word in words), answer


def member(node: Running, name: str) -> dict[str, Any]:
    found = [m for m in node.ask("GET", "/v1/members")[1] if m["node"] == name]
    return found[0] if found else {}


def agree(*nodes: Running) -> None:
    until(lambda: len({n.ask("GET", "/v1/roster")[1]["digest"] for n in nodes}) == 1, "one roster")


def test_an_admin_comes_and_goes(first: Running, second: Running, weft: Weft, home: Path) -> None:
    key = ("--root-key", str(home / "a1" / "root.key"))
    a, b = first, second
    agree(a, b)
    assert said(weft(b, "admin", "log", "b1")) == []
    no(weft(b, "invite"), 1, "no admin")
    preview = said(weft(b, "admin", "add", "b1", *key, "--check"))
    assert (preview["node"], preview["admin"]) == ("b1", True)
    assert not member(b, "b1")["admin"], "it was a check"
    assert said(weft(b, "admin", "add", "b1", *key)) == preview
    until(lambda: bool(member(a, "b1")["admin"]), "a1 has heard of it")
    assert said(weft(a, "admin", "add", "b1", *key)) == preview

    joined(home, b, "d1", "d", "127.0.0.4")
    joined(home, b, "d2", "d", "127.0.0.5")
    agree(a, b)
    log = said(weft(a, "admin", "log", "b1"))
    assert sorted((row["kind"], row["about"], row["counts"]) for row in log) == [
        ("admit", "d1 at d", True), ("admit", "d2 at d", True),
    ]  # fmt: skip
    (hash,) = (row["hash"] for row in log if row["about"] == "d1 at d")

    drop = ("--drop", hash[:16])
    before = a.ask("GET", "/v1/roster")[1]["digest"]
    gone = said(weft(a, "admin", "rm", "b1", *key, *drop, "--check"))
    assert (gone["admin"], gone["kept"], gone["changed"]) == (False, 1, ["d1"])
    assert a.ask("GET", "/v1/roster")[1]["digest"] == before
    assert said(weft(a, "admin", "rm", "b1", *key, *drop)) == gone
    agree(a, b)
    for node in (a, b):
        assert (member(node, "d1"), member(node, "d2")["state"]) == ({}, "active")
        assert (member(node, "b1")["state"], member(node, "b1")["admin"]) == ("active", False)
    no(weft(b, "invite"), 1, "no admin", "at a1")

    # Once more says nothing new; what was dropped by mistake can be kept yet.
    before = a.ask("GET", "/v1/roster")[1]["digest"]
    assert said(weft(a, "admin", "rm", "b1", *key))["changed"] == []
    assert a.ask("GET", "/v1/roster")[1]["digest"] == before
    no(weft(a, "admin", "rm", "b1", *key, *drop), 2, "no admin any more")
    assert said(weft(a, "admin", "rm", "b1", *key, "--keep", hash))["changed"] == ["d1"]
    assert member(a, "d1")["state"] == "active"
    no(weft(a, "admin", "add", "b1", *key), 1, "for good")
    no(weft(a, "admin", "rm", "d2", *key), 1, "never was an admin")


def test_what_is_not_the_root_key_is_refused_before_anything_is_said(
    first: Running, weft: Weft, home: Path, tmp_path: Path
) -> None:
    open_to_all = tmp_path / "root.key"
    open_to_all.write_bytes((home / "a1" / "root.key").read_bytes())
    tmp_path.chmod(0o700)
    open_to_all.chmod(0o644)
    found(new_node(tmp_path, "z1", "z", "127.0.0.9"), "other")
    before = first.ask("GET", "/v1/roster")[1]["digest"]
    for command in ("add", "rm"):
        for path, code, word in (
            (open_to_all, 2, "mode 0644 lets others in"),
            (home / "a1" / "node.key", 2, "node key"),
            (tmp_path / "nothing", 2, "cannot be read"),
            (tmp_path / "z1" / "root.key", 1, "another mesh"),
        ):
            no(weft(first, "admin", command, "a1", "--root-key", str(path)), code, word)
    both = ("--keep", "ab", "--drop", "cd", "--root-key", str(home / "a1" / "root.key"))
    no(weft(first, "admin", "rm", "a1", *both), 2, "give one")
    unknown = ("--keep", "abcd", "--root-key", str(home / "a1" / "root.key"))
    no(weft(first, "admin", "rm", "a1", *unknown), 2, "no such statement")
    no(weft(first, "admin", "log", "nobody"), 1, "nobody")
    assert first.ask("GET", "/v1/roster")[1]["digest"] == before


def test_the_api_takes_what_is_signed_and_nothing_else(first: Running, home: Path) -> None:
    status, roster = first.ask("GET", "/v1/roster")
    assert (status, roster["mesh"]) == (200, first.node.replica.roster.mesh_id.hex())
    texts = roster["statements"]
    assert first.ask("POST", "/v1/roster", {"statements": texts}) == (
        200, {"added": 0, "digest": roster["digest"]},
    )  # fmt: skip
    seed = read_seed(home / "a1" / "node.key", "node")
    mesh, key = first.node.replica.roster.mesh_id, bytes(32)
    forged = make_statement(seed, b"", mesh, ADMIN, {"key": key})
    for bad in ("*", base64.b64encode(forged).decode(), "AAAA"):
        status, answer = first.ask("POST", "/v1/roster", {"statements": [bad]})
        assert (status, "statement" in answer["error"]) == (400, True)
    assert first.ask("GET", "/v1/roster")[1] == roster
