"""Installed rows, counters and audits as JSON; where an address goes, and why."""

from __future__ import annotations

from typing import Any, TypeAlias

from dataplane.fib.rows import EndpointKey, group_of, ip_number, ip_text
from mesh.core.errors import BadInput
from mesh.core.explain import explain
from mesh.node.context import NodeContext
from mesh.node.service.endpoints import EndpointService

Json: TypeAlias = dict[str, Any]


class DataplaneService:
    """See the package."""

    def __init__(self, node: NodeContext, endpoints: EndpointService) -> None:
        self._node = node
        self._endpoints = endpoints

    async def show(self) -> Json:
        forwarder = self._node.forwarder
        tables = await forwarder.show()
        usages = await forwarder.read(lambda backend: backend.usages())
        return {
            "mode": forwarder.backend.mode,
            "reason": forwarder.reason,
            "usage": {name: {"used": u.used, "max": u.max} for name, u in usages.items()},
            "tables": tables,
        }

    async def stats(self) -> Json:
        return await self._node.forwarder.read(lambda backend: backend.counters())

    async def audit(self, repair: bool = False) -> Json:
        """What differed; `clean` says whether anything does after the call."""
        report = await self._node.forwarder.audit(repair=repair)
        return {
            "clean": report.clean or repair,
            "repaired": repair and not report.clean,
            "missing": list(report.missing),
            "stale": list(report.stale),
            "wrong": list(report.wrong),
            "counts": {
                "missing": report.missing_count,
                "stale": report.stale_count,
                "wrong": report.wrong_count,
            },
        }

    async def explain(self, vpc: str | None = None, ip: str | None = None) -> Json:
        """The view's reasons, and beside them the next hops as compiled and the row as installed.

        `next_hop`: `{"name", "gateways": [{"node", "site", "underlay", "up"}]}`, or null when the
        address is not reached through a gateway.
        """
        if vpc is None or ip is None:
            raise BadInput("query: vpc and ip are needed: give both")
        answer = explain(self._node.view, vpc, ip)
        dots = {c["node"]: c["dot"] for c in self._endpoints.claims(answer["vpc_id"], ip)}
        for claim in answer["claims"]:
            claim["dot"] = dots.get(claim["node"])
            claim["signer"] = claim["node"]
        domain = self._node.forwarding.domain(answer["vpc_id"])
        row: Json | None = None
        if domain is not None and ":" not in ip:
            row = await self._node.forwarder.read(lambda backend: backend.explain(domain, ip))
        return {**answer, "next_hop": self._next_hop(domain, ip), "row": row}

    def _next_hop(self, domain: int | None, ip: str) -> Json | None:
        if domain is None or ":" in ip:
            return None
        tables = self._node.forwarding.tables()
        number = ip_number(ip)
        endpoint = tables.endpoints.get(EndpointKey(domain, number).pack())
        if endpoint is not None:
            group_id = group_of(endpoint)
        else:
            covering = [
                (key.prefix_bits, row.group)
                for key, row in tables.subnets.items()
                if key.vni == domain and (number ^ key.network) >> (32 - key.prefix_bits) == 0
            ]
            group_id = max(covering)[1] if covering else 0
        group = tables.groups.get(group_id)
        if group is None:
            return None
        connected = {peer.node for peer in self._node.transport.peers()}
        gateways = []
        for gateway_id in group.gateways:
            gateway = tables.gateways.get(gateway_id)
            if gateway is not None:
                gateways.append(
                    {
                        "node": self._node.view.names.node_text(gateway.node),
                        "site": gateway.site,
                        "underlay": ip_text(gateway.underlay),
                        "up": gateway.node in connected,
                    }
                )
        return {"name": group.name, "gateways": gateways}
