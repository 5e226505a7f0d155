"""The store against a model: whatever was applied is what loads, whole batches or nothing."""

from __future__ import annotations

import copy
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt import entry
from crdt.header import ChainId, Epoch
from mesh.core.bounds import Quotas
from mesh.core.effects import Persist, PersistStatements
from mesh.node.keys import KeyFileError, make_private_directory
from mesh.node.store import Attachment, Store, StoreError
from tests.mesh.node.store_model import Author, Model

CHAIN = ChainId(b"n" * 16, "mesh")
FIRST, SECOND = Epoch(1, b"1" * 8), Epoch(2, b"2" * 8)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "node"
    make_private_directory(home)
    return home


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = Store(home / "store.db")
    yield store
    store.close()


def held(store: Store) -> Model:
    state = store.load()
    model = Model(set(state.statements))
    for branch in state.branches:
        entries = list(branch.records.values())
        assert entries == sorted(entries), "records load in seq order"
        model.branches[branch.chain, branch.epoch] = (branch.header, branch.records)
    return model


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), batches=st.integers(0, 12))
def test_what_was_applied_is_what_loads(
    tmp_path_factory: pytest.TempPathFactory, seed: int, batches: int
) -> None:
    home = tmp_path_factory.mktemp("law") / "node"
    make_private_directory(home)
    author, model = Author(seed), Model()
    store = Store(home / "store.db")
    for _ in range(batches):
        batch = author.batch()
        store.apply(batch)
        for effect in batch:
            model.apply(effect)
    assert held(store) == model
    store.close()
    store = Store(home / "store.db")
    assert held(store) == model
    store.close()


def test_a_batch_that_fails_changes_nothing(store: Store) -> None:
    store.apply([Persist(CHAIN, FIRST, b"h1", {b"a": entry.pack(1, b"x")}, ())])
    before = held(store)
    with pytest.raises(StoreError, match="no branch"):
        store.apply(
            [
                PersistStatements((b"s",)),
                Persist(CHAIN, FIRST, b"h2", {b"b": entry.pack(2, b"y")}, (b"a",)),
                Persist(CHAIN, SECOND, b"h3", {}, (), relabel_from=Epoch(9, b"9" * 8)),
            ]
        )
    assert held(store) == before
    store.apply([Persist(CHAIN, FIRST, b"h2", {}, ())])
    assert held(store).branches[CHAIN, FIRST][0] == b"h2", "the store goes on after a refusal"


def test_a_relabel_writes_no_record(store: Store) -> None:
    rows = {b"%d" % number: entry.pack(number, b"r") for number in range(1, 1001)}
    store.apply([Persist(CHAIN, FIRST, b"h1", rows, ())])
    changes = store._db.total_changes
    store.apply([Persist(CHAIN, SECOND, b"h2", {}, (), relabel_from=FIRST)])
    assert store._db.total_changes - changes == 1
    (branch,) = store.load().branches
    assert (branch.epoch, branch.header, branch.records) == (SECOND, b"h2", rows)


def test_a_write_takes_two_pages(store: Store) -> None:
    """Its chain's header, and the page where its record is: the index of epochs stays as it is."""
    journal = store.path.with_name(store.path.name + "-wal")
    page_bytes = 24 + 4096  # with the frame's header
    for seq in range(1, 4):
        before_bytes = journal.stat().st_size
        rows = {b"key%d" % seq: entry.pack(seq, b"r" * 40)}
        store.apply([Persist(CHAIN, FIRST, b"%330d" % seq, rows, ())])
    assert journal.stat().st_size - before_bytes == 2 * page_bytes


def test_statements_are_a_set(store: Store) -> None:
    store.apply([PersistStatements((b"a", b"b"))])
    store.apply([PersistStatements((b"b", b"c", b"a"))])
    assert sorted(store.load().statements) == [b"a", b"b", b"c"]


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.mesh.node.store_model import Author
from mesh.node.store import Store
author, store = Author(int(sys.argv[3])), Store(Path(sys.argv[2]))
while True:
    store.apply(author.batch())
    sys.stdout.write(".")
    sys.stdout.flush()
"""


def test_kill_at_any_point_leaves_whole_batches(home: Path) -> None:
    for seed in range(30):
        kill_a_writer(home / f"store{seed}.db", seed)


def kill_a_writer(path: Path, seed: int) -> None:
    """The child says after each batch that it is durable; then the parent kills it, at random.

    Raises AssertionError unless what is left are whole batches, all that it has said among them.
    """
    chance = random.Random(seed)
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(Path(__file__).parents[3]), path, str(seed)],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    acknowledged = len(child.stdout.read(chance.randint(1, 40)))
    for _ in range(chance.randint(0, 3000)):  # somewhere in a later batch, well below 1 ms
        pass
    child.send_signal(signal.SIGKILL)
    acknowledged += len(child.stdout.read())
    child.stdout.close()
    assert child.wait(60) == -signal.SIGKILL
    store = Store(path)
    found = held(store)
    store.close()
    # The batch after the last acknowledged one may have become durable before the kill.
    assert found in after_batches(seed, acknowledged), f"seed {seed}, {acknowledged} batches"


def after_batches(seed: int, count: int) -> list[Model]:
    """What a store holds after `count` batches of the author of `seed`, and after one more."""
    author, model = Author(seed), Model()
    for number in range(count + 1):
        if number == count:
            before = copy.deepcopy(model)
        for effect in author.batch():
            model.apply(effect)
    return [before, model]


def test_modes(home: Path) -> None:
    before = os.umask(0)
    try:
        store = Store(home / "store.db")
        store.apply([PersistStatements((b"s",))])
        modes = {file.name: file.stat().st_mode & 0o777 for file in home.iterdir()}
        store.close()
    finally:
        os.umask(before)
    assert modes["store.db"] == 0o600
    assert set(modes.values()) == {0o600}


def test_a_directory_open_to_others_is_refused(home: Path) -> None:
    home.chmod(0o755)
    with pytest.raises(KeyFileError, match="chmod 700"):
        Store(home / "store.db")


def test_only_one_process_has_a_store(home: Path, store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from mesh.node.store import Store, StoreError\n"
        "try: Store(Path(sys.argv[1]))\n"
        "except StoreError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, store.path], capture_output=True, text=True, timeout=60
    )
    assert "in use by another process" in done.stdout
    store.apply([PersistStatements((b"s",))])


def test_what_is_no_store_is_refused(home: Path) -> None:
    path = home / "store.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match="damaged"):
        Store(path)
    path.unlink()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(StoreError, match="another program's"):
        Store(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(path)


def test_a_later_version_is_refused(home: Path) -> None:
    Store(home / "store.db").close()
    newer = sqlite3.connect(home / "store.db")
    newer.execute("PRAGMA user_version = 2")
    newer.close()
    with pytest.raises(StoreError, match="version 2"):
        Store(home / "store.db")


def test_a_damaged_page_is_an_error_that_says_what_to_do(home: Path) -> None:
    path = home / "store.db"
    store = Store(path)
    rows = {b"%06d" % number: entry.pack(number, b"r" * 100) for number in range(1, 2001)}
    store.apply([Persist(CHAIN, FIRST, b"h1", rows, ())])
    store.close()
    with path.open("r+b") as file:
        for page in range(12, 40):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    store = Store(path)
    with pytest.raises(StoreError, match=r"damaged.*restart the node"):
        list(store.load().branches)
    store.close()


def test_meta(store: Store) -> None:
    assert store.get_meta("hlc") is None
    store.set_meta("hlc", b"1")
    store.set_meta("hlc", b"2")
    assert store.get_meta("hlc") == b"2"


def test_the_address_book_keeps_the_latest(store: Store) -> None:
    for number in range(20):
        store.add_address(b"n" * 16, f"/ip4/10.0.0.{number}/tcp/7400", number)
    store.add_address(b"n" * 16, "/ip4/10.0.0.5/tcp/7400", 99)
    store.add_address(b"m" * 16, "/ip4/10.9.0.1/tcp/7400", 1)
    book = store.addresses()
    assert book[b"m" * 16] == ("/ip4/10.9.0.1/tcp/7400",)
    assert len(book[b"n" * 16]) == 16
    assert book[b"n" * 16][:2] == ("/ip4/10.0.0.5/tcp/7400", "/ip4/10.0.0.19/tcp/7400")
    store.forget_addresses(b"n" * 16)
    assert list(store.addresses()) == [b"m" * 16]


def test_attachments(store: Store) -> None:
    first = Attachment("veth1", "ab" * 16, "10.0.0.5", "02:00:00:00:00:01")
    second = Attachment("veth1", "ab" * 16, "10.0.0.6", "02:00:00:00:00:02")
    store.set_attachment(first)
    store.set_attachment(second)
    assert store.attachments() == (second,)
    store.remove_attachment("veth1")
    store.remove_attachment("veth1")
    assert store.attachments() == ()


def test_a_token_admits_one_node_once(store: Store) -> None:
    store.add_invitation(b"t", b"secret", 1000, "b")
    assert store.open_invitations(999) == 1
    assert store.open_invitations(1000) == 0
    assert not store.use_invitation(b"other", b"a")
    assert store.use_invitation(b"t", b"a")
    assert store.open_invitations(0) == 0
    assert not store.use_invitation(b"t", b"b")
    assert store.use_invitation(b"t", b"a"), "its answer may have been lost"
    invitation = store.invitation(b"t")
    assert invitation is not None
    assert (invitation.used_by, invitation.site, invitation.secret) == (b"a", "b", b"secret")
    assert invitation.quotas is None
    assert "secret=" not in repr(invitation)
    store.add_invitation(b"u", b"secret", 1000, "b", Quotas(5, 7))
    larger = store.invitation(b"u")
    assert larger is not None
    assert larger.quotas == Quotas(5, 7)
    store.drop_invitations(1001)
    assert store.invitation(b"t") is None
