"""A damaged store is set aside, and a new one made of what can still be read of it.

Whatever is lost, peers have: chains come back from them. Of this node's own chains they may have
more than was saved, so that nothing is written before one of them has told (`REBUILT` in the store
says so until then). Who is in the mesh, and where they were reached, is read from a copy beside the
store, if it has to be.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from crdt.header import ChainId, Epoch
from mesh.core.effects import Persist, PersistStatements
from mesh.node.log import event
from mesh.node.store import Store, StoreError, read_contacts

REBUILT: Final = "rebuilt"
"""Key in the store's `meta`: the name under which the damaged file was set aside."""
_SMALL_TABLES: Final = ("meta", "address", "attachment", "invitation")
_JOURNALS: Final = ("-wal", "-shm")

_logger = logging.getLogger("weft.node")


def rebuild(path: Path, reason: StoreError) -> Store:
    """Set the file at `path` aside and open a new one. Raises StoreError."""
    aside = _set_aside(path)
    store = Store(path)
    try:
        saved = _save(aside, path, store)
        store.set_meta(REBUILT, aside.name.encode())
    except BaseException:
        store.close()
        raise
    event(
        _logger,
        "store.rebuilt",
        level=logging.ERROR,
        reason=reason,
        aside=aside.name,
        branches=saved,
    )
    return store


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    number = 1
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{aside.name.split('~')[0]}~{number}")
    try:
        for ending in ("", *_JOURNALS):
            with suppress(FileNotFoundError):
                path.with_name(path.name + ending).rename(aside.with_name(aside.name + ending))
    except OSError as error:
        raise StoreError(f"{path}: is damaged, and cannot be set aside ({error})") from None
    return aside


def _save(aside: Path, path: Path, store: Store) -> int:
    """Copy what can be read; the branches that could be."""
    bodies, reached = read_contacts(path)
    statements = dict.fromkeys(bodies)
    saved = 0
    with closing(sqlite3.connect(aside)) as old:
        statements.update((body, None) for (body,) in _rows(old, "SELECT body FROM statement"))
        store.apply([PersistStatements(tuple(statements))])
        store.insert_rows("address", reached)
        for table in _SMALL_TABLES:
            store.insert_rows(table, list(_rows(old, f"SELECT * FROM {table}")))  # noqa: S608
        for branch in _rows(old, "SELECT id, node, shard, counter, nonce, header FROM branch"):
            saved += _save_branch(old, store, branch)
    return saved


def _save_branch(old: sqlite3.Connection, store: Store, branch: tuple[Any, ...]) -> bool:
    id, node, shard, counter, nonce, header = branch
    sql = "SELECT key, entry FROM record WHERE branch = ? ORDER BY entry"
    try:
        records = dict(old.execute(sql, (id,)).fetchall())
        effect = Persist(ChainId(node, shard), Epoch(counter, nonce), header, records, ())
        store.apply([effect])
    except (sqlite3.Error, StoreError, TypeError):
        return False
    return True


def _rows(old: sqlite3.Connection, sql: str) -> Iterator[tuple[Any, ...]]:
    """The rows up to the first that cannot be read."""
    with suppress(sqlite3.Error):
        yield from old.execute(sql)
