"""Which shards this node keeps, and which sites may have which: both follow from the view.

- **Interest.** A node keeps `mesh`, and the shard of a VPC that its site owns or is a home of a
  subnet of, in which it has a chain of its own or an interface is attached, or that an active
  peering links to such a VPC. So does it where a retired node of its site did: that one's endpoints
  are its site's to take over. Or it keeps all, if it is told to.
- **Entitlement.** A VPC's shard is for the sites on its list and the homes of its subnets (no list:
  all), for its owner, and for those that a peered VPC is for. Nobody else is given it, and a node
  keeps nothing that its site is not entitled to, but what it wrote itself.
- **Holders.** Of what a node keeps, the other members that say that they keep it, too, and may have
  it: those with whom a link serves the shard.
- **A removed VPC** stays as it was while its removal is known, so that what its owners delete still
  reaches whoever holds it. After a restart nothing is known of who was admitted: then it is for its
  owner and for the sites of those nodes that say that they keep it.

Both are kept as the view changes: the cost follows what changed, but for peerings, which are few
and read anew with each change of one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from mesh.core.ops import MESH_SHARD, NodeId
from mesh.core.view import View

Policy: TypeAlias = Literal["hosted", "all"]
Sites: TypeAlias = Set[str] | None
"""None: every site."""

_NOBODY: Final[Set[str]] = frozenset()


@dataclass(slots=True)
class _Standing:
    """What is derived of one VPC."""

    hosted: bool = False
    admitted: Sites = _NOBODY
    """by the VPC itself, peerings apart"""


class Interests:
    """The interest of `node`, of `site`, and everybody's entitlement. See the module.

    Args:
        writes: whether the node has a chain of its own in a shard.
    """

    def __init__(
        self,
        node: NodeId,
        site: str,
        view: View,
        writes: Callable[[str], bool],
        policy: Policy = "hosted",
    ) -> None:
        self._node = node
        self._site = site
        self._view = view
        self._catalog = view.catalog
        self._writes = writes
        self._policy = policy
        self._reader = view.reader(brief=True)
        self._standings: dict[str, _Standing] = {}
        self._peered: dict[str, set[str]] = {}
        self._attached: Counter[str] = Counter()
        self._touched: set[str] = set()
        self._left: tuple[NodeId, ...] = ()
        """the retired nodes of this site"""
        self._keepers: dict[str, set[NodeId]] = {}
        """VPC -> the nodes that say that they keep its shard"""
        self.vpcs: set[str] = set()
        """VPCs of which this node keeps the shard; for reading only"""
        self.version = 0
        """goes up when `vpcs`, or who is entitled to anything, may have changed"""
        self._said_version: int | None = None
        """the last that `update` has answered for"""
        self.holders: dict[str, frozenset[NodeId]] = {}
        """of each of `vpcs`, the other active members that hold it; for reading only"""
        self.holders_version = 0
        """goes up when `holders` changes"""
        self.members_changed()

    # ---- what comes in ----

    def attach(self, vpc: str) -> None:
        """An interface here was attached to the VPC."""
        self._attached[vpc] += 1
        self._touched.add(vpc)

    def detach(self, vpc: str) -> None:
        self._attached[vpc] -= 1
        if not self._attached[vpc]:
            del self._attached[vpc]
        self._touched.add(vpc)

    def set_policy(self, policy: Policy) -> None:
        if policy != self._policy:
            self._policy = policy
            self._touched |= self._standings.keys()

    def members_changed(self) -> None:
        """The roster is another one: sites and states of nodes may be."""
        self._left = tuple(
            member.node
            for member in self._catalog.members.values()
            if member.state == "retired" and member.site == self._site
        )
        self._touched |= self._standings.keys()
        self.version += 1

    def update(self) -> bool:
        """Follow the view; whether this node's interest, or anybody's entitlement, may differ from
        what it was at the last call: at the first one it does."""
        changed, self._touched = self._touched, set()
        if self._reader:
            delta = self._reader.take()
            changed |= delta.vpcs | delta.endpoints.keys() - self.vpcs
            for node, vpc in delta.interests:
                self._note_keeper(node, vpc)
                changed.add(vpc)
            for subnet in delta.subnets:
                found = self._catalog.subnet(subnet)
                # Of one that is gone nothing says of which VPC it was.
                changed.update((found.vpc,) if found else self._standings)
            if delta.peerings:
                changed |= self._read_peerings()
        if not changed and self.version == self._said_version:
            return False
        moved = {vpc for vpc in changed if self._derive(vpc)}
        around = {other for vpc in moved for other in self._peered.get(vpc, ())}
        for vpc in sorted(changed | around):
            self._decide(vpc)
            self._find_holders(vpc)
        self.version += bool(moved)
        news = self.version != self._said_version
        self._said_version = self.version
        return news

    # ---- what is asked ----

    def entitled(self, node: NodeId, shard: str) -> bool:
        """Whether the node may be given the shard."""
        if shard == MESH_SHARD:
            return True
        member = self._catalog.members.get(node)
        return member is not None and self.admits(shard, member.site)

    def admits(self, vpc: str, site: str) -> bool:
        """Whether the VPC's shard is for the site."""
        return any(self._admitted(other, site) for other in (vpc, *self._peered.get(vpc, ())))

    # ---- inner ----

    def _admitted(self, vpc: str, site: str) -> bool:
        standing = self._standings.get(vpc)
        return standing is not None and (standing.admitted is None or site in standing.admitted)

    def _read_peerings(self) -> set[str]:
        """The VPCs whose peerings are not what they were. Those of removed VPCs stay for what is
        left of these, and count no longer for the VPCs at their other ends."""
        now: defaultdict[str, set[str]] = defaultdict(set)
        for peering in self._view.peerings():
            if peering.state == "active":
                now[peering.a].add(peering.b)
                now[peering.b].add(peering.a)
        for vpc, others in self._peered.items():
            if vpc in self._catalog.removed:
                now[vpc] |= others
        before, self._peered = self._peered, dict(now)
        changed = {
            vpc for vpc in before.keys() | now.keys() if before.get(vpc) != self._peered.get(vpc)
        }
        self.version += bool(changed)
        return changed

    def _derive(self, vpc: str) -> bool:
        """Read what the VPC's records say; whether that is news."""
        old = self._standings.get(vpc)
        live = self._catalog.vpcs.get(vpc)
        if live is not None:
            subnets = self._catalog.layout(vpc).subnets.values()
            homes = {site for subnet in subnets for site in subnet.sites}
            sites: Sites = {*live.sites, *homes, live.site} if live.sites else None
            new = _Standing(self._is_host(vpc, live.site, homes), sites)
        elif vpc in self._catalog.removed:
            new = old or _Standing(vpc in self._catalog.interest(self._node), self._had_it(vpc))
            new = _Standing(new.hosted or self._writes(vpc), new.admitted)
        else:
            self._standings.pop(vpc, None)
            return old is not None
        self._standings[vpc] = new
        return new != old

    def _is_host(self, vpc: str, owner: str, homes: Set[str]) -> bool:
        return (
            self._policy == "all"
            or owner == self._site
            or self._site in homes
            or vpc in self._attached
            or self._writes(vpc)
            or any(vpc in self._catalog.interest(node) for node in self._left)
        )

    def _had_it(self, vpc: str) -> Set[str]:
        """The sites of nodes that say that they keep a removed VPC's shard, and its owner's."""
        members = self._catalog.members
        sites = {members[node].site for node in self._keepers.get(vpc, ()) if node in members}
        owner = self._catalog.owner_site(vpc)
        return sites if owner is None else {*sites, owner}

    def _decide(self, vpc: str) -> None:
        """Whether this node keeps the shard."""
        standings = self._standings
        hosts = any(
            other in standings and standings[other].hosted
            for other in (vpc, *self._peered.get(vpc, ()))
        )
        keeps = vpc in standings and hosts and self.admits(vpc, self._site)
        if keeps != (vpc in self.vpcs):
            self.version += 1
            (self.vpcs.add if keeps else self.vpcs.discard)(vpc)

    def _note_keeper(self, node: NodeId, vpc: str) -> None:
        if vpc in self._catalog.interest(node):
            self._keepers.setdefault(vpc, set()).add(node)
        elif keepers := self._keepers.get(vpc):
            keepers.discard(node)
            if not keepers:
                del self._keepers[vpc]

    def _find_holders(self, vpc: str) -> None:
        """Who else holds a shard that this node keeps."""
        found = None
        if vpc in self.vpcs:
            found = frozenset(node for node in self._keepers.get(vpc, ()) if self._holds(node, vpc))
        if found == self.holders.get(vpc):
            return
        self.holders_version += 1
        if found is None:
            del self.holders[vpc]
        else:
            self.holders[vpc] = found

    def _holds(self, node: NodeId, vpc: str) -> bool:
        member = self._catalog.members.get(node)
        return (
            member is not None
            and member.state == "active"
            and node != self._node
            and self.admits(vpc, member.site)
        )
