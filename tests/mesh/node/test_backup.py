"""A node in a file, and made again from it."""

from __future__ import annotations

import sqlite3
from functools import partial
from pathlib import Path

import pytest

from mesh.core.errors import BadInput, Refused
from mesh.node.backup import restore, save
from mesh.node.config_fields import CONFIG_NAME
from mesh.node.node import Node
from mesh.node.setup import found, join
from tests.mesh.node.test_node import equal, new_node, opened, place, running, until, write_vpc

pytestmark = pytest.mark.trio


async def save_now(node: Node, file: Path) -> int:
    await node.durable()
    return save(node.store, node.config, file)


async def test_what_was_written_after_the_snapshot_comes_back_from_peers(tmp_path: Path) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    file = tmp_path / "b1.weft"
    async with running(first.config) as a:
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
        async with running(second.config) as b:
            await write_vpc(b)
            size_bytes = await save_now(b, file)
            assert (size_bytes, file.stat().st_mode & 0o777) == (file.stat().st_size, 0o600)
            for number in range(20):
                add = partial(b.writer.add_vpc, f"late{number}", 100 + number, ["10.0.0.0/16"])
                await b.submit(partial(add, now_ns=1))
            await until(lambda: equal(a, b))
            before = place(b, b.id)
        made = restore(file, tmp_path / "again")
        assert (made.node_name, made.site) == ("b1", "b")
        assert made.config == tmp_path / "again" / CONFIG_NAME
        async with running(made.config) as again:
            assert (again.id, len(again.view.vpcs)) == (b.id, 1), "as it was saved"
            await until(lambda: again.replica.writable and len(again.view.vpcs) == 21)
            await again.submit(lambda: again.writer.add_vpc("after", 99, ["10.0.0.0/16"], now_ns=2))
            await until(lambda: equal(a, again))
            assert place(again, again.id)[1] > before[1], "no seq is used twice"
            assert not again.replica.cloned


async def test_what_only_an_absent_peer_has_comes_back_with_it(tmp_path: Path) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        second, third = [
            await join(new_node(tmp_path, name, name[0]), await opened(a)) for name in ("b1", "c1")
        ]
        async with running(second.config) as b, running(third.config) as c:
            await until(lambda: equal(a, b, c) and b.replica.writable)
            await write_vpc(b)
            await until(lambda: equal(a, b, c))
            await save_now(b, tmp_path / "b1.weft")
    async with running(second.config) as b, running(third.config) as c:
        for number in range(5):
            await until(lambda: b.replica.writable)
            add = partial(b.writer.add_vpc, f"late{number}", 100 + number, ["10.0.0.0/16"])
            await b.submit(partial(add, now_ns=1))
        await until(lambda: equal(b, c) and len(c.view.vpcs) == 6)
        await c.durable()
    made = restore(tmp_path / "b1.weft", tmp_path / "again")
    async with running(first.config) as a, running(made.config) as again:
        await until(lambda: equal(a, again) and again.replica.writable)
        await again.submit(lambda: again.writer.add_vpc("after", 99, ["10.0.0.0/16"], now_ns=2))
        await until(lambda: equal(a, again) and len(a.view.vpcs) == 2)
        async with running(third.config) as c:
            # Another process of it may be at work behind a cut, for all it can know.
            await until(lambda: equal(a, again, c) and len(a.view.vpcs) == 7)
            assert again.replica.cloned and not c.transport.twins()
    async with running(first.config) as a, running(made.config) as again:
        await until(lambda: again.replica.writable)
        await again.submit(lambda: again.writer.add_vpc("last", 98, ["10.0.0.0/16"], now_ns=2))
        await until(lambda: equal(a, again) and len(a.view.vpcs) == 8)


async def test_whom_a_restored_admin_has_forgotten_shows_that_it_was_admitted(
    tmp_path: Path,
) -> None:
    first = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(first.config) as a:
        await save_now(a, tmp_path / "a1.weft")
        second = await join(new_node(tmp_path, "b1", "b"), await opened(a))
    made = restore(tmp_path / "a1.weft", tmp_path / "again")
    async with running(made.config) as a, running(second.config) as b:
        assert set(a.replica.roster.members()) == {a.id}
        await until(lambda: equal(a, b) and a.replica.peers() == [b.id])
        assert a.replica.roster.active(b.id) is not None


async def test_a_snapshot_does_not_stop_the_node_and_replaces_no_file(tmp_path: Path) -> None:
    made = found(new_node(tmp_path, "a1", "a"), "m")
    async with running(made.config) as a:
        await write_vpc(a)
        await opened(a)
        await save_now(a, tmp_path / "one")
        with pytest.raises(Refused, match="already"):
            await save_now(a, tmp_path / "one")
        with pytest.raises(BadInput, match="cannot be made"):
            await save_now(a, tmp_path / "none" / "two")
        await a.submit(lambda: a.writer.add_vpc("w", 8, ["10.0.0.0/16"], now_ns=1))
    with sqlite3.connect(tmp_path / "one") as copy:
        assert copy.execute("SELECT count(*) FROM invitation").fetchone() == (0,)
    with pytest.raises(Refused, match="already"):
        restore(tmp_path / "one", tmp_path / "a1")
    restored = restore(tmp_path / "one", tmp_path / "a2")
    assert {p.name for p in (tmp_path / "a2").iterdir()} == {
        "node.key", "store.db", "store.db.contacts", "weft.toml",
    }  # fmt: skip
    assert all(p.stat().st_mode & 0o077 == 0 for p in (tmp_path / "a2").glob("[ns]*"))
    async with running(restored.config) as again:
        assert {vpc.name for vpc in again.view.vpcs.values()} == {"v"}


@pytest.mark.parametrize("content", [b"", b"garbage" * 1000, None])
async def test_what_is_no_snapshot_makes_nothing(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "file"
    if content is None:
        made = found(new_node(tmp_path, "a1", "a"), "m")
        file.write_bytes(made.config.with_name("store.db").read_bytes())
    else:
        file.write_bytes(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput, match="holds no node"):
        restore(file, tmp_path / "again")
    with pytest.raises(BadInput, match="cannot be read"):
        restore(tmp_path / "none", tmp_path / "again")
    assert sorted(tmp_path.iterdir()) == before
