"""Who writes, and what every act of writing shares: stamps, keys, authority, evictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from mesh.core import keys, model
from mesh.core.clock import HybridClock
from mesh.core.errors import NotFound, Refused
from mesh.core.ops import MESH_SHARD, NodeId, Put
from mesh.core.view import View, Vpc

R = TypeVar("R", bound=model.Register)


@dataclass(frozen=True, slots=True)
class Author:
    """This node as a writer: what it knows, its clock, and a source of nonces (bytes asked for)."""

    node: NodeId
    site: str
    view: View
    clock: HybridClock
    nonce: Callable[[int], bytes]

    def stamp(self, now_ns: int, seen: Iterable[int] = ()) -> int:
        """A stamp later than those of what is known of the object, bad clocks apart."""
        for hlc in seen:
            self.clock.observe(hlc, now_ns)
        return self.clock.now(now_ns)

    def put(self, key: keys.Key, record: model.Record, shard: str = MESH_SHARD) -> Put:
        """The write of a record. Fields of a newer version in the one that it replaces stay.

        Raises Refused where that one as a whole is a newer version's, other than about the node
        itself: that is for the version that runs to say.
        """
        packed = keys.pack(key)
        held = self.view.record(self.node, shard, packed)
        try:
            return Put(shard, packed, model.encode_over(record, held))
        except model.UnknownRecord as error:
            if isinstance(key, keys.GatewayKey | keys.BindingKey | keys.InterestKey):
                return Put(shard, packed, model.encode(record))
            raise Refused(
                f"what this node has written about it before is of a newer weft ({error}): run"
                " that one here, or do this on another gateway"
            ) from None

    def require_owner(self, vpc: Vpc) -> None:
        """Raises Refused unless this node may write the VPC's registers and evictions."""
        if not self.view.catalog.may_write(vpc.id, self.node):
            owner = f"site {vpc.site}" if vpc.site else "a site not known here yet"
            raise Refused(
                f"VPC {vpc.name} belongs to {owner}; do this on a gateway of that site or an admin"
            )

    def require_sites(self, sites: Iterable[str]) -> None:
        """Raises NotFound if one of them has no member."""
        known = self.view.sites()
        for site in sites:
            if site not in known:
                raise NotFound(f"no site {site!r} in the mesh; there are {', '.join(known)}")

    def known(self, vpc: str, records: Mapping[NodeId, R]) -> list[R]:
        """The records of those who may write the VPC's registers: only these are written past.
        A stranger's revision, however high, must not be able to use the revisions up."""
        may_write = self.view.catalog.may_write
        return [record for node, record in records.items() if may_write(vpc, node)]

    def evict(self, vpc: str, addr: bytes, node: NodeId, mobility: int, now_ns: int) -> Put:
        """Hide the node's claims for the address up to `mobility`, that of one that counts now
        (so it is above what is hidden already)."""
        record = model.Eviction(mobility, self.stamp(now_ns))
        return self.put(keys.EvictionKey(vpc, node, addr), record)


def next_revision(known: Iterable[model.Register]) -> int:
    """The revision after all that have been seen. Raises Refused when there is none."""
    revision = max((record.revision for record in known), default=0) + 1
    if revision > model.REVISION_MAX:
        raise Refused("the object's revisions are used up; remove it and make a new one")
    return revision
