"""Between objects and what people call them: names to ids, ids to key texts, conflicts to words.

Names are people's words and may be ambiguous; then the id addresses the object, and stands in key
texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mesh.core import keys
from mesh.core.errors import NotFound
from mesh.core.members import Member
from mesh.core.ops import NodeId
from mesh.core.view.catalog import Catalog
from mesh.core.view.claims import Contest
from mesh.core.view.registers import Decided, R
from mesh.core.view.types import Conflict, Subnet, Vpc


class Names:
    """Over the live objects of a catalog; keeps nothing itself."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    # --- from words --------------------------------------------------------------------------

    def vpc(self, name_or_id: str) -> Vpc:
        """A live VPC. Raises NotFound, also when several have the name."""
        catalog = self._catalog
        if name_or_id in catalog.vpcs:
            return catalog.vpcs[name_or_id]
        return catalog.vpcs[_one("VPC", name_or_id, catalog.named(name_or_id), "weft vpc ls")]

    def subnet(self, vpc_id: str, name_or_id: str) -> Subnet:
        """A live subnet of a VPC. Raises NotFound, also when several have the name."""
        subnets = self._catalog.layout(vpc_id).subnets
        if name_or_id in subnets:
            return subnets[name_or_id]
        ids = sorted(s.id for s in subnets.values() if s.name == name_or_id)
        vpc = self.vpc_text(vpc_id)
        return subnets[_one(f"subnet of {vpc}", name_or_id, ids, f"weft subnet ls --vpc {vpc}")]

    def member(self, name_or_id: str) -> Member:
        """A member. Raises NotFound, also when several have the name."""
        members = self._catalog.members
        by_id = {node.hex(): member for node, member in members.items()}
        if name_or_id in by_id:
            return by_id[name_or_id]
        ids = sorted(node for node, member in by_id.items() if member.name == name_or_id)
        return by_id[_one("node", name_or_id, ids, "weft members")]

    # --- to words ----------------------------------------------------------------------------

    def vpc_text(self, vpc_id: str) -> str:
        """The VPC's name; its id where the name is ambiguous or the VPC is not live."""
        vpc = self._catalog.vpcs.get(vpc_id)
        if vpc is None or len(self._catalog.named(vpc.name)) > 1:
            return vpc_id
        return vpc.name

    def subnet_text(self, vpc_id: str, subnet_id: str) -> str:
        """The subnet's name; its id where the name is ambiguous or the subnet is not live."""
        subnets = self._catalog.layout(vpc_id).subnets
        if subnet_id not in subnets:
            return subnet_id
        name = subnets[subnet_id].name
        return subnet_id if sum(s.name == name for s in subnets.values()) > 1 else name

    def node_text(self, node: NodeId) -> str:
        """The node's name; its id where the name is ambiguous or the node is not a member."""
        member = self._catalog.members.get(node)
        if member is None:
            return node.hex()
        alike = sum(m.name == member.name for m in self._catalog.members.values())
        return node.hex() if alike > 1 else member.name

    def vpc_key(self, vpc_id: str) -> str:
        """`vpc/NAME`."""
        return f"vpc/{self.vpc_text(vpc_id)}"

    def subnet_key(self, vpc_id: str, subnet_id: str) -> str:
        """`subnet/VPC/NAME`."""
        return f"subnet/{self.vpc_text(vpc_id)}/{self.subnet_text(vpc_id, subnet_id)}"

    def endpoint_key(self, vpc_id: str, addr: bytes) -> str:
        """`endpoint/VPC/IP`."""
        return f"endpoint/{self.vpc_text(vpc_id)}/{keys.ip_of(addr)}"

    # --- conflicts ---------------------------------------------------------------------------

    def endpoint_conflicts(self, contests: Iterable[tuple[str, bytes, Contest]]) -> list[Conflict]:
        """Claims of several sites."""
        return [
            Conflict(
                key=self.endpoint_key(vpc, key[1:]),
                kind="endpoint",
                claimants=tuple(self.node_text(claim.node) for claim in contest.claims),
                winner=self.node_text(contest.claims[0].node),
                rule=contest.rule,
                since_hlc=contest.since_hlc,
            )
            for vpc, key, contest in contests
        ]

    def catalog_conflicts(self) -> Iterator[Conflict]:
        """One VNI for several VPCs, subnets that overlap, registers with two values."""
        yield from self._vni_conflicts()
        yield from self._overlaps()
        catalog = self._catalog
        for vpc, decided in catalog.vpc_disputes.items():
            yield self._dispute(self.vpc_key(vpc), decided)
        for (vpc, subnet), decided_subnet in catalog.subnet_disputes.items():
            if subnet in catalog.layout(vpc).subnets:
                yield self._dispute(self.subnet_key(vpc, subnet), decided_subnet)

    def _vni_conflicts(self) -> Iterator[Conflict]:
        for ranked in self._catalog.vni_ranks.values():
            for loser in ranked[1:]:
                yield Conflict(
                    key=self.vpc_key(loser.vpc),
                    kind="vni",
                    claimants=tuple(self.vpc_key(rank.vpc) for rank in ranked),
                    winner=self.vpc_key(ranked[0].vpc),
                    rule=ranked[0].rule_over(loser),
                    since_hlc=max(ranked[0].hlc, loser.hlc),
                )

    def _overlaps(self) -> Iterator[Conflict]:
        for vpc, layout in self._catalog.layouts.items():
            for loser, winner in layout.losers.items():
                pair = layout.subnets[winner], layout.subnets[loser]
                keys_of = tuple(self.subnet_key(vpc, subnet.id) for subnet in pair)
                yield Conflict(
                    key=keys_of[1],
                    kind="subnet",
                    claimants=keys_of,
                    winner=keys_of[0],
                    rule="earlier hlc" if pair[0].hlc != pair[1].hlc else "lower id",
                    since_hlc=pair[1].hlc,
                )

    def _dispute(self, key: str, decided: Decided[R]) -> Conflict:
        claimants = tuple(self.node_text(node) for node in decided.disputed)
        return Conflict(key, "value", claimants, claimants[0], decided.rule, decided.since_hlc)


def _one(what: str, name: str, ids: list[str], listing: str) -> str:
    if not ids:
        raise NotFound(f"no {what} {name!r}; see {listing}")
    if len(ids) > 1:
        raise NotFound(f"{what} {name!r} is ambiguous; use one of the ids {', '.join(ids)}")
    return ids[0]
