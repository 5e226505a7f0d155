"""`weft snapshot` and `weft restore` as people use them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.cli import app
from tests.mesh.api_nodes import founded, running

Weft = Callable[..., tuple[int, str, str]]


@pytest.fixture
def weft(capsys: pytest.CaptureFixture[str]) -> Weft:
    def run(*args: str) -> tuple[int, str, str]:
        code = app.run([*args, "-o", "json"])
        return code, *capsys.readouterr()

    return run


def test_snapshot_and_restore(tmp_path: Path, weft: Weft, monkeypatch: pytest.MonkeyPatch) -> None:
    config = founded(tmp_path)
    monkeypatch.chdir(tmp_path)
    with running(config) as node:
        asked = ("--socket", str(node.socket))
        code, out, err = weft("snapshot", "a1.weft", *asked)
        assert (code, err) == (0, "")
        file = tmp_path / "a1.weft"
        assert json.loads(out) == {"file": str(file), "bytes": file.stat().st_size}
        assert weft("snapshot", "a1.weft", *asked)[0] == 1
        assert weft("snapshot", "none/a1.weft", *asked)[0] == 2
        status, answer = node.ask("POST", "/v1/snapshot", {"file": "relative"})
        assert (status, "no absolute path" in answer["error"]) == (400, True)
    code, out, _ = weft("restore", "a1.weft", "--dir", "again")
    assert (code, json.loads(out)["node"]) == (0, node.node.member.name)
    assert weft("restore", "a1.weft", "--dir", "again")[0] == 1
    assert weft("restore", str(config), "--dir", "other")[0] == 2
    assert not (tmp_path / "other").exists()
    code, _, err = weft("snapshot", "later.weft", *asked)
    assert (code, "weft run" in err) == (3, True)
