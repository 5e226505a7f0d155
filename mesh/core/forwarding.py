"""From the view, liveness and this machine's attachments to the facts that rows are compiled from.

- A VPC that lost its VNI is not forwarded. Subnets that are not installed are no fact at all.
- An endpoint is where its winning claim says: at the claim's gateway when it is attached there, at
  any gateway of the site when it has a host behind them. Where this node is one of several writers
  of the winning claim, the endpoint is here.
- The compiler blocks an attached port unless the winning claim is this node's. Without a claim
  nothing of it is carried either: an endpoint that was removed or evicted stops where it is
  attached, too, and what it sends does not fall to the machine's own network.
- Liveness only says which of a site's gateways are preferred. Endpoints of a site that is not
  reached keep their rows. A gateway of which nothing is known counts as up.
- IPv6 has no rows yet.
"""

from __future__ import annotations

from dataplane.fib.compile import Compiler
from dataplane.fib.facts import (
    AttachmentFact,
    EndpointFact,
    GatewayFact,
    SubnetFact,
    VpcFact,
)
from dataplane.fib.rows import FibDelta, Tables, ip_number, mac_bytes
from mesh.core.ops import NodeId
from mesh.core.view import View


class Forwarding:
    """Keeps one compiler fed. Call `update` after the view has changed."""

    def __init__(self, self_node: NodeId, self_site: str, view: View) -> None:
        self._node = self_node
        self._view = view
        self._reader = view.reader()
        self._compiler = Compiler(self_node, self_site)
        self._down: set[NodeId] = set()
        self._attached: set[str] = set()
        self._told = False

    # --- what comes in -----------------------------------------------------------------------

    def update(self) -> bool:
        """Take up what changed in the view. Whether the compiler was told anything, here or by the
        other methods, since the last call."""
        delta = self._reader.take()
        for node in sorted(delta.gateways):
            self._tell_gateway(node)
        for vpc in sorted(delta.vpcs):
            self._tell_vpc(vpc)
        for subnet in sorted(delta.subnets):
            self._tell_subnet(subnet)
        for vpc, ip in sorted(delta.endpoints):
            self._tell_endpoint(vpc, ip)
        told, self._told = self._told, False
        return told

    def set_live(self, node: NodeId, live: bool) -> None:
        """Whether the node is reached now."""
        if live == (node not in self._down):
            return
        if live:
            self._down.discard(node)
        else:
            self._down.add(node)
        self._tell_gateway(node)

    def attach(self, ifname: str, vpc: str, ip: str, mac: str) -> None:
        """An interface of this machine leads to the endpoint. Raises ValueError for an address
        that is no IPv4 or a MAC that is none; nothing has changed then."""
        fact = AttachmentFact(vpc, ip, mac, ifname)
        ip_number(ip), mac_bytes(mac)
        self.detach(ifname)
        self._attached.add(ifname)
        self._compiler.set_attachment(ifname, fact)
        self._told = True

    def detach(self, ifname: str) -> None:
        """The interface leads nowhere any more. Nothing if it did not."""
        if ifname not in self._attached:
            return
        self._attached.remove(ifname)
        self._compiler.set_attachment(ifname, None)
        self._told = True

    # --- what goes out -----------------------------------------------------------------------

    def take_delta(self) -> FibDelta:
        """Rows that changed since the last call (or since the beginning)."""
        return self._compiler.take_delta()

    def tables(self) -> Tables:
        """All rows, as live read-only mappings."""
        return self._compiler.tables()

    def domain(self, vpc: str) -> int | None:
        """The number of the VPC in row keys: its VNI, or a private one if it may not use it."""
        return self._compiler.domain(vpc)

    # --- facts -------------------------------------------------------------------------------

    def _tell_gateway(self, node: NodeId) -> None:
        gateway = self._view.gateways.get(node)
        fact = None
        if gateway is not None and _is_ipv4(gateway.underlay):
            up = node not in self._down
            fact = GatewayFact(node, gateway.site, gateway.underlay, up)
        self._compiler.set_gateway(node, fact)
        self._told = True

    def _tell_vpc(self, vpc: str) -> None:
        live = self._view.vpcs.get(vpc)
        fact = None if live is None else VpcFact(vpc, live.vni, live.state == "active")
        self._compiler.set_vpc(vpc, fact)
        self._told = True

    def _tell_subnet(self, subnet: str) -> None:
        live = self._view.subnet_by_id(subnet)
        fact = None
        if live is not None and live.state == "active" and _is_ipv4(live.gateway):
            fact = SubnetFact(subnet, live.vpc, live.cidr, live.sites, live.gateway)
        self._compiler.set_subnet(subnet, fact)
        self._told = True

    def _tell_endpoint(self, vpc: str, ip: str) -> None:
        if not _is_ipv4(ip):
            return
        claims = self._view.claims(vpc, ip)
        fact = None
        if claims:
            winner = claims[0]
            here = any(c.node == self._node and c.state == "active" for c in claims)
            attached_to = self._node if here else winner.node
            gateway = attached_to if winner.host is None else None
            fact = EndpointFact(vpc, ip, winner.site, gateway, winner.mac)
        self._compiler.set_endpoint(vpc, ip, fact)
        self._told = True


def _is_ipv4(ip: str) -> bool:
    return ip != "" and ":" not in ip
