"""A proven fork on real nodes: everybody shows it with what to do, until the node is retired."""

from __future__ import annotations

from pathlib import Path

import pytest

from crdt.header import ChainId, Epoch, Header
from mesh.core import ed25519
from mesh.node.keys import read_seed
from tests.mesh.api_nodes import Running, until


def problems(node: Running) -> list[dict[str, str]]:
    found: list[dict[str, str]] = node.ask("GET", "/v1/status")[1]["problems"]
    return found


def test_every_node_shows_a_fork_and_what_to_do(
    first: Running, second: Running, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seed = read_seed(home / "b1" / "node.key", "node")
    roster = first.node.replica.roster
    zero = bytes(32)
    forked = [
        Header(ChainId(second.node.id, "mesh"), Epoch(9, bytes(8)), 0, hi, 1, 0, zero, zero, zero)
        .signed(roster.mesh_id, lambda message: ed25519.sign(seed, message))
        for hi in (1, 2)
    ]  # fmt: skip
    until(lambda: len(first.ask("GET", "/v1/members")[1]) == 2, "both are members")
    proof = roster.fork_proof(*forked)
    assert proof is not None
    assert not any(member["forked"] for member in first.ask("GET", "/v1/members")[1])
    first.on_loop(lambda: first.node.replica.add_statements([proof], 0))
    first.on_loop(first.node._absorb)
    for node in (first, second):
        until(lambda node=node: bool(problems(node)), "the fork is shown")  # type: ignore[misc]
        (problem,) = problems(node)
        assert "b1 signed two histories" in problem["what"]
        assert "weft retire b1" in problem["fix"]
        forked_names = [m["node"] for m in node.ask("GET", "/v1/members")[1] if m["forked"]]
        assert forked_names == ["b1"]
    assert any("chain.forked" in message for message in caplog.messages)
    assert first.ask("POST", "/v1/members/b1/retire", {})[0] == 200
    assert problems(first) == []
