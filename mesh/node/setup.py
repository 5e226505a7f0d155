"""Making the directory of a node: founding a mesh, or joining one with a token.

Everything is built in a private directory beside the wanted one and takes its place at the end, so
that a failure or an interruption leaves nothing in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mesh.core import ed25519, validate
from mesh.core.effects import PersistStatements
from mesh.core.errors import BadInput, NotReady, PeerError, Refused
from mesh.core.roster import Roster
from mesh.core.statements import found_mesh
from mesh.core.token import Token, join_request, parse_join_answer
from mesh.node.config import Config, write_config
from mesh.node.config_fields import (
    CONFIG_NAME,
    DEFAULT_SOCKET,
    default_listen,
    listen_addr,
    socket_path,
)
from mesh.node.keys import check_private_directory, new_seed, write_seed
from mesh.node.store import Store

JOIN_TIMEOUT_S: Final = 20.0  # two tries of an unreachable address, and a slow inviter

# The configuration comes last: a directory without one is no node's.
_FILES: Final = ("root.key", "node.key", "store.db", "store.db.contacts", CONFIG_NAME)


@dataclass(frozen=True, slots=True)
class NewNode:
    """What a person says of a node that is to be. `listen`, `socket`: None for the default."""

    directory: Path
    site: str
    name: str
    underlay: str | None = None
    listen: str | None = None
    socket: str | None = None

    def check(self) -> None:
        """Raises BadInput."""
        validate.name("--site", self.site)
        validate.name("--node", self.name)
        if self.underlay is not None:
            validate.underlay_ip("--underlay", self.underlay)
        if self.listen is not None:
            listen_addr("--listen", self.listen)
        if self.socket is not None:
            socket_path("--socket", self.socket)

    def config(self, home: Path, mesh_name: str, mesh_id: bytes) -> Config:
        return Config(
            path=home / CONFIG_NAME,
            mesh_name=mesh_name,
            mesh_id=mesh_id,
            node_name=self.name,
            site=self.site,
            underlay=self.underlay,
            listen=(self.listen,) if self.listen else default_listen(self.underlay),
            dataplane_mode="auto",
            wan_if=None,
            socket_path=self.directory.absolute() / (self.socket or DEFAULT_SOCKET),
        )


@dataclass(frozen=True, slots=True)
class MadeNode:
    """What was made: ids are bytes, `config` the file to run."""

    mesh_name: str
    mesh_id: bytes
    node_id: bytes
    config: Path


def found(new: NewNode, mesh_name: str) -> MadeNode:
    """Found a mesh: its root key, its first node, and the statements that say so.

    Raises:
        BadInput: a value that cannot be, or a directory that cannot hold keys.
        Refused: the directory has a node already.
    """
    validate.name("--mesh", mesh_name)
    new.check()
    root_seed, node_seed = new_seed(), new_seed()
    statements = found_mesh(mesh_name, root_seed, node_seed, new.name, new.site)
    roster = Roster.founded_by(statements)
    with new_home(new.directory) as home:
        write_seed(home / "root.key", "root", root_seed)
        write_seed(home / "node.key", "node", node_seed)
        _write_store(home, statements, {})
        write_config(new.config(home, mesh_name, roster.mesh_id))
    return _made(new, mesh_name, roster.mesh_id, node_seed)


async def join(new: NewNode, token_text: str) -> MadeNode:
    """Become a node of the mesh that the token is for.

    Raises:
        BadInput: a value that cannot be, or a directory that cannot hold keys.
        Refused: garbled, expired, used or foreign token, or the directory has a node already.
        NotReady: the inviter cannot be reached, or what it says does not hold.
    """
    from mesh.node.p2p.join import request_join

    new.check()
    token = Token.decode(token_text)
    _check_token(token, new.site, int(time.time()))
    node_seed = new_seed()
    node_key = ed25519.public_key(node_seed)
    with new_home(new.directory) as home:
        # Before the inviter is asked: a token must not be used up for a key that is nowhere.
        write_seed(home / "node.key", "node", node_seed)
        answer = await request_join(
            node_seed,
            token.addrs,
            token.inviter_key,
            join_request(token, node_key, new.name, new.site),
            JOIN_TIMEOUT_S,
        )
        roster = _checked_answer(answer, token, node_key)
        inviter = roster.node_of_key(token.inviter_key)
        addrs = {inviter: token.addrs} if inviter else {}
        _write_store(home, tuple(roster.statements()), addrs)
        write_config(new.config(home, token.mesh_name, token.mesh_id))
    return _made(new, token.mesh_name, token.mesh_id, node_seed)


def _check_token(token: Token, site: str, now_s: int) -> None:
    if now_s >= token.expires_s:
        raise Refused(f"token expired {now_s - token.expires_s} s ago: ask for a new one")
    if token.site and token.site != site:
        raise Refused(f"token is for site {token.site}, not {site}: join with --site {token.site}")


def _checked_answer(answer: bytes, token: Token, node_key: bytes) -> Roster:
    """The roster of an answer that admits this node to the token's mesh. Raises NotReady."""
    try:
        statements, _ = parse_join_answer(answer)
        roster = Roster.founded_by(statements)
    except (BadInput, PeerError) as error:
        raise NotReady(f"the inviter's answer does not hold ({error}): ask who runs it") from None
    if roster.mesh_id != token.mesh_id:
        raise NotReady("the inviter's answer is of another mesh than the token: ask who runs it")
    if roster.active(ed25519.node_id(node_key)) is None:
        raise NotReady("the inviter's answer does not admit this node: ask who runs it")
    return roster


def _write_store(
    home: Path, statements: tuple[bytes, ...], addresses: dict[bytes, tuple[str, ...]]
) -> None:
    store = Store(home / "store.db")
    try:
        store.apply([PersistStatements(statements)])
        now_s = int(time.time())
        for node, multiaddrs in addresses.items():
            for multiaddr in multiaddrs:
                store.add_address(node, multiaddr, now_s)
    finally:
        store.close()


def _made(new: NewNode, mesh_name: str, mesh_id: bytes, node_seed: bytes) -> MadeNode:
    node = ed25519.node_id(ed25519.public_key(node_seed))
    return MadeNode(mesh_name, mesh_id, node, new.directory / CONFIG_NAME)


@contextmanager
def new_home(directory: Path) -> Iterator[Path]:
    """A private directory to fill, which becomes `directory` when the block ends well.

    A directory that is there may hold other files, if only its owner can enter it.
    """
    _check_vacant(directory)
    try:
        directory.absolute().parent.mkdir(parents=True, exist_ok=True)
        home = Path(tempfile.mkdtemp(prefix=".weft-", dir=directory.absolute().parent))
    except OSError as error:
        raise BadInput(
            f"{directory}: cannot be made ({error.strerror}): choose another --dir"
        ) from None
    try:
        yield home
        if directory.is_dir() and any(directory.iterdir()):
            _move_into(home, directory)
        else:
            home.rename(directory)  # takes the place of an empty directory, too
            _sync(directory)
        _sync(directory.absolute().parent)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _check_vacant(directory: Path) -> None:
    if not directory.is_dir():
        if directory.exists() or directory.is_symlink():
            raise BadInput(f"{directory}: is no directory: choose another --dir")
        return
    for name in _FILES:
        if (directory / name).exists():
            raise Refused(f"{directory}: has a {name} already: choose another --dir")
    if any(directory.iterdir()):
        check_private_directory(directory)


def _move_into(home: Path, directory: Path) -> None:
    """Link the new files into a directory that has others; all or none."""
    linked: list[Path] = []
    try:
        for name in _FILES:
            if (home / name).exists():
                os.link(home / name, directory / name)  # unlike rename, never replaces
                linked.append(directory / name)
        _sync(directory)
    except BaseException:
        for path in linked:
            path.unlink()
        raise


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
