"""Who watches the view: places in the stream of its changes, kept between two calls of the API.

A watcher asks again and again; each call answers what may have changed since the last one, as soon
as anything has. What a slow watcher has not fetched is kept once a key, so it costs no more than
the view has keys; one that does not come back is forgotten.
"""

from __future__ import annotations

import secrets
from typing import Final

import trio

from mesh.core import keys
from mesh.core.errors import NotFound, Refused
from mesh.core.ops import NodeId
from mesh.core.view import View, ViewDelta

WATCHES_MAX: Final = 16
"""People and tools of one user; each may hold every key of the view."""
WAIT_S: Final = 20.0
"""How long a call waits for a change: below what clients and proxies wait for an answer."""
KEPT_S: Final = 60.0
"""How long a watch is kept for a watcher that does not ask."""

What = tuple[str, str, str]
"""kind, then the ids that name it: ("endpoint", VPC, IP), ("vpc", VPC, ""), …"""


class Watch:
    """One watcher's place. `shown` is for who turns changes into words: what it said last."""

    def __init__(self, view: View, shard: str | None) -> None:
        self.shard = shard
        self.shown: dict[str, dict[str, object]] = {}
        self.reader = view.reader(from_now=True)
        self.asked_s = trio.current_time()
        self._due: dict[What, None] = {}

    def pending(self) -> bool:
        """Whether there is something to take."""
        if self.reader:
            self._note(self.reader.take())
        return bool(self._due)

    def take(self, count_max: int) -> list[What]:
        """What may have changed, the earliest first, as much as that."""
        self.pending()
        taken = [what for what, _ in zip(self._due, range(count_max), strict=False)]
        for what in taken:
            del self._due[what]
        return taken

    def _note(self, delta: ViewDelta) -> None:
        if self.shard in (None, "mesh"):
            for vpc in sorted(delta.vpcs):
                self._due["vpc", vpc, ""] = None
            for subnet in sorted(delta.subnets):
                self._due["subnet", subnet, ""] = None
            for node in sorted(delta.gateways):
                self._due["gateway", node.hex(), ""] = None
        for vpc, touched in delta.endpoints.items():
            if self.shard in (None, vpc):
                self._due.update({("endpoint", vpc, keys.ip_of(key[1:])): None for key in touched})
        if self.shard in (None, "mesh"):
            if delta.peerings:
                self._due["peerings", "", ""] = None
            if delta.conflicts:
                self._due["conflicts", "", ""] = None


class Watches:
    """One per node."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._open: dict[str, Watch] = {}
        self._changed = trio.Event()

    def open(self, shard: str | None) -> tuple[str, Watch]:
        """A new watch of everything, of `mesh`, or of a VPC's endpoints. Raises Refused."""
        if len(self._open) >= WATCHES_MAX:
            raise Refused(f"{WATCHES_MAX} watches are open: end one, or try again in {KEPT_S:g} s")
        id = secrets.token_hex(16)
        self._open[id] = Watch(self._view, shard)
        return id, self._open[id]

    def get(self, id: str) -> Watch:
        """Raises NotFound."""
        watch = self._open.get(id)
        if watch is None:
            raise NotFound("no such watch any more: what has changed meanwhile is not known; begin"
                           " anew")  # fmt: skip
        watch.asked_s = trio.current_time()
        return watch

    async def wait(self, watch: Watch) -> None:
        """Return when there is something to take, or after WAIT_S."""
        with trio.move_on_after(WAIT_S):
            while not watch.pending():
                await self._changed.wait()
        watch.asked_s = trio.current_time()

    def wake(self) -> None:
        """The view may have changed."""
        if self._open:
            self._changed.set()
            self._changed = trio.Event()

    def expire(self) -> None:
        """Forget the watches that nobody has asked for lately."""
        since_s = trio.current_time() - KEPT_S
        for id in [id for id, watch in self._open.items() if watch.asked_s < since_s]:
            self.close(id)

    def close(self, id: str) -> None:
        if (watch := self._open.pop(id, None)) is not None:
            self._view.release(watch.reader)


def node_of(what: What) -> NodeId:
    """The node of a gateway."""
    return bytes.fromhex(what[1])
