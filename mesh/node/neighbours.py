"""Whom the transport may link with: where members are, and which of them hold what is held here.

An address of a member is what its registration says, what it announces in the local network, and
where it was last reached: the address book is the store's, so that it is there before any peer is.
It is read once, and written beside the loop: the store may be busy with a large batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import trio

from mesh.core.interest import Interests
from mesh.core.ops import NodeId
from mesh.core.replica import Replica
from mesh.core.view import View
from mesh.node.log import LimitedLog
from mesh.node.p2p.events import PeerUp
from mesh.node.p2p.transport import Transport
from mesh.node.store import ADDRESSES_MAX, Store, StoreError

_logger = logging.getLogger("weft.node")


class Neighbours:
    """Tells `transport` what replica, view and store know of the members."""

    def __init__(
        self,
        node: NodeId,
        replica: Replica,
        view: View,
        store: Store,
        transport: Transport,
        found: Callable[[NodeId], Sequence[str]],
    ) -> None:
        """`found`: the addresses of a member in the local network."""
        self._node = node
        self._replica = replica
        self._view = view
        self._store = store
        self._transport = transport
        self._found = found
        self._holders_version = -1
        self._log = LimitedLog(_logger, trio.current_time)
        self._book = self._read_book()
        self._unsaved: dict[NodeId, tuple[str, int]] = {}
        """where members were last reached, and when, in seconds since 1970"""
        self._to_save = trio.Event()

    def _read_book(self) -> dict[NodeId, tuple[str, ...]]:
        try:
            return self._store.addresses()
        except StoreError as error:
            self._log.event("store.unread", reason=error)
            return {}

    async def run(self) -> None:
        """Save where members were reached, until cancelled."""
        while True:
            await self._to_save.wait()
            self._to_save = trio.Event()
            unsaved, self._unsaved = self._unsaved, {}
            for node, (addr, seen_s) in unsaved.items():
                try:
                    await trio.to_thread.run_sync(self._store.add_address, node, addr, seen_s)
                except StoreError as error:
                    self._log.event("store.address_lost", reason=error)

    def dial_members(self) -> None:
        """Dial active members where they say they listen and where they were last reached."""
        targets: dict[NodeId, Sequence[str]] = {}
        for node, member in self._replica.roster.members().items():
            if member.state != "active" or node == self._node or self._replica.retired:
                continue
            gateway = self._view.gateways.get(node)
            registered = gateway.addrs if gateway else ()
            known = (*registered, *self._found(node), *self._book.get(node, ()))
            targets[node] = tuple(dict.fromkeys(known))
        self._transport.set_targets(targets)

    def met(self, up: PeerUp) -> None:
        """A link came up: if we dialled it, its address is worth remembering."""
        if not up.inbound:
            others = (addr for addr in self._book.get(up.node, ()) if addr != up.addr)
            self._book[up.node] = (up.addr, *others)[:ADDRESSES_MAX]
            self._unsaved[up.node] = up.addr, int(time.time())
            self._to_save.set()

    def note_holders(self, interests: Interests) -> None:
        """Have enough links for each shard that is kept here."""
        if interests.holders_version != self._holders_version:
            self._holders_version = interests.holders_version
            self._transport.set_holders(interests.holders)
