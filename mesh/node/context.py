"""What the local API needs of the running node. `mesh.node.node.Node` is one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from mesh.core.forwarding import Forwarding
from mesh.core.members import Member
from mesh.core.ops import NodeId, Op
from mesh.core.replica import Replica
from mesh.core.view import View
from mesh.core.writer import Writer
from mesh.node.config import Config
from mesh.node.forwarder import Forwarder
from mesh.node.inquiry import Inquiries
from mesh.node.joining import Joining
from mesh.node.p2p.transport import Transport
from mesh.node.public import PublicPort
from mesh.node.reloading import Reloading
from mesh.node.retiring import Retiring
from mesh.node.rotating import Rotating
from mesh.node.store import Store
from mesh.node.watching import Watches


class NodeContext(Protocol):
    """One node, used from trio's thread only. Between two awaits its parts agree."""

    id: NodeId
    member: Member
    view: View
    writer: Writer
    replica: Replica
    forwarding: Forwarding
    forwarder: Forwarder
    joining: Joining
    retiring: Retiring
    rotating: Rotating
    transport: Transport
    inquiries: Inquiries
    store: Store
    watches: Watches
    public: PublicPort
    reloading: Reloading
    alarms: dict[str, str]
    """alarm event -> its last fields in words"""
    damaged_branches: int
    """stored branches that did not verify at the start"""

    @property
    def config(self) -> Config:
        """The configuration in use."""

    async def submit(self, make_ops: Callable[[], Sequence[Op]]) -> bool:
        """Write what `make_ops` returns; whether anything was, once it is stored."""

    async def durable(self) -> None:
        """Return when everything given to the replica until now is stored."""

    def holding(self, vpc_id: str) -> AbstractAsyncContextManager[None]:
        """Keep the VPC's shard meanwhile. Entered once peers have told what they have of it, or
        have not within a moment."""

    def attach(self, ifname: str, vpc_id: str, ip: str, mac: str) -> None:
        """Install the local port of an endpoint."""

    def detach(self, ifname: str) -> None:
        """Remove the local port."""
