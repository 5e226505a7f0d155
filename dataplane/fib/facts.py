"""What the compiler is told: plain facts read from the view, from liveness and from this machine.

Addresses and MACs are text in canonical form, as the view shows them. The compiler parses them and
raises `ValueError` for a fact it cannot install, before it has changed anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GatewayFact:
    """A node that carries traffic for `site`; `up` is soft state and may be wrong."""

    id: bytes  # 16 bytes, the node id
    site: str
    underlay: str  # IP that its peers send to
    up: bool
    vxlan: bool = False  # it is sent VXLAN instead of Geneve, and sends that


@dataclass(frozen=True, slots=True)
class VpcFact:
    """A VPC. `forwarded` is False when it has lost its VNI to another VPC: it fails closed."""

    id: str
    vni: int
    forwarded: bool = True
    sites: tuple[str, ...] = ()  # that may have endpoints in it; empty: all


@dataclass(frozen=True, slots=True)
class SubnetFact:
    """A subnet; one site: homed there, several: stretched over them."""

    id: str
    vpc: str
    cidr: str
    sites: tuple[str, ...]
    gateway_ip: str  # the first host, which pods use as their default route


@dataclass(frozen=True, slots=True)
class EndpointFact:
    """The winning claim for (vpc, ip).

    `gateway` is the node the endpoint is directly attached to; None: any gateway of `site`.
    """

    vpc: str
    ip: str
    site: str
    gateway: bytes | None
    mac: str


@dataclass(frozen=True, slots=True)
class AttachmentFact:
    """An interface of this machine that leads to the workload with this address."""

    vpc: str
    ip: str
    mac: str
    ifname: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything at once, in any order: the argument of `compile_all`."""

    self_id: bytes
    self_site: str
    gateways: tuple[GatewayFact, ...] = ()
    vpcs: tuple[VpcFact, ...] = ()
    subnets: tuple[SubnetFact, ...] = ()
    endpoints: tuple[EndpointFact, ...] = ()
    attachments: tuple[AttachmentFact, ...] = ()
