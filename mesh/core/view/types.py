"""What readers of the view get: plain frozen values, decided and ranked.

Ids of VPCs and subnets are 32 hex digits, node ids 16 bytes, addresses and CIDRs canonical text,
stamps (`hlc`) as in `mesh.core.clock`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from mesh.core import keys
from mesh.core.ops import NodeId

VpcState: TypeAlias = Literal["active", "vni-conflict"]
SubnetState: TypeAlias = Literal["active", "overlap", "outside"]
EndpointState: TypeAlias = Literal["active", "shadowed", "conflict"]
PeeringState: TypeAlias = Literal["half", "active"]
ConflictKind: TypeAlias = Literal["endpoint", "vni", "subnet", "value"]


@dataclass(frozen=True, slots=True)
class Vpc:
    """A live VPC. In state `vni-conflict` it is not forwarded between sites."""

    id: str
    name: str
    vni: int
    cidrs: tuple[str, ...]
    tenant: str
    """Empty: none given."""
    site: str
    """The owner: its creator's site. Empty while the creator is not in the roster yet."""
    by: NodeId
    """The creator."""
    sites: tuple[str, ...]
    """Sites that may have endpoints in it, sorted; empty: all."""
    state: VpcState
    revision: int
    hlc: int
    """When the VPC took its VNI: the tie-break between two VPCs of one VNI."""

    def admits(self, site: str) -> bool:
        """Whether nodes of `site` may claim endpoints in it."""
        return not self.sites or site in self.sites


@dataclass(frozen=True, slots=True)
class Subnet:
    """A live subnet. Only state `active` is installed: `overlap` lost against another subnet of
    the VPC, `outside` does not lie within one of the VPC's CIDRs (any more)."""

    id: str
    vpc: str
    name: str
    cidr: str
    sites: tuple[str, ...]
    """Home sites, sorted: one, or several when it is stretched."""
    restrict: bool
    """Only the home sites may have endpoints in it."""
    state: SubnetState
    revision: int
    hlc: int
    """When it was made: the earlier of two that overlap is installed."""
    gateway: str
    """The first host. It answers for the data plane and cannot be claimed."""

    def admits(self, site: str) -> bool:
        """Whether nodes of `site` may claim endpoints in it (the VPC must admit them, too)."""
        return not self.restrict or site in self.sites


class Endpoint(NamedTuple):
    """One node's claim for (VPC, IP) as it stands among the others."""

    vpc: str
    ip: str
    mac: str
    name: str
    """Empty: none given."""
    node: NodeId
    site: str
    host: str | None
    """The machine behind the gateway that has it; None: it is attached to the gateway itself."""
    mobility: int
    hlc: int
    labels: tuple[tuple[str, str], ...]
    """Sorted by name."""
    state: EndpointState
    rule: str
    """In words: by which rule it won or lost."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """An active member's registration of itself."""

    node: NodeId
    name: str
    site: str
    underlay: str
    """Empty: it carries no traffic."""
    addrs: tuple[str, ...]
    """Multiaddrs at which it listens."""
    version: str
    hlc: int
    encapsulation: str
    """What its tunnels are made of, both ways: geneve, vxlan, or a later version's."""


@dataclass(frozen=True, slots=True)
class Peering:
    """Two live VPCs (ids). Active: both halves live, and a < b. Half: only a's side says so."""

    a: str
    b: str
    state: PeeringState


@dataclass(frozen=True, slots=True)
class Conflict:
    """Something two writers did without knowing of each other, and how it was decided.

    Endpoints and values: claimants are gateway names. VNIs and subnets: key texts of the objects.
    """

    key: str
    """Key text of what is contested; of the loser, where each claimant is an object of its own."""
    kind: ConflictKind
    claimants: tuple[str, ...]
    """Best first."""
    winner: str
    rule: str
    since_hlc: int
    """The later claim's stamp: before it there was nothing to decide."""


class ViewDelta:
    """What may have changed since the last delta: read the view again for these, and only these.

    It may name more than has really changed, never less.
    """

    __slots__ = (
        "conflicts",
        "endpoints",
        "gateways",
        "interests",
        "peerings",
        "subnets",
        "vpcs",
    )

    def __init__(self) -> None:
        self.vpcs: set[str] = set()
        self.subnets: set[str] = set()
        self.endpoints: dict[str, dict[bytes, None]] = {}
        """VPC id → keys of endpoint claims, in the order in which they came. No VPC without a
        key."""
        self.gateways: set[NodeId] = set()
        self.interests: set[tuple[NodeId, str]] = set()
        """(node, VPC id) of what nodes say of the shards that they keep."""
        self.peerings = False
        self.conflicts = False

    def places(self) -> list[tuple[str, str]]:
        """`endpoints` as (VPC id, IP text), sorted."""
        return sorted(
            (vpc, keys.ip_of(key[1:])) for vpc, touched in self.endpoints.items() for key in touched
        )

    def touch(self, vpc: str, touched: Iterable[bytes]) -> None:
        """Name these keys of the VPC."""
        named = touched if isinstance(touched, dict) else dict.fromkeys(touched)
        if named:
            self.endpoints.setdefault(vpc, {}).update(named)

    def __bool__(self) -> bool:
        return bool(
            self.endpoints
            or self.vpcs
            or self.subnets
            or self.gateways
            or self.interests
            or self.peerings
            or self.conflicts
        )
