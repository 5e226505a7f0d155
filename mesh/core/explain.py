"""Why an address is where it is: the view's half of `weft route explain`, as JSON can hold it."""

from __future__ import annotations

from typing import Any

from mesh.core import keys, model, validate
from mesh.core.ops import NodeId
from mesh.core.view import Endpoint, Subnet, View, Vpc


def explain(view: View, vpc: str, ip: str) -> dict[str, Any]:
    """Every claim known for the address and what became of it.

    `{"vpc", "vpc_id", "vni", "vpc_state", "ip", "subnet": {…} | null, "claims": [best first],
    "winner": {…} | null, "ignored": [{"node", "reason", …}], "evictions": […], "verdict"}`.

    Raises BadInput for an address that is none, NotFound for a VPC that is not there.
    """
    validate.ip("ip", ip)
    found = view.vpc(vpc)
    addr = keys.addr_of(ip)
    subnet = view.subnet_of(found.id, ip)
    ranked = view.claims(found.id, ip)
    claims = [_claim(view, claim, ranked[0]) for claim in ranked]
    counted = {claim.node for claim in ranked}
    ignored = [
        _ignored(view, found, addr, node, claim)
        for node, claim in view.table.claims(found.id, keys.ENDPOINT + addr)
        if node not in counted
    ]
    return {
        "vpc": found.name,
        "vpc_id": found.id,
        "vni": found.vni,
        "vpc_state": found.state,
        "ip": ip,
        "subnet": None if subnet is None else _subnet(subnet),
        "claims": claims,
        "winner": claims[0] if claims else None,
        "ignored": ignored,
        "evictions": _evictions(view, found.id, addr),
        "verdict": _verdict(view, found, subnet, ip, ranked),
    }


def _claim(view: View, claim: Endpoint, best: Endpoint) -> dict[str, Any]:
    outranked_by = None if claim.state == "active" else view.names.node_text(best.node)
    return {
        "node": view.names.node_text(claim.node),
        "site": claim.site,
        "host": claim.host,
        "mac": claim.mac,
        "name": claim.name,
        "mobility": claim.mobility,
        "hlc": claim.hlc,
        "state": claim.state,
        "rule": claim.rule,
        "outranked_by": outranked_by,
    }


def _subnet(subnet: Subnet) -> dict[str, Any]:
    return {
        "id": subnet.id,
        "name": subnet.name,
        "cidr": subnet.cidr,
        "sites": list(subnet.sites),
        "restrict": subnet.restrict,
        "gateway": subnet.gateway,
    }


def _ignored(view: View, vpc: Vpc, addr: bytes, node: NodeId, claim: model.Claim) -> dict[str, Any]:
    return {
        "node": view.names.node_text(node),
        "mobility": claim.mobility,
        "mac": claim.mac,
        "reason": _reason(view, vpc, addr, node, claim),
    }


def _reason(view: View, vpc: Vpc, addr: bytes, node: NodeId, claim: model.Claim) -> str:
    """The first rule by which a claim does not count, in the order in which the view judges."""
    layout = view.catalog.layout(vpc.id)
    subnet = layout.at(addr)
    if subnet is None:
        return "in no installed subnet of the VPC"
    if layout.claimable(addr) is None:
        return "an address that cannot be claimed: gateway, network or broadcast"
    if not view.catalog.reads(node):
        return "its node is not in the roster or forgotten"
    site = view.members[node].site
    if not vpc.admits(site):
        return f"the VPC does not admit site {site}"
    if not subnet.admits(site):
        return f"the subnet is restricted to {', '.join(subnet.sites)}"
    hidden = view.catalog.hidden_up_to(vpc.id, addr, node)
    return f"evicted up to mobility {hidden}; it has {claim.mobility}"


def _evictions(view: View, vpc: str, addr: bytes) -> list[dict[str, Any]]:
    return [
        {
            "node": view.names.node_text(node),
            "mobility": eviction.mobility,
            "by": view.names.node_text(writer),
            "hlc": eviction.hlc,
            "counts": view.catalog.may_evict(vpc, writer, node),
        }
        for node, by_writer in sorted(view.catalog.evictions(vpc, addr).items())
        for writer, eviction in sorted(by_writer.items())
    ]


def _verdict(
    view: View, vpc: Vpc, subnet: Subnet | None, ip: str, ranked: tuple[Endpoint, ...]
) -> str:
    if subnet is None:
        return f"{ip} lies in no installed subnet of VPC {vpc.name}: dropped"
    if ip == subnet.gateway:
        return f"{ip} is the gateway address of subnet {subnet.name}: answered by every gateway"
    if not ranked:
        if len(subnet.sites) > 1:
            return f"nobody claims {ip}, and subnet {subnet.name} is stretched: dropped at once"
        home = subnet.sites[0]
        return (
            f"nobody claims {ip}: to the home of subnet {subnet.name}, site {home}; dropped there"
        )
    best = ranked[0]
    behind = "attached to it" if best.host is None else f"behind it on host {best.host}"
    text = (
        f"{ip} is at site {best.site}, gateway {view.names.node_text(best.node)}, {behind} "
        f"({best.rule})"
    )
    if vpc.state == "vni-conflict":
        text += f"; VPC {vpc.name} lost VNI {vpc.vni} and is not forwarded between sites"
    return text
