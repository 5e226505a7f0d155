"""Whole nodes in one process: real files, real links on loopback, the data plane in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from crdt.header import ChainId, Epoch
from mesh.core.errors import NotReady, Refused
from mesh.core.importing import EndpointSpec
from mesh.core.ops import NodeId
from mesh.node.boot import LACKS, boot
from mesh.node.config import read_config
from mesh.node.node import MOVES_HELD, Node
from mesh.node.setup import NewNode, found, join
from tests.ports import free_port

if TYPE_CHECKING:
    from trio_typing import TaskStatus

pytestmark = pytest.mark.trio

DEADLINE_S = 60.0
POD = EndpointSpec("v", "10.0.1.5")


async def no_api(
    _node: object, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    task_status.started()
    await trio.sleep_forever()


def new_node(home: Path, name: str, site: str) -> NewNode:
    return NewNode(home / name, site, name, listen=f"/ip4/127.0.0.1/tcp/{free_port()}")


@asynccontextmanager
async def running(config: Path) -> AsyncIterator[Node]:
    node = Node(read_config(config))
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run, no_api)
        yield node
        nursery.cancel_scope.cancel()


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE_S):
        while not holds():
            await trio.sleep(0.01)


def equal(*nodes: Node) -> bool:
    shards = [tuple((s, n.replica.lattice.digest(s)) for s in n.replica.lattice.shards())
              for n in nodes]  # fmt: skip
    return len(set(shards)) == 1 and len({n.view.fingerprint() for n in nodes}) == 1


async def write_vpc(node: Node, sites: Sequence[str] = ("a",)) -> None:
    await until(lambda: node.replica.writable and node.id in node.view.gateways)
    await node.submit(lambda: node.writer.add_vpc("v", 7, ["10.0.0.0/16"], now_ns=1))
    await node.submit(lambda: node.writer.add_subnet("s", "v", "10.0.1.0/24", sites, now_ns=1))


async def test_found_invite_join_write_restart(tmp_path: Path) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        await write_vpc(a)
        token = await a.joining.invite("b", 60)
        await until(lambda: bool(a.transport._strangers.protocols()))
        with pytest.raises(Refused, match="site b"):
            await join(new_node(tmp_path, "c1", "c"), token)
        assert not (tmp_path / "c1").exists()
        second = await join(new_node(tmp_path, "b1", "b"), token)
        with pytest.raises(Refused, match="used before"):
            await join(new_node(tmp_path, "b2", "b"), token)
        async with running(second.config) as b:
            await until(lambda: "v" in {vpc.name for vpc in b.view.vpcs.values()})
            await until(lambda: b.replica.writable)
            await b.submit(lambda: b.writer.add_vpc("w", 8, ["10.0.0.0/16"], now_ns=1))
            await until(lambda: equal(a, b))
            before = place(a, b.id)
        async with running(second.config) as b:
            # What was stored is there before any peer is met, under the epoch it was written in.
            assert place(b, b.id) == before
            assert {vpc.name for vpc in b.view.vpcs.values()} == {"v", "w"}
            await until(lambda: b.replica.writable)
            await b.submit(lambda: b.writer.set_vpc("w", tenant="t", now_ns=2))
            await until(lambda: equal(a, b))
            after = place(a, b.id)
            assert (after[0].counter, after[1] > before[1]) == (before[0].counter + 1, True)


def place(node: Node, writer: NodeId) -> tuple[Epoch, int]:
    """Epoch and head at which `node` holds what `writer` wrote in the mesh shard."""
    chain = node.replica.lattice.latest(ChainId(writer, "mesh"))
    assert chain is not None
    return chain.epoch, chain.head


async def test_a_write_is_on_disk_when_it_is_acknowledged(tmp_path: Path) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(made.config) as node:
        await write_vpc(node)
        rows = {(b.chain.shard, key) for b in node.store.load().branches for key in b.records}
        held = {("mesh", key) for key in node.replica.lattice.keys(ChainId(node.id, "mesh"))}
        assert held == rows


async def test_one_process_a_directory(tmp_path: Path) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(made.config):
        with pytest.raises(NotReady, match="in use"):
            Node(read_config(made.config))


async def test_a_damaged_branch_is_left_out_and_fetched_from_peers(tmp_path: Path) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await write_vpc(a)
            await until(lambda: equal(a, b) and len(b.view.vpcs) == 1)
            await b.durable()
        store = Node(read_config(second.config)).store
        store._db.execute("UPDATE record SET entry = CAST(entry || 'x' AS BLOB)")
        store.close()
        async with running(second.config) as b:
            assert b.damaged_branches
            await until(lambda: equal(a, b) and len(b.view.vpcs) == 1 and b.replica.writable)
            await b.durable()
            await until(lambda: not b.store.get_meta(LACKS))
        async with running(second.config) as b:
            assert not b.damaged_branches, "their rows are gone"
            await until(lambda: equal(a, b))


async def test_who_lost_something_of_its_own_hears_first_however_often_it_starts(
    tmp_path: Path,
) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(made.config) as a:
        await write_vpc(a)
        await a.durable()
    store = Node(read_config(made.config)).store
    store._db.execute("UPDATE record SET entry = CAST(entry || 'x' AS BLOB)")
    store.close()
    for damaged in (1, 0):
        booted = boot(read_config(made.config))
        booted.store.close()
        assert (booted.damaged, booted.hears_first, booted.lacks) == (damaged, True, True)


async def opened(node: Node) -> str:
    token = await node.joining.invite("", 60)
    await until(lambda: bool(node.transport._strangers.protocols()))
    return token


async def test_an_endpoint_that_moves_too_often_is_alarmed(tmp_path: Path) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(made.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await write_vpc(a, ["a", "b"])
            now_ns = time.time_ns()
            await a.submit(lambda: a.writer.add_endpoint(POD, now_ns=now_ns))
            with pytest.raises(Refused, match="moves"):
                for i in range(10):
                    node = (b, a)[i % 2]
                    await until(lambda: equal(a, b) and b.replica.writable)
                    move = partial(node.writer.move_endpoint, POD, now_ns=now_ns)
                    await node.submit(move)
                    await until(lambda: equal(a, b))
                    for each in (a, b):  # moves are counted once a round
                        await each.submit(each._house_ops)
            await until(lambda: "v/10.0.1.5" in a.alarms.get(MOVES_HELD, ""))


async def test_a_vpc_of_others_is_kept_while_it_is_of_concern_and_dropped_after(
    tmp_path: Path,
) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await write_vpc(a)
            (vpc,) = a.view.vpcs
            await a.submit(lambda: a.writer.add_endpoint(POD, now_ns=1))
            await until(lambda: vpc in b.view.vpcs and b.replica.writable)
            assert not b.replica.keeps(vpc)
            async with b.holding(vpc):
                assert b.view.winner(vpc, "10.0.1.5") is not None, "told before it is asked"
            await until(lambda: not list(b.replica.lattice.chains(vpc)))
            await b.durable()
            assert {s.chain.shard for s in b.store.load().branches} == {"mesh"}
            async with b.holding(vpc):
                await b.submit(lambda: b.writer.move_endpoint(POD, now_ns=2))
            await until(lambda: equal(a, b))
            assert b.replica.keeps(vpc), "its own chain is a reason to keep it"
            winner = a.view.winner(vpc, "10.0.1.5")
            assert winner is not None
            assert winner.node == b.id
            for node, other in ((a, b), (b, a)):
                overlay = node.transport._overlay
                await until(lambda o=overlay, n=other: o._shards.get(vpc, [()])[0] == {n.id})  # type: ignore[misc]
        async with running(second.config) as b:
            await until(lambda: equal(a, b))


def is_dialled(node: Node, other: NodeId, addr: str) -> bool:
    """Whether the other one is dialled at that address, when it is dialled."""
    return addr in map(str, node.transport._dialler.targets.get(other, ()))


async def test_who_listens_elsewhere_is_dialled_there(tmp_path: Path) -> None:
    """By its new registration: a link that it made itself says nothing of where it listens."""
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        (former,) = read_config(second.config).listen
        now = f"/ip4/127.0.0.1/tcp/{free_port()}"
        for listen in (former, now):
            second.config.write_text(second.config.read_text().replace(former, listen))
            async with running(second.config) as b:
                await until(partial(is_dialled, a, b.id, listen))
        assert not is_dialled(a, b.id, former)


async def test_all_vpcs_are_kept_where_the_file_says_so(tmp_path: Path) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await write_vpc(a)
            (vpc,) = a.view.vpcs
            await a.submit(lambda: a.writer.add_endpoint(POD, now_ns=1))
            await until(lambda: vpc in b.view.vpcs)
            text = second.config.read_text()
            second.config.write_text(text.replace('= "hosted"', '= "all"'))
            assert (await b.reloading.reload()).applied
            await until(lambda: equal(a, b))
            assert b.view.winner(vpc, "10.0.1.5") is not None
