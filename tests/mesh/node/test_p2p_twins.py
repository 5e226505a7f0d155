"""Two processes of one node: a copied directory or machine that was started as well."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from mesh.core.errors import NotReady
from mesh.core.ops import Op
from mesh.node.config import read_config
from mesh.node.node import Node
from mesh.node.p2p.events import PeerDown
from mesh.node.p2p.session import Identity
from mesh.node.p2p.twins import Instance
from mesh.node.service.membership import MembershipService
from mesh.node.setup import found, join
from tests.mesh.node.p2p_peers import (
    Members,
    Peer,
    eventually,
    id_of,
    link_up,
    seed_of,
)
from tests.mesh.node.p2p_peers import running as peers_running
from tests.mesh.node.test_node import equal, new_node, opened, running, until, write_vpc
from tests.own_time import OWN_TIME
from tests.ports import free_port

pytestmark = OWN_TIME


@pytest.mark.parametrize("decides", [True, False])
async def test_a_copy_of_a_node_is_refused_while_the_first_one_answers(decides: bool) -> None:
    members = Members([1, 2])
    of_a, of_b = (1, 2) if decides else (2, 1)
    a, b, copy = Peer(of_a, members), Peer(of_b, members), Peer(of_b, members)
    async with peers_running(a, b, copy):
        await link_up(b, a)
        copy.target(a)
        await eventually(lambda: bool(copy.cloned_by))
        assert set(copy.cloned_by) == {a.id} and not b.cloned_by and not a.cloned_by
        assert a.ups(b) == 1 and not a.said(PeerDown)
        twins = a.transport.twins()[b.id]
        assert twins.linked == a.transport.peers()[0].addr != twins.refused
        assert not b.transport.twins()


async def test_a_connection_of_the_same_process_is_no_copy() -> None:
    members = Members([1, 2])
    a, b = Peer(1, members), Peer(2, members)
    async with peers_running(a, b):
        a.target(b)
        b.target(a)
        await a.until_linked(b)
        await b.until_linked(a)
        await eventually(lambda: a.idle() and b.idle())
        assert not a.transport.twins() and not b.transport.twins()
        assert not a.cloned_by and not b.cloned_by


async def test_only_another_process_of_a_node_proves_that_there_is_one() -> None:
    met: list[bytes] = []
    own, other = (Identity(seed_of(n)) for n in (1, 2))
    this = Instance(lambda: own, met.append)
    before, copy = (Instance(lambda: own, met.append) for _ in range(2))
    stranger = Instance(lambda: other, met.append)
    assert this.vouch(this.id) == this.vouch(b"short") == this.vouch(None) == b""
    for proof in (b"", None, 7, b"x" * 64, copy.vouch(before.id), stranger.vouch(this.id)):
        this.shown(id_of(2), proof)
    assert not met
    this.shown(id_of(2), copy.vouch(this.id))
    assert met == [id_of(2)]


def copied(config: Path, to: Path) -> Path:
    """The directory of a node that does not run, at another address."""
    home = config.parent
    shutil.copytree(home, to)
    addr, own = read_config(config).listen[0], f"/ip4/127.0.0.1/tcp/{free_port()}"
    text = (to / config.name).read_text()
    (to / config.name).write_text(text.replace(addr, own).replace(str(home), str(to)))
    return to / config.name


def add_vpc(node: Node, name: str, vni: int) -> Callable[[], Sequence[Op]]:
    return partial(node.writer.add_vpc, name, vni, ["10.0.0.0/16"], now_ns=1)


async def test_of_two_live_clones_one_writes_on_and_everybody_is_told(tmp_path: Path) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await write_vpc(a)
            await until(lambda: equal(a, b) and b.replica.writable)
            await b.durable()
        copy = copied(second.config, tmp_path / "copy")
        async with running(second.config) as b:
            await until(lambda: equal(a, b) and b.replica.writable)
            async with running(copy) as clone:
                await until(lambda: clone.replica.cloned)
                assert clone.alarms["node.cloned"] == "node=b1 proved_by=a1"
                with pytest.raises(NotReady, match="another process writes as this node"):
                    await clone.submit(add_vpc(clone, "of-clone", 9))
                await b.submit(add_vpc(b, "of-b", 8))
                await until(lambda: equal(a, b) and len(a.view.vpcs) == 2)
                (named,) = a.transport.twins().items()
                assert named[0] == b.id and named[1].linked != named[1].refused
                said = [p["what"] for p in (await MembershipService(a).status())["problems"]]
                assert any(f"node b1: one at {named[1].linked}" in what for what in said), said
                assert not b.replica.cloned and not a.replica.cloned
        async with running(copy) as clone:  # the other one was stopped: this one is the node now
            await until(lambda: equal(a, clone) and clone.replica.writable)
            await clone.submit(add_vpc(clone, "after", 9))
            await until(lambda: equal(a, clone) and len(a.view.vpcs) == 3)
