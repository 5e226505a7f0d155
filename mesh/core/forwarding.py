"""From the view, liveness and this machine's attachments to the facts that rows are compiled from.

- A VPC that lost its VNI is not forwarded. Subnets that are not installed are no fact at all.
- An endpoint is where its winning claim says: at the claim's gateway when it is attached there, at
  any gateway of the site when it has a host behind them. Where this node is one of several writers
  of the winning claim, the endpoint is here. Elsewhere it is at the best of them that is reached;
  a retired one has no gateway and is never chosen while another is left.
- The compiler blocks an attached port unless the winning claim is this node's. Without a claim
  nothing of it is carried either: an endpoint that was removed or evicted stops where it is
  attached, too, and what it sends does not fall to the machine's own network.
- Liveness only says which of a site's gateways, or of a claim's writers, are preferred. Endpoints
  of a site that is not reached keep their rows. A gateway of which nothing is known counts as up.
- Two gateways send each other VXLAN where either of them says so, else Geneve.
- What no row can say has none: IPv4 written as IPv6, which no node of ours takes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from dataplane.fib.compile import Compiler
from dataplane.fib.facts import (
    AttachmentFact,
    EndpointFact,
    GatewayFact,
    SubnetFact,
    VpcFact,
)
from dataplane.fib.rows import MAPPED, FibDelta, Tables, addr_of, mac_bytes, prefix_of
from mesh.core import keys, validate
from mesh.core.errors import BadInput
from mesh.core.ops import NodeId
from mesh.core.view import Endpoint, View, ViewDelta

ENDPOINTS_AT_ONCE: Final = 1024
"""Endpoints that a caller with other things to do takes up in one go: 1 ms, and 15 where each has
several claims."""
GENEVE: Final = "geneve"
_IPV4_KEY_BYTES: Final = 5
_IPV4_KEYS: Final = {_IPV4_KEY_BYTES}


class Forwarding:
    """Keeps one compiler fed. Call `update` after the view has changed."""

    def __init__(self, self_node: NodeId, self_site: str, view: View) -> None:
        self._node = self_node
        self._view = view
        self._reader = view.reader()
        self._compiler = Compiler(self_node, self_site)
        self._down: set[NodeId] = set()
        self._shared: defaultdict[NodeId, set[tuple[str, bytes]]] = defaultdict(set)
        """Node → (VPC, key) of endpoints elsewhere of which it is one of several writers."""
        self._writers: dict[str, dict[bytes, tuple[NodeId, ...]]] = {}
        """The same by VPC and key."""
        self._attached: set[str] = set()
        self._told = False
        self._encapsulation = GENEVE
        """This gateway's own."""
        self._waiting = ViewDelta()
        """Endpoints to be taken up."""

    # --- what comes in -----------------------------------------------------------------------

    @property
    def behind(self) -> bool:
        """Whether endpoints are left that `update` was not allowed to take up yet."""
        return bool(self._waiting.endpoints)

    def update(self, endpoints_max: int | None = None) -> bool:
        """Take up what changed in the view, but of the endpoints no more than so many. Whether the
        compiler was told anything, here or by the other methods, since the last call."""
        if self._reader:
            self._take_up(self._reader.take())
        left = sys.maxsize if endpoints_max is None else endpoints_max
        while left > 0 and self._waiting.endpoints:
            vpc, touched = next(iter(self._waiting.endpoints.items()))
            count = min(left, len(touched))
            if count == len(touched):
                del self._waiting.endpoints[vpc]
                self._tell_endpoints(vpc, touched)
            else:
                self._tell_endpoints(vpc, [touched.popitem()[0] for _ in range(count)])
            left -= count
        told, self._told = self._told, False
        return told

    def _take_up(self, delta: ViewDelta) -> None:
        gateways = set(delta.gateways)
        own = self._view.gateways.get(self._node)
        encapsulation = own.encapsulation if own is not None else GENEVE
        if encapsulation != self._encapsulation:
            self._encapsulation = encapsulation
            gateways.update(self._view.gateways)
        for node in sorted(gateways):
            self._tell_gateway(node)
        for vpc in sorted(delta.vpcs):
            self._tell_vpc(vpc)
        for subnet in sorted(delta.subnets):
            self._tell_subnet(subnet)
        for vpc, touched in delta.endpoints.items():
            self._waiting.touch(vpc, touched)

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
        or a MAC that is none; nothing has changed then."""
        fact = AttachmentFact(vpc, ip, mac, ifname)
        addr_of(ip), mac_bytes(mac)
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

    def take_delta(self, endpoints_max: int | None = None) -> FibDelta:
        """Rows that changed since the last call (or since the beginning); of endpoints no more
        than so many, unless they hang together. Falsy once there are none."""
        return self._compiler.take_delta(endpoints_max)

    def forget_delta(self) -> None:
        """As `take_delta` for whoever takes all rows instead."""
        self._compiler.forget_delta()

    def tables(self) -> Tables:
        """All rows, as live read-only mappings."""
        return self._compiler.tables()

    def snapshot(self) -> Tables:
        """All rows as they are now, whatever changes after: for another thread."""
        return self._compiler.snapshot()

    def domain(self, vpc: str) -> int | None:
        """The number of the VPC in row keys: its VNI, or a private one if it may not use it."""
        return self._compiler.domain(vpc)

    def apart(self) -> list[NodeId]:
        """Gateways whose underlay address is IPv4 where this one's is IPv6, or the other way round:
        no tunnel leads there. In order of their ids."""
        own = self._view.gateways.get(self._node)
        if own is None or not own.underlay:
            return []
        return sorted(
            node
            for node, gateway in self._view.gateways.items()
            if gateway.underlay and (":" in gateway.underlay) != (":" in own.underlay)
        )

    # --- facts -------------------------------------------------------------------------------

    def _tell_gateway(self, node: NodeId) -> None:
        gateway = self._view.gateways.get(node)
        fact = None
        if gateway is not None and self._carries(node):
            up = node not in self._down
            vxlan = "vxlan" in (gateway.encapsulation, self._encapsulation)
            fact = GatewayFact(node, gateway.site, gateway.underlay, up, vxlan)
        self._compiler.set_gateway(node, fact)
        for vpc, key in sorted(self._shared.get(node, ())):
            self._tell_endpoint(vpc, key)
        self._told = True

    def _tell_vpc(self, vpc: str) -> None:
        live = self._view.vpcs.get(vpc)
        fact = None if live is None else VpcFact(vpc, live.vni, live.state == "active", live.sites)
        self._compiler.set_vpc(vpc, fact)
        self._told = True

    def _tell_subnet(self, subnet: str) -> None:
        live = self._view.subnet_by_id(subnet)
        fact = None
        if live is not None and live.state == "active" and _has_row(live.cidr):
            fact = SubnetFact(subnet, live.vpc, live.cidr, live.sites, live.gateway)
        self._compiler.set_subnet(subnet, fact)
        self._told = True

    def _tell_endpoints(self, vpc: str, touched: Iterable[bytes]) -> None:
        """Take the plain ones as they come, all of one gateway at once, the others one by one."""
        wanted = list(touched)
        ordinary = _IPV4_KEYS.issuperset(map(len, wanted))
        if not ordinary:
            wanted = [key for key in wanted if not key.startswith(MAPPED, 1)]
        ipv4 = wanted if ordinary else [k for k in wanted if len(k) == _IPV4_KEY_BYTES]
        plain = self._view.table.plain(vpc, ipv4)
        members = self._view.catalog.members
        if vpc in self._writers:
            for key in self._writers[vpc].keys() & wanted:
                self._note_writers(vpc, key, ())
        for node, macs in plain.macs.items():
            self._compiler.set_endpoints(vpc, members[node].site, node, macs)
        if plain.free:
            self._compiler.drop_endpoints(vpc, [key[1:] for key in plain.free])
        for key in plain.rest:
            self._tell_endpoint(vpc, key)
        for key in () if ordinary else wanted:
            if len(key) != _IPV4_KEY_BYTES:
                self._tell_endpoint(vpc, key)
        self._told |= bool(wanted)

    def _tell_endpoint(self, vpc: str, key: bytes) -> None:
        ip = keys.ip_of(key[1:])
        claims = self._view.claims(vpc, ip)
        fact: EndpointFact | None = None
        writers: tuple[NodeId, ...] = ()
        if claims:
            winner, gateway = claims[0], None
            if winner.host is None:
                writers = self._writers_of(claims)
                gateway = self._best(writers)
            fact = EndpointFact(vpc, ip, winner.site, gateway, winner.mac)
        self._note_writers(vpc, key, writers if len(writers) > 1 else ())
        self._compiler.set_endpoint(vpc, ip, fact)

    def _writers_of(self, claims: tuple[Endpoint, ...]) -> tuple[NodeId, ...]:
        """The nodes that the winning claim is attached to, best first; only this one if it is.
        Of the site's claims only those that say the same: another MAC is another workload."""
        active = [claim for claim in claims if claim.state == "active"]
        if any(claim.node == self._node for claim in active):
            return (self._node,)
        said = active[0].mac, active[0].host
        return tuple(claim.node for claim in active if (claim.mac, claim.host) == said)

    def _best(self, writers: tuple[NodeId, ...]) -> NodeId:
        """The first that is reached; else the first that carries traffic at all; else the first."""
        gateways = [node for node in writers if self._carries(node)]
        up = (node for node in gateways if node not in self._down)
        return next(up, gateways[0] if gateways else writers[0])

    def _carries(self, node: NodeId) -> bool:
        """Whether the node is a gateway that rows can lead to."""
        gateway = self._view.gateways.get(node)
        known = gateway is not None and gateway.encapsulation in validate.ENCAPSULATIONS
        return gateway is not None and known and _has_address(gateway.underlay)

    def _note_writers(self, vpc: str, key: bytes, writers: tuple[NodeId, ...]) -> None:
        noted = self._writers.get(vpc)
        if noted is not None and key in noted:
            for node in noted.pop(key):
                self._shared[node].discard((vpc, key))
                if not self._shared[node]:
                    del self._shared[node]
            if not noted:
                del self._writers[vpc]
        for node in writers:
            self._shared[node].add((vpc, key))
        if writers:
            self._writers.setdefault(vpc, {})[key] = writers


def _has_row(cidr: str) -> bool:
    try:
        prefix_of(cidr)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=4096)
def _has_address(underlay: str) -> bool:
    """Whether tunnels can lead to this: a gateway says what it likes of itself."""
    try:
        validate.underlay_ip("underlay", underlay)
    except BadInput:
        return False
    return True
