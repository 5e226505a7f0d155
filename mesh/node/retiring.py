"""Nodes that go: retired, forgotten, or of their own accord. All of it is for good."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final

from mesh.core import keys
from mesh.core.errors import Refused
from mesh.core.members import Member
from mesh.core.ops import NodeId
from mesh.core.replica import Replica
from mesh.core.view import View
from mesh.core.view.registers import R
from mesh.node.log import event
from mesh.node.rotating import OwnKey

SHOWN_MAX: Final = 3
"""Things named to whoever wants a node forgotten that is still seen; the others are counted."""

_logger = logging.getLogger("weft.node")


class Retiring:
    """One per node; `key` signs for it."""

    def __init__(
        self,
        node: NodeId,
        key: OwnKey,
        replica: Replica,
        view: View,
        durable: Callable[[], Awaitable[None]],
    ) -> None:
        self._node = node
        self._key = key
        self._replica = replica
        self._view = view
        self._durable = durable

    async def retire(self, member: Member, *, compromised: bool) -> None:
        """Returns once it is stored here and on its way to peers. Raises Refused: no admin here."""
        blob = self._replica.roster.retire(self._key.seed, member.node, compromised=compromised)
        if member.state == "forgotten" or (member.state == "retired" and not compromised):
            return
        await self._say(blob, member, "node.compromised" if compromised else "node.retired")

    async def forget(self, member: Member) -> None:
        """As `retire`. Raises Refused also while anything of the node is seen."""
        blob = self._replica.roster.forget(self._key.seed, member.node)
        if member.state == "forgotten":
            return
        if member.state == "active":
            raise Refused(f"node {member.name} is active: run weft retire {member.name} first")
        unseen = [v for v in sorted(self._elsewhere(member.node)) if v in self._view.vpcs]
        if unseen:
            vpcs = ", ".join(map(self._view.names.vpc_text, unseen[:SHOWN_MAX]))
            raise Refused(
                f"node {member.name} had to do with VPC {vpcs}, which is not held here: run this at"
                ' a node that holds it, or set [mesh] interest = "all" in weft.toml here'
            )
        seen = list(self._seen(member.node))
        if seen:
            more = f" and {len(seen) - SHOWN_MAX} more" if len(seen) > SHOWN_MAX else ""
            raise Refused(
                f"node {member.name} is still seen in {', '.join(seen[:SHOWN_MAX])}{more}: remove"
                " these or take them over first"
            )
        await self._say(blob, member, "node.forgotten")

    async def leave(self) -> None:
        """Retire this node. What it wrote stays."""
        member = self._replica.roster.members()[self._node]
        if member.state == "active":
            blob = self._replica.roster.retire(self._key.seed, self._node)
            await self._say(blob, member, "node.left")

    async def _say(self, blob: bytes, member: Member, what: str) -> None:
        self._replica.add_statements([blob], time.monotonic_ns())
        await self._durable()
        event(_logger, what, node=member.node, node_name=member.name, site=member.site)

    def _elsewhere(self, node: NodeId) -> set[str]:
        """The VPCs that the node has kept and this one does not."""
        return {v for v in self._view.catalog.interest(node) if not self._replica.keeps(v)}

    def _seen(self, node: NodeId) -> Iterator[str]:
        """Key texts of what would look otherwise without the node's records."""
        lattice = self._replica.lattice
        for id in lattice.chains():
            if id.node != node:
                continue
            for key in lattice.keys(id):
                try:
                    text = self._seen_in(node, id.shard, keys.unpack(id.shard, key))
                except (keys.UnknownKey, keys.InvalidKey):
                    continue
                if text:
                    yield text

    def _seen_in(self, node: NodeId, shard: str, key: keys.Key) -> str:
        catalog, names = self._view.catalog, self._view.names
        match key:
            case keys.EndpointKey(addr):
                winner = self._view.winner(shard, keys.ip_of(addr))
                decides = winner is not None and winner.node == node
                return names.endpoint_key(shard, addr) if decides else ""
            case keys.EvictionKey(vpc, evicted, addr):
                claimed = self._view.claim(evicted, vpc, keys.ip_of(addr)) is not None
                return f"the eviction at {names.endpoint_key(vpc, addr)}" if claimed else ""
            case keys.VpcKey(vpc):
                records = catalog.vpc_records(vpc)
                return names.vpc_key(vpc) if self._counts(node, vpc, records) else ""
            case keys.SubnetKey(vpc, subnet):
                subnet_records = catalog.subnet_records(vpc, subnet)
                counts = self._counts(node, vpc, subnet_records)
                return names.subnet_key(vpc, subnet) if counts else ""
            case keys.PeeringKey(a, b, half):
                halves = catalog.half_records(a, b).get(half, {})
                counts = self._counts(node, a, halves)
                return f"peering/{names.vpc_text(a)}/{names.vpc_text(b)}" if counts else ""
            case _:
                return ""  # what it says of itself went with its retirement

    def _counts(self, node: NodeId, vpc: str, records: Mapping[NodeId, R]) -> bool:
        """Whether the node's record is the one that counts in a register of the VPC.

        A deletion that counts hides what others wrote before it, if they wrote anything.
        """
        decided = self._view.catalog.decide(vpc, records)
        if decided is None or decided.node != node:
            return False
        return not decided.record.deleted or len(records) > 1
