"""VPCs, subnets, peerings and conflicts as JSON."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any, TypeAlias

from mesh.core.clock import ns_of_hlc
from mesh.core.errors import Refused
from mesh.core.view import Conflict, Subnet, Vpc
from mesh.node.context import NodeContext

Json: TypeAlias = dict[str, Any]


class ObjectService:
    """See the package."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    # ---- VPCs ----

    async def list_vpcs(self) -> list[Json]:
        vpcs = sorted(self._node.view.vpcs.values(), key=lambda vpc: (vpc.name, vpc.id))
        return [self._vpc(vpc) for vpc in vpcs]

    async def list_held(self) -> Json:
        """The names of the VPCs whose endpoints are kept here, and of the others."""
        names: dict[bool, list[str]] = {True: [], False: []}
        for vpc in sorted(self._node.view.vpcs):
            names[self._node.replica.keeps(vpc)].append(self._node.view.names.vpc_text(vpc))
        return {"held": sorted(names[True]), "elsewhere": sorted(names[False])}

    async def get_vpc(self, vpc: str) -> Json:
        return self._vpc(self._node.view.vpc(vpc))

    async def add_vpc(
        self, name: str, vni: int, cidrs: list[str], tenant: str | None = None
    ) -> Json:
        await self._node.submit(
            lambda: self._node.writer.add_vpc(name, vni, cidrs, tenant, now_ns=time.time_ns())
        )
        # Two tenants may use one name.
        catalog = self._node.view.catalog
        named = (self._node.view.vpcs[vpc_id] for vpc_id in catalog.named(name))
        return self._vpc(next(vpc for vpc in named if vpc.tenant == (tenant or "")))

    async def set_vpc(
        self,
        vpc: str,
        name: str | None = None,
        vni: int | None = None,
        cidrs: list[str] | None = None,
        tenant: str | None = None,
    ) -> Json:
        found = self._node.view.vpc(vpc)
        await self._node.submit(
            lambda: self._node.writer.set_vpc(
                found.id, name=name, vni=vni, cidrs=cidrs, tenant=tenant, now_ns=time.time_ns()
            )
        )
        return self._vpc(self._node.view.vpc(found.id))

    async def remove_vpc(self, vpc: str, force: bool = False) -> Json:
        found = self._node.view.vpc(vpc)
        removed = self._vpc(found)
        if not force and not self._node.replica.keeps(found.id):
            raise Refused(
                f"VPC {found.name} is not held here, so its endpoints are not known: run this at a"
                f" node of site {found.site or 'its owner'}, or with --force"
            )
        await self._node.submit(
            lambda: self._node.writer.remove_vpc(found.id, force=force, now_ns=time.time_ns())
        )
        return {**removed, "state": "removed"}

    def _vpc(self, vpc: Vpc) -> Json:
        return {
            "name": vpc.name,
            "id": vpc.id,
            "vni": vpc.vni,
            "cidrs": list(vpc.cidrs),
            "tenant": vpc.tenant or None,
            "by": self._node.view.names.node_text(vpc.by),
            "state": vpc.state,
        }

    # ---- subnets ----

    async def list_subnets(self, vpc: str | None = None) -> list[Json]:
        vpc_id = None if vpc is None else self._node.view.vpc(vpc).id
        found = [self._subnet(subnet) for subnet in self._node.view.subnets(vpc_id)]
        return sorted(found, key=lambda subnet: (subnet["vpc"], subnet["name"], subnet["id"]))

    async def get_subnet(self, vpc: str, subnet: str) -> Json:
        return self._subnet(self._node.view.subnet(vpc, subnet))

    async def add_subnet(
        self,
        name: str,
        vpc: str,
        cidr: str,
        sites: list[str] | None = None,
        restrict: bool = False,
    ) -> Json:
        found = self._node.view.vpc(vpc)
        await self._node.submit(
            lambda: self._node.writer.add_subnet(
                name, found.id, cidr, sites or (), restrict, now_ns=time.time_ns()
            )
        )
        return self._subnet(self._node.view.subnet(found.id, name))

    async def remove_subnet(self, vpc: str, subnet: str) -> Json:
        found = self._node.view.subnet(vpc, subnet)
        removed = self._subnet(found)
        await self._node.submit(
            lambda: self._node.writer.remove_subnet(found.id, found.vpc, now_ns=time.time_ns())
        )
        return {**removed, "state": "removed"}

    def _subnet(self, subnet: Subnet) -> Json:
        return {
            "name": subnet.name,
            "vpc": self._node.view.names.vpc_text(subnet.vpc),
            "id": subnet.id,
            "cidr": subnet.cidr,
            "sites": list(subnet.sites),
            "restrict": subnet.restrict,
            "gateway": subnet.gateway,
            "state": subnet.state,
        }

    # ---- peerings ----

    async def list_peerings(self) -> list[Json]:
        names = self._node.view.names
        return [
            {
                "a": names.vpc_text(peering.a),
                "b": names.vpc_text(peering.b),
                "state": peering.state,
            }
            for peering in self._node.view.peerings()
        ]

    async def add_peering(self, a: str, b: str) -> Json:
        await self._node.submit(lambda: self._node.writer.add_peering(a, b, now_ns=time.time_ns()))
        return self._peering(a, b)

    async def remove_peering(self, a: str, b: str) -> Json:
        await self._node.submit(
            lambda: self._node.writer.remove_peering(a, b, now_ns=time.time_ns())
        )
        return self._peering(a, b)

    def _peering(self, a: str, b: str) -> Json:
        """The peering as A's side sees it now."""
        view = self._node.view
        ours, theirs = view.vpc(a), view.vpc(b)
        pair = {ours.id, theirs.id}
        state = next((p.state for p in view.peerings() if {p.a, p.b} == pair), "removed")
        return {
            "a": view.names.vpc_text(ours.id),
            "b": view.names.vpc_text(theirs.id),
            "state": state,
        }

    # ---- conflicts ----

    async def list_conflicts(self) -> list[Json]:
        return [conflict_json(conflict) for conflict in self._node.view.conflicts()]

    async def resolve_conflict(self, key: str, keep: str) -> Json:
        """`claimants` are those that are left."""
        await self._node.submit(
            lambda: self._node.writer.resolve_conflict(key, keep, now_ns=time.time_ns())
        )
        left = next((c for c in self._node.view.conflicts() if c.key == key), None)
        if left is not None:
            return conflict_json(left)
        return {"key": key, "claimants": [], "winner": keep, "rule": "eviction", "since": None}


def conflict_json(conflict: Conflict) -> Json:
    return {
        "key": conflict.key,
        "claimants": list(conflict.claimants),
        "winner": conflict.winner,
        "rule": conflict.rule,
        "since": time_text(ns_of_hlc(conflict.since_hlc)),
    }


def time_text(time_ns: int) -> str:
    """A time in ISO 8601, UTC, to the millisecond; of a stamp that no clock has, its edge."""
    latest_ns = 253_402_300_799_000_000_000  # the last second of the year 9999
    moment = datetime.fromtimestamp(min(time_ns, latest_ns) // 1_000_000 / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
