"""Whole nodes on disks that fill up and stores that are damaged."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from mesh.core.errors import NotReady
from mesh.core.importing import EndpointSpec
from mesh.node.carrying import STORE_FAILED
from mesh.node.config import read_config
from mesh.node.node import STORE_REBUILT, Node
from mesh.node.salvage import rebuild
from mesh.node.setup import found, join
from mesh.node.store import Store, StoreDamaged, StoreError
from tests.mesh.node.test_node import equal, new_node, opened, place, running, until, write_vpc

pytestmark = pytest.mark.trio

DISK_BYTES = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of a megabyte."""
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("mounting a tmpfs needs root")
        pytest.skip("mounting a tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "none", disk], check=True
    )
    try:
        yield disk
    finally:  # lazily: it goes even if a test that failed still has files open there
        subprocess.run(["umount", "--lazy", disk], check=True)


def fill(disk: Path) -> Path:
    """Take all the room there is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while True:
            try:
                if not file.write(b"f" * 512):
                    break
            except OSError:
                break
    return filler


def forwarded(node: Node) -> set[str]:
    """Addresses of endpoints in the node's data plane."""
    return {row["ip"] for row in node.forwarder.backend.show()["endpoints"]}


async def test_a_full_disk_stops_writes_and_nothing_else(tmp_path: Path, small_disk: Path) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(small_disk, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await write_vpc(a, ["a", "b"])
            await until(lambda: equal(a, b) and b.replica.writable)
            await b.submit(lambda: b.writer.add_endpoint(EndpointSpec("v", "10.0.1.5"), now_ns=1))
            filler = fill(small_disk)
            held = "k" * 3000
            with pytest.raises(StoreError, match="counts once it can be stored"):
                for number in range(200):  # until the journal's last free page is used
                    add = partial(b.writer.add_vpc, f"b{number}", 1000 + number, ["10.0.0.0/16"])
                    await b.submit(partial(add, tenant="t", now_ns=1))
            assert STORE_FAILED in b.alarms
            with pytest.raises(StoreError, match="nothing was written"):
                await b.submit(lambda: b.writer.add_vpc("c", 9, ["10.0.0.0/16"], now_ns=1))

            def names(node: Node) -> set[str]:
                return {vpc.name for vpc in node.view.vpcs.values()}

            await until(lambda: len(names(b) - names(a)) <= 1)  # what was sent is under way
            unsent = names(b) - names(a)
            assert len(unsent) == 1, "only what is stored was sent"
            # It goes on following the others, and its data plane with it.
            await a.submit(lambda: a.writer.add_vpc("new", 8, ["10.0.0.0/16"], now_ns=1))
            await until(lambda: "new" in {vpc.name for vpc in b.view.vpcs.values()})
            await a.submit(lambda: a.writer.add_endpoint(EndpointSpec("v", "10.0.1.6"), now_ns=1))
            await until(lambda: {"10.0.1.5", "10.0.1.6"} <= forwarded(b))
            assert STORE_FAILED in b.alarms
            filler.unlink()
            await until(lambda: STORE_FAILED not in b.alarms)
            await b.submit(lambda: b.writer.add_vpc("c", 9, ["10.0.0.0/16"], now_ns=1))
            await until(lambda: equal(a, b))
            assert unsent <= {vpc.name for vpc in a.view.vpcs.values()}
            stored = {(s.chain, s.epoch): s.records for s in b.store.load().branches}
            lattice = b.replica.lattice
            assert stored == {
                (id, chain.epoch): chain.live
                for id in lattice.chains()
                for chain in lattice.branches(id)
            }
        del held
        async with running(second.config) as b:
            await until(lambda: equal(a, b))
    async with running(second.config) as b:  # nobody else is there any more
        await until(lambda: {"10.0.1.5", "10.0.1.6"} <= forwarded(b))
        assert not b.transport.peers()


def damage(path: Path, start_page: int) -> None:
    with path.open("r+b") as file:
        for page in range(start_page, path.stat().st_size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)


@pytest.mark.parametrize("start_page", [0, 3, 7])
async def test_a_damaged_store_is_made_anew_with_what_peers_have(
    tmp_path: Path, start_page: int
) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await write_vpc(a)
            await until(lambda: equal(a, b) and b.replica.writable)
            for number in range(40):
                add = partial(b.writer.add_vpc, f"b{number}", 1000 + number, ["10.0.0.0/16"])
                await b.submit(partial(add, now_ns=1))
            await until(lambda: equal(a, b))
            before = place(a, b.id)
        damage(second.config.with_name("store.db"), start_page)
        async with running(second.config) as b:
            assert STORE_REBUILT in b.alarms
            await until(lambda: equal(a, b) and b.replica.writable)
            assert len(b.view.vpcs) == 41
            await b.submit(lambda: b.writer.add_vpc("after", 9, ["10.0.0.0/16"], now_ns=1))
            await until(lambda: equal(a, b) and STORE_REBUILT not in b.alarms)
            epoch, head = place(a, b.id)
            assert epoch.counter > before[0].counter and head > before[1], (
                "a new epoch, no seq twice"
            )
            assert not a.replica.cloned
            assert not b.replica.cloned
        assert list(second.config.parent.glob("store.db.damaged-*"))
        async with running(second.config) as b:
            assert STORE_REBUILT not in b.alarms
            await until(lambda: equal(a, b))


async def test_a_node_that_lost_its_chains_writes_nothing_before_a_peer_has_told(
    tmp_path: Path,
) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await until(lambda: b.replica.writable)
            await b.submit(lambda: b.writer.add_vpc("of-b", 9, ["10.0.0.0/16"], now_ns=1))
            await until(lambda: equal(a, b))
    second.config.with_name("store.db").write_bytes(b"garbage" * 5000)
    async with running(second.config) as b:
        await trio.sleep(0)
        b.replica.timer(1 << 61)  # however long it is alone
        with pytest.raises(NotReady, match="once a peer has told"):
            await b.submit(lambda: b.writer.add_vpc("anew", 9, ["10.0.0.0/16"], now_ns=1))
        async with running(first.config) as a:
            await until(lambda: b.replica.writable and equal(a, b))
            assert {vpc.name for vpc in b.view.vpcs.values()} == {"of-b"}


async def test_without_store_and_copy_there_is_nothing_to_start_from(tmp_path: Path) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    store = made.config.with_name("store.db")
    store.write_bytes(b"garbage" * 5000)
    made.config.with_name("store.db.contacts").unlink()
    with pytest.raises(NotReady, match="join the mesh again"):
        Node(read_config(made.config))


async def test_damaged_files_are_set_aside_under_names_of_their_own(tmp_path: Path) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    path = made.config.with_name("store.db")
    for _ in range(3):
        path.write_bytes(b"garbage" * 5000)
        with pytest.raises(StoreDamaged) as caught:
            Store(path)
        rebuild(path, caught.value).close()
    assert len(list(tmp_path.glob("a1/store.db.damaged-*"))) == 3
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.glob("a1/store*"))
