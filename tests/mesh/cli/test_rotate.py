"""`weft rotate` as people run it, on a mesh of real nodes."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from mesh.cli import app
from tests.mesh.api_nodes import Running, founded, joined, running, until


def test_a_new_key_is_shown_everywhere_and_links_and_chains_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def weft(node: Running, *args: str) -> tuple[int, str, str]:
        code = app.run([*args, "--socket", str(node.socket), "-o", "json"])
        return code, *capsys.readouterr()

    def member(at: Running, name: str) -> dict[str, object]:
        rows = at.ask("GET", "/v1/members")[1]
        return next(row for row in rows if row["node"] == name)

    with ExitStack() as stack:
        a = stack.enter_context(running(founded(tmp_path)))
        b = stack.enter_context(running(joined(tmp_path, a, "b1", "b", "127.0.0.2")))
        until(lambda: member(a, "b1")["path"] is not None, "they are linked")
        before = member(a, "b1")
        done: list[str] = []

        def rotated() -> bool:
            code, out, err = weft(b, "rotate")
            if code:
                assert (code, "not heard since this node started: a1; " in err) == (1, True)
                return False
            done.append(out)
            return True

        until(rotated, "b1 has heard a1")
        said = json.loads(done[0])
        assert (said["node"], said["id"], said["rotations"]) == ("b1", before["id"], 1)
        assert said["key"] != before["key"]
        until(lambda: member(a, "b1")["key"] == said["key"], "a1 has heard of it")
        until(lambda: member(a, "b1")["path"] is not None, "they are linked again")
        b.ask("POST", "/v1/vpcs", {"name": "red", "vni": 100, "cidrs": ["10.0.0.0/16"]})
        until(lambda: len(a.ask("GET", "/v1/vpcs")[1]) == 1, "what b1 writes is taken")
        for node in (a, b):
            until(lambda node=node: _valid(node), "every signature is valid")  # type: ignore[misc]
            code, out, _ = weft(node, "state", "verify")
            assert code == 0, out
            assert node.ask("GET", "/v1/status")[1]["problems"] == []
        assert weft(b, "leave")[0] == 0
        code, _, err = weft(b, "rotate")
        assert (code, "retired" in err) == (3, True)


def _valid(node: Running) -> bool:
    chains = node.ask("GET", "/v1/state/dump")[1]
    return {chain["signature"] for chain in chains} == {"valid"}
