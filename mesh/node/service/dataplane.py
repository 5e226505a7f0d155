"""Installed rows, counters and audits as JSON; where an address goes, and why."""

from __future__ import annotations

import re
from typing import Any, Final, TypeAlias

from dataplane.drops import DropEvent
from dataplane.fib.rows import EndpointKey, address_of, address_text, group_of, in_prefix
from mesh.core.errors import BadInput
from mesh.core.explain import explain
from mesh.node.context import NodeContext
from mesh.node.service.endpoints import EndpointService
from mesh.node.service.objects import time_text

Json: TypeAlias = dict[str, Any]

_NUMBER: Final = re.compile(r"[0-9]{1,18}")


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
        """Counters, with VPCs by name where they have one here."""
        counters = await self._node.forwarder.read(lambda backend: backend.counters())
        names = self._vpcs_by_domain()
        vpcs = {names.get(int(vni), f"VNI {vni}"): row for vni, row in counters["vpcs"].items()}
        return {**counters, "vpcs": vpcs}

    async def drops(self) -> Json:
        """What is dropped, summed by what packets have in common, the latest first. `next`: see
        `drops_after`."""
        log = self._node.forwarder.drops
        return {"next": log.count, "drops": self._drops_json(log.sums())}

    async def drops_after(self, number: str) -> Json:
        """The drops from number `next` of the last answer on, at once if there are any; none after
        20 s. `missed`: how many of them are not known any more."""
        if not _NUMBER.fullmatch(number):
            raise BadInput(f"after: {number}: give the `next` of the last answer")
        log = self._node.forwarder.drops
        events, missed = await log.after(int(number))
        return {"next": log.count, "missed": missed, "drops": self._drops_json(events)}

    def _drops_json(self, events: list[DropEvent]) -> list[Json]:
        view = self._node.view
        vpcs = self._vpcs_by_domain()
        peers = {g.underlay: view.names.node_text(g.node) for g in view.gateways.values()}
        return [
            {
                "reason": event.reason.text,
                "vpc": vpcs.get(event.vni),
                "vni": event.vni or None,
                "src": event.src or None,
                "dst": event.dst or None,
                "peer": peers.get(event.outer, event.outer) or None,
                "interface": event.ifname or None,
                "count": event.packets,
                "at": time_text(event.at_ns),
            }
            for event in events
        ]

    def _vpcs_by_domain(self) -> dict[int, str]:
        node = self._node
        domains = {vpc: node.forwarding.domain(vpc) for vpc in node.view.vpcs}
        return {d: node.view.names.vpc_text(v) for v, d in domains.items() if d is not None}

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
        if domain is not None:
            row = await self._node.forwarder.read(lambda backend: backend.explain(domain, ip))
        return {**answer, "next_hop": self._next_hop(domain, ip), "row": row}

    def _next_hop(self, domain: int | None, ip: str) -> Json | None:
        if domain is None:
            return None
        tables = self._node.forwarding.tables()
        number = address_of(ip)
        endpoint = tables.endpoints.get(EndpointKey(domain, number).pack())
        if endpoint is not None:
            group_id = group_of(endpoint)
        else:
            covering = [
                (key.prefix_bits, row.group)
                for key, row in tables.subnets.items()
                if key.vni == domain and in_prefix(number, key)
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
                        "underlay": address_text(gateway.underlay),
                        "up": gateway.node in connected,
                    }
                )
        return {"name": group.name, "gateways": gateways}
