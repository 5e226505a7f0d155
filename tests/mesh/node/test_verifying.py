"""`weft state verify` finds each kind of damage, names the chain, and disturbs nobody."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trio

from crdt.chain import Chain
from crdt.header import ChainId
from mesh.cli import app
from mesh.core import keys, model
from mesh.core.importing import EndpointSpec
from mesh.core.ops import Put
from mesh.node.node import Node
from mesh.node.verifying import Verifier
from tests.mesh.api_nodes import Running, founded, running, until

Verify = Callable[[], tuple[int, dict[str, Any]]]
LONGEST_STEP_S = 0.020


@pytest.fixture(scope="module")
def site(first: Running, second: Running) -> None:
    """Two nodes that hold chains of each other, in two shards."""
    vpc = {"name": "red", "vni": 100, "cidrs": ["10.0.0.0/16"]}
    assert first.ask("POST", "/v1/vpcs", vpc)[0] == 200
    subnet = {"name": "s", "vpc": "red", "cidr": "10.0.0.0/17", "sites": ["a", "b"]}
    assert first.ask("POST", "/v1/subnets", subnet)[0] == 200
    until(lambda: len(second.ask("GET", "/v1/subnets")[1]) == 1, "b1 knows the subnet")
    for node, third in ((first, 1), (second, 2)):
        for i in range(100):
            body = {"vpc": "red", "ip": f"10.0.{third}.{i + 2}"}
            assert node.ask("POST", "/v1/endpoints", body)[0] == 200
    until(lambda: len(first.ask("GET", "/v1/endpoints")[1]) == 200, "a1 knows all endpoints")


@pytest.fixture
def verify(first: Running, site: None, capsys: pytest.CaptureFixture[str]) -> Verify:
    def run() -> tuple[int, dict[str, Any]]:
        code = app.run(["state", "verify", "-o", "json", "--socket", str(first.socket)])
        out, err = capsys.readouterr()
        assert err == "", err
        answer: dict[str, Any] = json.loads(out)
        assert answer["ok"] == (code == 0) == (answer["differences"] == [])
        return code, answer

    return run


def branch(first: Running, writer: str, shard: str) -> Chain:
    """The latest branch of a chain, by the names of its writer and VPC."""
    node = first.node
    id = ChainId(node.view.member(writer).node, (shard and node.view.vpc(shard).id) or "mesh")
    found = node.replica.lattice.latest(id)
    assert found is not None
    return found


def sql(first: Running, text: str, *values: object) -> None:
    with first.node.store._lock:
        done = first.node.store._db.execute(text, values)
        assert done.rowcount > 0


def test_a_sound_node_is_right(verify: Verify, first: Running) -> None:
    code, answer = verify()
    assert code == 0 and answer["chains"] == 4
    chains = json.loads(json.dumps(first.ask("GET", "/v1/state/dump")[1]))
    assert answer["records"] == sum(chain["records"] for chain in chains)


STORED = "branch = (SELECT id FROM branch WHERE node = ? AND shard = ?)"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (f"UPDATE record SET entry = CAST(entry || 'x' AS BLOB) WHERE {STORED}", "100 records are"),
        (f"DELETE FROM record WHERE {STORED}", "100 records are missing or differ"),
        (f"UPDATE record SET key = CAST(key || 'x' AS BLOB) WHERE {STORED}", "does not hold"),
        ("UPDATE branch SET header = CAST('x' AS BLOB) WHERE node = ? AND shard = ?", "header"),
        ("UPDATE branch SET counter = counter + 1 WHERE node = ? AND shard = ?", "is missing"),
    ],
)
@pytest.mark.parametrize("writer", ["a1", "b1"])
def test_damage_in_the_store(
    verify: Verify, first: Running, writer: str, damage: str, what: str
) -> None:
    chain = branch(first, writer, "red")
    store = first.node.store
    find = "SELECT id FROM branch WHERE node = ? AND shard = ?"
    ((id,),) = store._all(find, (chain.id.node, chain.id.shard))
    # Of this branch alone: of others, more may come meanwhile.
    columns = {"branch": "id", "record": "branch"}
    before = {t: store._all(f"SELECT * FROM {t} WHERE {c} = ?", (id,)) for t, c in columns.items()}
    sql(first, damage, chain.id.node, chain.id.shard)
    try:
        code, answer = verify()
    finally:
        with store._lock, store._transaction():
            for table in ("record", "branch"):
                store._db.execute(f"DELETE FROM {table} WHERE {columns[table]} = ?", (id,))
            for table, rows in before.items():
                marks = ",".join("?" * len(rows[0]))
                store._db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)
    assert code == 1
    assert {(d["node"], d["shard"]) for d in answer["differences"]} == {(writer, chain.id.shard)}
    assert any(what in d["what"] for d in answer["differences"]), answer
    assert all(d["what"].startswith("store: ") for d in answer["differences"])
    assert verify()[0] == 0


def test_a_statement_that_the_store_lost(verify: Verify, first: Running) -> None:
    (lost, *_) = first.node.store._all("SELECT hash, body FROM statement ORDER BY hash LIMIT 1")
    sql(first, "DELETE FROM statement WHERE hash = ?", lost[0])
    try:
        code, answer = verify()
    finally:
        sql(first, "INSERT INTO statement VALUES (?, ?)", *lost)
    assert code == 1
    assert [d["what"] for d in answer["differences"]] == ["roster: store: 1 statements are missing"]


def _entry(chain: Chain) -> None:
    key = next(iter(chain.live))
    chain.live[key] += b"x"


def _index(chain: Chain) -> None:
    chain.index.root = bytes(32)


def _signature(chain: Chain) -> None:
    assert chain.header is not None
    chain.header = chain.header._replace(signature=bytes(64))


def _lost(chain: Chain) -> None:
    del chain.live[next(iter(chain.live))]


@contextmanager
def damaged(first: Running, chain: Chain, damage: Callable[[Chain], None]) -> Iterator[None]:
    live, root, header = dict(chain.live), chain.index.root, chain.header

    def mend() -> None:
        chain.live.clear()
        chain.live.update(live)
        chain.index.root, chain.header = root, header

    first.on_loop(lambda: damage(chain))
    try:
        yield
    finally:
        first.on_loop(mend)


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (_entry, "memory: the root is not the one that was signed"),
        (_index, "memory: the index of the root is not that of the records"),
        (_signature, "memory: the signature does not hold"),
        (_lost, "memory: 99 records, and 100 were signed"),
    ],
)
def test_damage_in_memory(
    verify: Verify, first: Running, damage: Callable[[Chain], None], what: str
) -> None:
    chain = branch(first, "b1", "red")
    until(lambda: chain.unproved == 0, "the root is proved")
    with damaged(first, chain, damage):
        code, answer = verify()
    assert code == 1
    assert {(d["node"], d["shard"]) for d in answer["differences"]} == {("b1", chain.id.shard)}
    assert what in [d["what"] for d in answer["differences"]]
    assert verify()[0] == 0


def test_it_is_right_while_the_node_is_written_to(verify: Verify, first: Running) -> None:
    """Neither own writes nor those of a peer may be taken for damage."""
    stop = False

    async def write(node: Node) -> None:
        i = 0
        while not stop:
            i += 1
            ip = f"10.0.100.{2 + i % 200}"
            now_ns = time.time_ns()
            await node.submit(
                lambda ip=ip, i=i, now_ns=now_ns: (  # type: ignore[misc]
                    node.writer.add_endpoint(EndpointSpec("red", ip), now_ns=now_ns)
                    if i % 400 < 200
                    else node.writer.remove_endpoint("red", ip, now_ns=now_ns)
                )
            )

    writer = threading.Thread(
        target=lambda: trio.from_thread.run(write, first.node, trio_token=first.token)
    )
    writer.start()
    try:
        for _ in range(10):
            assert verify()[0] == 0
    finally:
        stop = True
        writer.join(30)


def test_a_large_chain_is_verified_in_slices_and_holds_nobody_up(tmp_path: Path) -> None:
    """The most that the loop's thread worked in one go, by its CPU time: on a loaded machine the
    wall's clock tells how long others worked."""
    with running(founded(tmp_path)) as node:
        trio.from_thread.run(_fill, node.node, 100_000, trio_token=node.token)
        steps_s = trio.from_thread.run(_longest_steps_s, node.node, trio_token=node.token)
    assert sorted(steps_s)[len(steps_s) // 2] < LONGEST_STEP_S, steps_s


async def _fill(node: Node, count: int) -> None:
    vpc = "ab" * 16
    for start in range(0, count, 1000):
        ops = []
        for i in range(start, start + 1000):
            key = keys.pack(keys.EndpointKey(bytes((10, i >> 16 & 255, i >> 8 & 255, i & 255))))
            record = model.encode(model.Claim(0, 1 << 16, "02:00:00:00:00:01", f"n{i}"))
            ops.append(Put(vpc, key, record))
        await node.submit(lambda ops=ops: ops)  # type: ignore[misc]


async def _longest_steps_s(node: Node) -> list[float]:
    """The longest step of the loop during each of five verifications, in CPU time."""
    node._house_ops()  # looks at all that was written, once
    longest = []
    for _ in range(5):
        marks: list[float] = []

        async def look(marks: list[float] = marks) -> None:
            while True:
                marks.append(time.thread_time())
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            verifier, start, records = Verifier(node), None, 0
            while True:
                step = await verifier.step(start, 0.05)
                assert not step.differences, step.differences
                records += step.records
                start = step.next
                if start is None:
                    break
            nursery.cancel_scope.cancel()
        assert records > 100_000
        longest.append(max(b - a for a, b in pairwise(marks)))
    return longest
