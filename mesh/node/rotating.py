"""A new key for this node: same id, same chains.

Whenever the process is stopped, the node starts with the key that its stored statements name:

1. The new key is on disk, beside the one in use (`node.key.next`). It is nobody's yet.
2. The statements are in the store: from here on the new key is the one in use, and a start puts it
   in the place of the old one.
3. The key file has taken the old one's place.

2 and 3 are one step for everybody else in this process. Only then anybody is told; what the node
writes is signed with the new key, its chains anew. Peers end links that were made under the old
key; both ends dial again at once. A peer that does not know of it is shown the rotations in the
handshake (`mesh.node.p2p.session`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from mesh.core import ed25519
from mesh.core.effects import PersistStatements
from mesh.core.errors import NotReady, PeerError, Refused
from mesh.core.replica import Replica
from mesh.core.statements import ADMIT, ROTATE, Statement
from mesh.node.keys import KeyFileError, prepare_next, take_next
from mesh.node.log import event
from mesh.node.store import Store

_logger = logging.getLogger("weft.node")
NAMES_MAX: Final = 8
"""In an error: it stays a line that people read."""


class OwnKey:
    """The private key that this process signs with."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed

    @property
    def public(self) -> bytes:
        """32 bytes."""
        return ed25519.public_key(self.seed)

    def sign(self, message: bytes) -> bytes:
        return ed25519.sign(self.seed, message)


class Rotating:
    """One per node."""

    def __init__(
        self,
        key: OwnKey,
        path: Path,
        replica: Replica,
        store: Store,
        durable: Callable[[], Awaitable[None]],
        use: Callable[[], None],
    ) -> None:
        """
        Args:
            path: the key file.
            durable: returns when what the replica was given is on disk.
            use: called when `key` has changed: new handshakes are made with it.
        """
        self._key = key
        self._path = path
        self._replica = replica
        self._store = store
        self._durable = durable
        self._use = use
        self._one_at_a_time = trio.Lock()

    async def rotate(self, *, force: bool = False) -> None:
        """Returns once it is stored here and on its way to peers. `force`: though somebody may hold
        what this node has written and lost, which counts no more then.

        Raises Refused or NotReady: nothing has changed then, unless it says so.
        """
        async with self._one_at_a_time:
            if not force:
                self._check_heard()
            await self._durable()
            try:
                seed = await trio.to_thread.run_sync(prepare_next, self._path)
            except (OSError, KeyFileError) as error:
                raise NotReady(f"{self._path}: no new key can be put beside it ({error})") from None
            self._switch(seed)
            await self._durable()

    def _check_heard(self) -> None:
        unheard = self._replica.unheard()
        if unheard:
            names = ", ".join(member.name for member in unheard[:NAMES_MAX])
            more = f" and {len(unheard) - NAMES_MAX} more" if len(unheard) > NAMES_MAX else ""
            raise Refused(
                f"not heard since this node started: {names}{more}; should its disk be older than"
                " what they hold of it, that would count no more: wait for them, retire who is"
                " gone, or add --force"
            )

    def take_shown(self, shown: Sequence[bytes]) -> None:
        """Take in the rotations, and the admission, that a peer shows in a handshake: they prove
        themselves. Raises PeerError."""
        if any(Statement.parse(blob).kind not in (ADMIT, ROTATE) for blob in shown):
            raise PeerError("rotations: another statement among them")
        self._replica.add_statements(shown, time.monotonic_ns())

    def _switch(self, seed: bytes) -> None:
        """Without letting anybody else have a turn: what is signed before it counts, by name, and
        what is signed after it is signed with the new key. Costs two writes to disk."""
        blobs = self._replica.rotation(self._key.seed, seed)
        self._store.apply([PersistStatements(tuple(blobs))])
        self._key.seed = seed
        self._replica.rotated(blobs, self._key.public, time.monotonic_ns())
        self._use()
        event(_logger, "node.rotated", node=self._replica.node, key=self._key.public)
        try:
            take_next(self._path)
        except OSError as error:
            raise NotReady(
                f"the new key is in use, and {self._path} cannot be replaced by it"
                f" ({error.strerror}): mend that, then restart the node"
            ) from None
