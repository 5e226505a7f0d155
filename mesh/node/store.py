"""What a node keeps on disk: one SQLite file, written in whole transactions.

- A branch is one epoch of one chain, with its signed header and its live records. Rows of records
  name their branch by a small integer, so that giving a branch a new epoch is one row's update.
- `apply` carries out a batch of effects in one transaction that is on disk when it returns (WAL,
  synchronous=FULL): after a crash all of the batch is there or nothing of it.
- One process has the file: a second one is refused, so that two nodes cannot write one chain.
- The file is 0600 in a 0700 directory: it holds the secrets of the join tokens given out.

The store checks shapes, not signatures: who loads it verifies what it holds.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgpack

from crdt.delta import Puts
from crdt.header import ChainId, Epoch
from crdt.packed import unpack_list
from mesh.core.bounds import Quotas
from mesh.core.effects import DropBranches, Forget, Persist, PersistStatements, Rewrite, Stored
from mesh.core.errors import NotReady
from mesh.node.keys import KEY_FILE_MODE, check_private_directory, replace_private

SCHEMA_VERSION: Final = 1
_APPLICATION_ID: Final = 0x57454654  # "WEFT", in the file's header
_PAGE_CACHE_KIB: Final = 8 * 1024  # enough for a tick's pages; the records live in the replica
ADDRESSES_MAX: Final = 16
"""Of a node: what a gateway may register, and a few older ones."""
_CONTACTS_MAX: Final = 1 << 20  # in the copy: those of 65,536 members

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE branch (
    id INTEGER PRIMARY KEY,
    node BLOB NOT NULL,
    shard TEXT NOT NULL,
    counter INTEGER NOT NULL,
    nonce BLOB NOT NULL,
    header BLOB NOT NULL,
    UNIQUE (node, shard, counter, nonce)
);
CREATE TABLE record (
    branch INTEGER NOT NULL REFERENCES branch (id),
    key BLOB NOT NULL,
    entry BLOB NOT NULL,  -- 6 bytes of seq, big-endian, and the record
    PRIMARY KEY (branch, key)
) WITHOUT ROWID;
CREATE TABLE statement (hash BLOB PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE address (
    node BLOB NOT NULL,
    multiaddr TEXT NOT NULL,
    seen_s INTEGER NOT NULL,
    PRIMARY KEY (node, multiaddr)
) WITHOUT ROWID;
CREATE TABLE attachment (
    ifname TEXT PRIMARY KEY, vpc TEXT NOT NULL, ip TEXT NOT NULL, mac TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE invitation (
    token_hash BLOB PRIMARY KEY,
    secret BLOB NOT NULL,
    expires_s INTEGER NOT NULL,
    site TEXT NOT NULL,
    quota_mesh INTEGER,
    quota_vpc INTEGER,
    used_by BLOB
) WITHOUT ROWID;
"""


_PUT_ROW: Final = "INSERT OR REPLACE INTO record (branch, key, entry) VALUES (?, ?, ?)"
_ROWS_AT_ONCE: Final = 64
_PUT_ROWS: Final = (
    "INSERT OR REPLACE INTO record (branch, key, entry) VALUES (?1, ?, ?)"
    + ", (?1, ?, ?)" * (_ROWS_AT_ONCE - 1)
)


class StoreError(NotReady):
    """The store cannot be read or written. A failed `apply` has changed nothing."""


class StoreDamaged(StoreError):
    """What is in the file is no store any more, wholly or in part."""


@dataclass(frozen=True, slots=True)
class StoredBranch:
    """One epoch of one chain; `records` are key -> entry, ascending by seq."""

    chain: ChainId
    epoch: Epoch
    header: bytes
    records: Puts


@dataclass(frozen=True, slots=True)
class StoredState:
    """`branches` are read from disk as they are asked for, ordered by node, shard and epoch."""

    statements: tuple[bytes, ...]
    branches: Iterator[StoredBranch]


@dataclass(frozen=True, slots=True)
class Attachment:
    """An interface of this machine that carries an endpoint."""

    ifname: str
    vpc: str
    ip: str
    mac: str


@dataclass(frozen=True, slots=True)
class Invitation:
    """A join token that was given out; `used_by` is the node it admitted."""

    token_hash: bytes
    secret: bytes = field(repr=False)
    expires_s: int  # since 1970
    site: str  # empty: the joiner names its own
    quota_mesh: int | None  # None, both: the usual ones
    quota_vpc: int | None
    used_by: bytes | None

    @property
    def quotas(self) -> Quotas | None:
        """What the joiner is granted; None: the usual quotas."""
        if self.quota_mesh is None or self.quota_vpc is None:
            return None
        return Quotas(self.quota_mesh, self.quota_vpc)


def contacts_path(path: Path) -> Path:
    return path.with_name(path.name + ".contacts")


def read_contacts(path: Path) -> tuple[list[bytes], list[tuple[bytes, str, int]]]:
    """Statements and (node, multiaddr, seen_s) in the copy beside the store at `path`; nothing
    where it cannot be read."""
    try:
        return parse_contacts(contacts_path(path).read_bytes())
    except (OSError, ValueError):
        return [], []


def parse_contacts(data: bytes) -> tuple[list[bytes], list[tuple[bytes, str, int]]]:
    """As `read_contacts`, of the copy's bytes. Raises ValueError."""
    version, bodies, reached, *_ = unpack_list(data, _CONTACTS_MAX)
    if version != 1 or not isinstance(bodies, list) or not isinstance(reached, list):
        raise ValueError("contacts: not of this version")
    if any(type(body) is not bytes for body in bodies):
        raise ValueError("contacts: statements")
    for contact in reached:
        match contact:
            case [bytes(), str(), int()]:
                pass
            case _:
                raise ValueError("contacts: addresses")
    return bodies, [(node, addr, seen_s) for node, addr, seen_s in reached]


class Store:
    """The open store. Every method may be called from any thread; they take turns."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
            KeyFileError: the directory or the file lets others in.
            StoreError: not a store of this version, damaged, or in use by another process.
        """
        self.path = path
        self._lock = threading.Lock()
        self._create_private()
        try:
            self._db = sqlite3.connect(
                path, timeout=0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise self._error(error) from error
        try:
            self._open()
        except BaseException:
            self._db.close()
            raise

    def _create_private(self) -> None:
        check_private_directory(self.path.parent)
        try:
            descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, KEY_FILE_MODE
            )
        except OSError as error:
            raise StoreError(
                f"{self.path}: the store cannot be opened ({error.strerror}): make it a file that"
                " this user may write"
            ) from None
        try:
            os.fchmod(descriptor, KEY_FILE_MODE)
        finally:
            os.close(descriptor)

    def _open(self) -> None:
        try:
            self._db.execute(f"PRAGMA cache_size = -{_PAGE_CACHE_KIB}")
            # Before the first read: the lock is then held until `close`.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            with self._transaction():
                self._create_or_check_schema()
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _create_or_check_schema(self) -> None:
        (application,) = self._db.execute("PRAGMA application_id").fetchone()
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if (application, version) == (_APPLICATION_ID, SCHEMA_VERSION):
            return
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application == _APPLICATION_ID:
            raise StoreError(
                f"{self.path}: a store of version {version}, and this program writes version"
                f" {SCHEMA_VERSION}: run the program that wrote it"
            )
        if tables:
            raise StoreError(f"{self.path}: another program's database: move it away")
        for statement in _SCHEMA.split(";"):
            self._db.execute(statement)
        self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the file. What was applied is on disk already."""
        with self._lock:
            self._db.close()

    # ---- the replica's state ----

    def apply(self, effects: Sequence[Stored]) -> None:
        """Carry out all effects, in order, in one transaction that is durable on return.

        Raises:
            StoreError: nothing of the batch was written.
        """
        with self._lock, self._errors(), self._transaction():
            for effect in effects:
                if isinstance(effect, PersistStatements):
                    self._add_statements(effect.statements)
                    self._delete_statements(effect.left)
                elif isinstance(effect, Forget):
                    self._forget(effect.node)
                elif isinstance(effect, DropBranches):
                    self._drop_branches(effect.chain, effect.epochs)
                elif isinstance(effect, Rewrite):
                    self._rewrite(effect)
                else:
                    self._apply_branch(effect)
        if any(isinstance(effect, PersistStatements) for effect in effects):
            self.copy_contacts()

    def copy_contacts(self) -> None:
        """Keep a copy of the roster and of addresses beside the file: with nothing else a node
        finds its peers, and is let in by them."""
        bodies = [body for (body,) in self._all("SELECT body FROM statement ORDER BY hash")]
        reached = self._all("SELECT node, multiaddr, seen_s FROM address ORDER BY node, seen_s")
        with suppress(OSError):  # it is made anew with the next change
            replace_private(contacts_path(self.path), msgpack.packb([1, bodies, reached]))

    def _rewrite(self, effect: Rewrite) -> None:
        held = self._db.execute(
            "SELECT counter, nonce FROM branch WHERE node = ? AND shard = ?", effect.chain
        ).fetchall()
        self._drop_branches(effect.chain, [Epoch(*row) for row in held])
        for branch in effect.branches:
            self._apply_branch(branch)

    def _add_statements(self, statements: Sequence[bytes]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO statement (hash, body) VALUES (?, ?)",
            [(hashlib.sha256(body).digest(), body) for body in statements],
        )

    def _delete_statements(self, statements: Sequence[bytes]) -> None:
        self._db.executemany(
            "DELETE FROM statement WHERE hash = ?",
            [(hashlib.sha256(body).digest(),) for body in statements],
        )

    def _forget(self, node: bytes) -> None:
        self._db.execute(
            "DELETE FROM record WHERE branch IN (SELECT id FROM branch WHERE node = ?)", (node,)
        )
        self._db.execute("DELETE FROM branch WHERE node = ?", (node,))
        self._db.execute("DELETE FROM address WHERE node = ?", (node,))

    def _apply_branch(self, effect: Persist) -> None:
        chain = effect.chain
        branch = self._branch(chain, effect.relabel_from or effect.epoch)
        if branch is None:
            if effect.relabel_from is not None:
                raise StoreError(
                    f"{self.path}: no branch {effect.relabel_from} of chain"
                    f" {chain.node.hex()}/{chain.shard} to relabel: the store is behind the node"
                )
            branch = self._db.execute(
                "INSERT INTO branch (node, shard, counter, nonce, header) VALUES (?, ?, ?, ?, ?)",
                (*chain, *effect.epoch, effect.header),
            ).lastrowid
        elif effect.relabel_from is None:
            # Not the epoch, too: its index would be written as well, a page more at each commit.
            self._db.execute("UPDATE branch SET header = ? WHERE id = ?", (effect.header, branch))
        else:
            self._db.execute(
                "UPDATE branch SET counter = ?, nonce = ?, header = ? WHERE id = ?",
                (*effect.epoch, effect.header, branch),
            )
        if effect.replace:
            self._db.execute("DELETE FROM record WHERE branch = ?", (branch,))
        self._db.executemany(
            "DELETE FROM record WHERE branch = ? AND key = ?",
            [(branch, key) for key in effect.deletes],
        )
        self._put_records(branch, effect.puts)
        self._drop_branches(chain, effect.drop)

    def _put_records(self, branch: int | None, puts: Puts) -> None:
        """Many by one statement: half the time, and the interpreter's lock is asked for once for
        all of them. Beside a busy loop each single row would wait for it, 5 ms."""
        rows = iter(puts.items())
        for _ in range(len(puts) // _ROWS_AT_ONCE):
            some = itertools.chain.from_iterable(itertools.islice(rows, _ROWS_AT_ONCE))
            self._db.execute(_PUT_ROWS, (branch, *some))
        self._db.executemany(_PUT_ROW, ((branch, key, entry) for key, entry in rows))

    def _drop_branches(self, chain: ChainId, epochs: Iterable[Epoch]) -> None:
        for epoch in epochs:
            dropped = self._branch(chain, epoch)
            if dropped is not None:
                self._db.execute("DELETE FROM record WHERE branch = ?", (dropped,))
                self._db.execute("DELETE FROM branch WHERE id = ?", (dropped,))

    def _branch(self, chain: ChainId, epoch: Epoch) -> int | None:
        row = self._db.execute(
            "SELECT id FROM branch WHERE node = ? AND shard = ? AND counter = ? AND nonce = ?",
            (*chain, *epoch),
        ).fetchone()
        return None if row is None else int(row[0])

    def load(self) -> StoredState:
        """Everything the replica had persisted. Raises StoreError here or from the iterator."""
        rows = self._all("SELECT body FROM statement ORDER BY hash")
        return StoredState(tuple(body for (body,) in rows), self._branches())

    def _branches(self) -> Iterator[StoredBranch]:
        rows = self._all(
            "SELECT id, node, shard, counter, nonce, header FROM branch"
            " ORDER BY node, shard, counter, nonce"
        )
        for branch, node, shard, counter, nonce, header in rows:
            with self._lock, self._errors():
                records = self._records(branch)
            yield StoredBranch(ChainId(node, shard), Epoch(counter, nonce), header, records)

    def _records(self, branch: int) -> Puts:
        """Key -> entry of a branch, ascending by seq."""
        # Not a list first: a million tuples at once would call the garbage collector.
        return dict(
            self._db.execute(
                "SELECT key, entry FROM record WHERE branch = ? ORDER BY entry", (branch,)
            )
        )

    def insert_rows(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Add whole rows, saved from a store of this version, to one of its tables."""
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            with self._lock, self._errors(), self._transaction():
                self._db.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", rows)  # noqa: S608

    def copy_to(self, path: Path) -> None:
        """Copy everything into the empty file at `path`. Writes wait meanwhile."""
        with self._lock, self._errors():
            copy = sqlite3.connect(path)
            try:
                self._db.backup(copy)
            finally:
                copy.close()

    def branch_ids(self) -> set[tuple[ChainId, Epoch]]:
        """Every stored branch. Raises StoreError."""
        rows = self._all("SELECT node, shard, counter, nonce FROM branch")
        return {(ChainId(row[0], row[1]), Epoch(row[2], row[3])) for row in rows}

    def branch(self, chain: ChainId, epoch: Epoch) -> StoredBranch | None:
        """One branch with its records, as it is at this moment. Raises StoreError."""
        with self._lock, self._errors():
            id = self._branch(chain, epoch)
            if id is None:
                return None
            (header,) = self._db.execute("SELECT header FROM branch WHERE id = ?", (id,)).fetchone()
            records = self._records(id)
        return StoredBranch(chain, epoch, header, records)

    # ---- small values of the node ----

    def get_meta(self, key: str) -> bytes | None:
        rows = self._all("SELECT value FROM meta WHERE key = ?", (key,))
        return rows[0][0] if rows else None

    def set_meta(self, key: str, value: bytes) -> None:
        self._run("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    # ---- where peers were reached ----

    def add_address(self, node: bytes, multiaddr: str, seen_s: int) -> None:
        """Remember an address a node was reached at; the oldest beyond 16 a node are forgotten."""
        new = multiaddr not in self.addresses().get(node, ())
        with self._lock, self._errors(), self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO address (node, multiaddr, seen_s) VALUES (?, ?, ?)",
                (node, multiaddr, seen_s),
            )
            self._db.execute(
                "DELETE FROM address WHERE node = ? AND multiaddr NOT IN (SELECT multiaddr FROM"
                " address WHERE node = ? ORDER BY seen_s DESC, multiaddr LIMIT ?)",
                (node, node, ADDRESSES_MAX),
            )
        if new:
            self.copy_contacts()

    def forget_addresses(self, node: bytes) -> None:
        self._run("DELETE FROM address WHERE node = ?", (node,))

    def addresses(self) -> dict[bytes, tuple[str, ...]]:
        """node -> multiaddrs, the one seen last first."""
        book: dict[bytes, tuple[str, ...]] = {}
        rows = self._all(
            "SELECT node, multiaddr FROM address ORDER BY node, seen_s DESC, multiaddr"
        )
        for node, multiaddr in rows:
            book[node] = (*book.get(node, ()), multiaddr)
        return book

    # ---- interfaces with endpoints behind them ----

    def set_attachment(self, attachment: Attachment) -> None:
        """Remember what `attachment.ifname` carries, in place of what it carried before."""
        self._run(
            "INSERT OR REPLACE INTO attachment (ifname, vpc, ip, mac) VALUES (?, ?, ?, ?)",
            (attachment.ifname, attachment.vpc, attachment.ip, attachment.mac),
        )

    def remove_attachment(self, ifname: str) -> None:
        self._run("DELETE FROM attachment WHERE ifname = ?", (ifname,))

    def attachments(self) -> tuple[Attachment, ...]:
        rows = self._all("SELECT ifname, vpc, ip, mac FROM attachment ORDER BY ifname")
        return tuple(Attachment(*row) for row in rows)

    # ---- join tokens given out ----

    def add_invitation(
        self,
        token_hash: bytes,
        secret: bytes,
        expires_s: int,
        site: str,
        quotas: Quotas | None = None,
    ) -> None:
        """`quotas`: what the joiner is granted, None: the usual."""
        granted = (quotas.mesh, quotas.vpc) if quotas else (None, None)
        self._run(
            "INSERT INTO invitation (token_hash, secret, expires_s, site, quota_mesh, quota_vpc)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (token_hash, secret, expires_s, site, *granted),
        )

    def invitation(self, token_hash: bytes) -> Invitation | None:
        rows = self._all(
            "SELECT token_hash, secret, expires_s, site, quota_mesh, quota_vpc, used_by"
            " FROM invitation WHERE token_hash = ?",
            (token_hash,),
        )
        return Invitation(*rows[0]) if rows else None

    def open_invitations(self, now_s: int) -> int:
        """How many tokens are unused and not expired."""
        rows = self._all(
            "SELECT count(*) FROM invitation WHERE used_by IS NULL AND expires_s > ?", (now_s,)
        )
        return int(rows[0][0])

    def invitations_after(self, expiry_s: int) -> int:
        """How many tokens, used or not, expire after a time."""
        rows = self._all("SELECT count(*) FROM invitation WHERE expires_s > ?", (expiry_s,))
        return int(rows[0][0])

    def use_invitation(self, token_hash: bytes, node: bytes) -> bool:
        """Mark a token as used by `node`, durably; False when it is another node's or unknown.

        The same node may use its token again: its answer may have been lost on the way.
        """
        with self._lock, self._errors():
            changed = self._db.execute(
                "UPDATE invitation SET used_by = ?1 WHERE token_hash = ?2"
                " AND (used_by IS NULL OR used_by = ?1)",
                (node, token_hash),
            )
            return changed.rowcount == 1

    def drop_invitations(self, expired_before_s: int) -> None:
        """Forget tokens that expired before a time, used or not: they are refused as unknown."""
        self._run("DELETE FROM invitation WHERE expires_s < ?", (expired_before_s,))

    # ---- inner ----

    def _run(self, sql: str, values: tuple[object, ...]) -> None:
        with self._lock, self._errors():
            self._db.execute(sql, values)

    def _all(self, sql: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock, self._errors():
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite has rolled back by itself on a full disk
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> StoreError:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return StoreError(f"{self.path}: in use by another process: stop that one first")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            return StoreDamaged(
                f"{self.path}: the store is damaged ({error}): restart the node, which makes a new"
                " one of what can be read and of what peers have"
            )
        if name.startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY")):
            return StoreError(f"{self.path}: cannot be written ({error}): check the disk")
        return StoreError(f"{self.path}: {name or type(error).__name__}: {error}")
