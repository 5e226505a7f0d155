"""A node in one file: its store, its key and its weft.toml, to make it again from.

The file is a store with two more values in it. A node that is restored goes on where the copy was
made: what it wrote later comes back from the peers that have it, whenever they are met. It must not
run beside the original; the two would find out, and one would stop writing.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.core.errors import BadInput, Refused
from mesh.node.config import Config, read_config
from mesh.node.config_fields import CONFIG_NAME
from mesh.node.keys import KEY_FILE_MODE, write_file
from mesh.node.setup import new_home
from mesh.node.store import Store, StoreError

_FILES: Final = {"backup node.key": "node.key", "backup weft.toml": CONFIG_NAME}
"""key in `meta` -> file"""


@dataclass(frozen=True, slots=True)
class Restored:
    """A node directory that was made from a file."""

    node_name: str
    site: str
    config: Path


def save(store: Store, config: Config, file: Path) -> int:
    """Write the running node into a new file, mode 0600; its size in bytes.

    Raises Refused (there is a file already), BadInput (it cannot be written) or StoreError.
    """
    try:
        descriptor = os.open(
            file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, KEY_FILE_MODE
        )
    except FileExistsError:
        raise Refused(f"{file}: is there already: name a new file") from None
    except OSError as error:
        raise BadInput(f"{file}: cannot be made ({error.strerror})") from None
    os.close(descriptor)
    try:
        store.copy_to(file)
        with closing(sqlite3.connect(file)) as copy, copy:
            copy.execute("DELETE FROM invitation")  # its secrets are good for nothing elsewhere
            for key, name in _FILES.items():
                value = (config.directory / name).read_bytes()
                copy.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        _sync(file)
        return file.stat().st_size
    except (OSError, sqlite3.Error) as error:
        file.unlink(missing_ok=True)
        raise StoreError(f"{file}: cannot be written ({error})") from None
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def restore(file: Path, directory: Path) -> Restored:
    """Make a node directory from a file; all of it or nothing.

    Raises BadInput (not such a file) or Refused (there is a node in the directory).
    """
    with new_home(directory) as home:
        write_file(home / "store.db", _read(file))
        try:
            with closing(sqlite3.connect(home / "store.db")) as copy, copy:
                for key, name in _FILES.items():
                    row = copy.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
                    if row is None:
                        raise BadInput(f"{file}: holds no node: give a file of `weft snapshot`")
                    write_file(home / name, row[0])
                copy.execute("DELETE FROM meta WHERE key LIKE 'backup %'")
        except sqlite3.Error as error:
            raise BadInput(f"{file}: holds no node ({error})") from None
        store = Store(home / "store.db")  # its version is checked, and its contacts are copied
        try:
            store.copy_contacts()
        finally:
            store.close()
        config = read_config(home / CONFIG_NAME)
    return Restored(config.node_name, config.site, directory / CONFIG_NAME)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadInput(f"{file}: cannot be read ({error.strerror})") from None


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
