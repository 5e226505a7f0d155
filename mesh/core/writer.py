"""What a node's own users ask for, as writes to its own chains.

Every method checks the request against what is visible here, and answers the list of writes that
carries it out: empty when it is so already. Nothing is changed by the method itself: the caller
gives the writes to the replica, whose changes reach the view. `now_ns` is wall-clock time.

Raises, and the writer survives all: BadInput (malformed), NotFound (no such object, or an
ambiguous name), Refused (well formed, but what is visible says no).

VPCs and subnets are given by name or id.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace

from mesh.core import keys, model, validate
from mesh.core.author import Author, next_revision
from mesh.core.claiming import EndpointWriter
from mesh.core.clock import HybridClock
from mesh.core.damping import HeldMove, MoveDamper
from mesh.core.errors import BadInput, NotFound, Refused, RequestError
from mesh.core.housekeeping import Housekeeper
from mesh.core.importing import EndpointSpec
from mesh.core.keytext import parse_key
from mesh.core.model import PeeringRecord, Registration, SubnetRecord, VpcRecord
from mesh.core.ops import NodeId, Op
from mesh.core.view import Subnet, View, Vpc
from mesh.core.view.layout import span, within


class Writer:
    """Turns requests into writes for one node. `nonce(n)` gives n unguessable bytes."""

    def __init__(
        self,
        node: NodeId,
        site: str,
        view: View,
        clock: HybridClock,
        nonce: Callable[[int], bytes],
    ) -> None:
        self._author = Author(node, site, view, clock, nonce)
        self._view = view
        self._registration: Registration | None = None
        self._damper = MoveDamper()
        self._endpoints = EndpointWriter(self._author, self._damper)
        self._housekeeper = Housekeeper(self._author, self._damper)

    # --- the gateway itself ------------------------------------------------------------------

    def register_gateway(
        self,
        underlay: str,
        addrs: Sequence[str],
        version: str,
        encapsulation: str = "geneve",
        *,
        now_ns: int,
    ) -> list[Op]:
        """Say where this gateway is reached: underlay IP (empty: it carries no traffic),
        multiaddrs, version of the software, what its tunnels are made of."""
        registration = Registration(0, underlay, tuple(addrs), version, encapsulation)
        if registration != self._registration:  # a node says it over and over
            if underlay:
                validate.underlay_ip("underlay", underlay)
            for addr in addrs:
                validate.printable("listen", addr)
            if len(addrs) > model.ADDRS_MAX:
                words = f"give at most {model.ADDRS_MAX} addresses"
                raise validate.bad("listen", len(addrs), words)
            validate.printable("version", version)
            validate.encapsulation("encapsulation", encapsulation)
            self._registration = registration
        return self._housekeeper.register(registration, now_ns)

    def set_interest(self, vpcs: Set[str]) -> None:
        """The VPCs of which this gateway keeps the shard: housekeeping has it said."""
        self._housekeeper.set_interest(vpcs)

    # --- VPCs --------------------------------------------------------------------------------

    def add_vpc(
        self, name: str, vni: int, cidrs: Iterable[str], tenant: str | None = None, *, now_ns: int
    ) -> list[Op]:
        """A new VPC, owned by this site. Of one name and tenant there is one at most."""
        validate.name("name", name)
        validate.vni("vni", vni)
        networks = validate.pod_cidrs("cidr", cidrs)
        tenant = validate.optional_name("tenant", tenant)
        for vpc_id in self._view.catalog.named(name):
            vpc = self._view.vpcs[vpc_id]
            if vpc.tenant == tenant:
                if (vpc.vni, vpc.cidrs) == (vni, networks):
                    return []
                raise Refused(
                    f"VPC {name} exists with VNI {vpc.vni} and {', '.join(vpc.cidrs)}; "
                    "change it with weft vpc set"
                )
        self._require_free(vni)
        author = self._author
        nonce = author.nonce(model.NONCE_BYTES)
        hlc = author.stamp(now_ns)
        record = VpcRecord(
            revision=1,
            hlc=hlc,
            deleted=False,
            creator=author.node,
            nonce=nonce,
            name=name,
            vni=vni,
            cidrs=networks,
            tenant=tenant,
            since=hlc,
        )
        return [author.put(keys.VpcKey(model.vpc_id(author.node, nonce)), record)]

    def set_vpc(
        self,
        vpc: str,
        *,
        name: str | None = None,
        vni: int | None = None,
        cidrs: Iterable[str] | None = None,
        tenant: str | None = None,
        sites: Iterable[str] | None = None,
        now_ns: int,
    ) -> list[Op]:
        """Change what is given, keep the rest. `sites`: who may have endpoints; empty: all."""
        found = self._view.vpc(vpc)
        self._author.require_owner(found)
        record = self._view.catalog.vpc_record(found.id)
        assert record is not None, "a VPC in the view has a record that counts"
        wanted = record
        if name is not None:
            wanted = replace(wanted, name=validate.name("name", name))
        if vni is not None:
            wanted = replace(wanted, vni=validate.vni("vni", vni))
        if cidrs is not None:
            wanted = replace(wanted, cidrs=validate.pod_cidrs("cidr", cidrs))
            self._require_covered(found, wanted.cidrs)
        if tenant is not None:
            wanted = replace(wanted, tenant=validate.optional_name("tenant", tenant))
        if sites is not None:
            wanted = replace(wanted, sites=validate.names("site", sites))
            self._author.require_sites(wanted.sites)
        if wanted == record:
            return []
        known = self._author.known(found.id, self._view.catalog.vpc_records(found.id))
        hlc = self._author.stamp(now_ns, (other.hlc for other in known))
        if wanted.vni != record.vni:
            self._require_free(wanted.vni)
            wanted = replace(wanted, since=hlc)
        wanted = replace(wanted, revision=next_revision(known), hlc=hlc)
        return [self._author.put(keys.VpcKey(found.id), wanted)]

    def remove_vpc(self, vpc: str, *, force: bool = False, now_ns: int) -> list[Op]:
        """Remove a VPC for good; with endpoints in it only by `force`."""
        found = self._view.vpc(vpc)
        self._author.require_owner(found)
        count = sum(1 for _ in self._view.endpoints(found.id))
        if count and not force:
            raise Refused(
                f"VPC {found.name} has {count} endpoints; remove them first, or use --force"
            )
        known = self._author.known(found.id, self._view.catalog.vpc_records(found.id))
        removal = VpcRecord(
            revision=next_revision(known),
            hlc=self._author.stamp(now_ns, (other.hlc for other in known)),
            deleted=True,
            creator=known[0].creator,
            nonce=known[0].nonce,
        )
        return [self._author.put(keys.VpcKey(found.id), removal)]

    def _require_free(self, vni: int) -> None:
        for vpc_id in self._view.catalog.with_vni(vni):
            name = self._view.names.vpc_text(vpc_id)
            raise Refused(f"VNI {vni} is used by VPC {name}; choose another")

    def _require_covered(self, vpc: Vpc, cidrs: Iterable[str]) -> None:
        for subnet in self._view.subnets(vpc.id):
            if not _covers(cidrs, subnet.cidr):
                raise Refused(
                    f"subnet {subnet.name} ({subnet.cidr}) would lie outside VPC {vpc.name}; "
                    "remove it first, or keep a CIDR that covers it"
                )

    # --- subnets -----------------------------------------------------------------------------

    def add_subnet(
        self,
        name: str,
        vpc: str,
        cidr: str,
        sites: Iterable[str] = (),
        restrict: bool = False,
        *,
        now_ns: int,
    ) -> list[Op]:
        """A new subnet, homed at `sites` (none: this site); several: stretched over them."""
        validate.name("name", name)
        network = validate.pod_cidr("cidr", cidr)
        homes = validate.names("site", sites) or (self._author.site,)
        found = self._view.vpc(vpc)
        live = self._view.subnets(found.id)
        for subnet in live:
            if subnet.name == name:
                if (subnet.cidr, subnet.sites, subnet.restrict) == (cidr, homes, restrict):
                    return []
                raise Refused(
                    f"subnet {name} of VPC {found.name} exists with {subnet.cidr} at "
                    f"{', '.join(subnet.sites)}{', restricted' if subnet.restrict else ''}; "
                    "remove it first, or choose another name"
                )
        self._author.require_owner(found)
        self._author.require_sites(homes)
        self._require_room(found, network, homes, live)
        author = self._author
        nonce = author.nonce(model.NONCE_BYTES)
        hlc = author.stamp(now_ns, (subnet.hlc for subnet in live))
        record = SubnetRecord(
            revision=1,
            hlc=hlc,
            deleted=False,
            creator=author.node,
            nonce=nonce,
            name=name,
            cidr=cidr,
            sites=homes,
            restrict=restrict,
            since=hlc,
        )
        subnet_id = model.subnet_id(found.id, author.node, nonce)
        return [author.put(keys.SubnetKey(found.id, subnet_id), record)]

    def _require_room(
        self, vpc: Vpc, network: validate.Network, homes: Iterable[str], live: list[Subnet]
    ) -> None:
        for site in homes:
            if not vpc.admits(site):
                raise Refused(
                    f"VPC {vpc.name} does not admit site {site}; admit it first (weft vpc set)"
                )
        if not _covers(vpc.cidrs, str(network)):
            raise Refused(
                f"{network} lies outside VPC {vpc.name} ({', '.join(vpc.cidrs)}); choose a network "
                "within it, or widen it (weft vpc set)"
            )
        for subnet in live:
            other = ipaddress.ip_network(subnet.cidr)
            if network.version == other.version and network.overlaps(other):
                raise Refused(
                    f"{network} overlaps subnet {subnet.name} ({subnet.cidr}); choose another"
                )

    def remove_subnet(self, name: str, vpc: str, *, now_ns: int) -> list[Op]:
        """Remove a subnet for good. Refused while there are endpoints in it."""
        found = self._view.vpc(vpc)
        subnet = self._view.names.subnet(found.id, name)
        self._author.require_owner(found)
        network = ipaddress.ip_network(subnet.cidr)
        count = 0
        if subnet.state == "active":
            ips = (ipaddress.ip_address(e.ip) for e in self._view.endpoints(found.id))
            count = sum(ip in network for ip in ips)
        if count:
            raise Refused(
                f"subnet {subnet.name} of VPC {found.name} has {count} endpoints; remove them first"
            )
        records = self._view.catalog.subnet_records(found.id, subnet.id)
        known = self._author.known(found.id, records)
        removal = SubnetRecord(
            revision=next_revision(known),
            hlc=self._author.stamp(now_ns, (other.hlc for other in known)),
            deleted=True,
            creator=known[0].creator,
            nonce=known[0].nonce,
        )
        return [self._author.put(keys.SubnetKey(found.id, subnet.id), removal)]

    # --- peerings ----------------------------------------------------------------------------

    def add_peering(self, a: str, b: str, *, now_ns: int) -> list[Op]:
        """Say for VPC `a` that `b` may talk to it; active when b's side says so, too."""
        ours, theirs = self._pair(a, b)
        if self._view.catalog.live_halves(ours.id, theirs.id):
            return []
        self._author.require_owner(ours)
        half = self._author.nonce(keys.ID_BYTES).hex()
        record = PeeringRecord(1, self._author.stamp(now_ns), deleted=False)
        return [self._author.put(keys.PeeringKey(ours.id, theirs.id, half), record)]

    def remove_peering(self, a: str, b: str, *, now_ns: int) -> list[Op]:
        """Take back what VPC `a`'s side said about `b`."""
        ours, theirs = self._pair(a, b)
        halves = self._view.catalog.live_halves(ours.id, theirs.id)
        if not halves:
            raise NotFound(
                f"VPC {ours.name} has no half of a peering with {theirs.name}; see weft peering ls"
            )
        self._author.require_owner(ours)
        ops: list[Op] = []
        for half in halves:
            records = self._view.catalog.half_records(ours.id, theirs.id)[half]
            known = self._author.known(ours.id, records)
            hlc = self._author.stamp(now_ns, (other.hlc for other in known))
            record = PeeringRecord(next_revision(known), hlc, deleted=True)
            ops.append(self._author.put(keys.PeeringKey(ours.id, theirs.id, half), record))
        return ops

    def _pair(self, a: str, b: str) -> tuple[Vpc, Vpc]:
        ours, theirs = self._view.vpc(a), self._view.vpc(b)
        if ours.id == theirs.id:
            raise BadInput(f"peering: {a!r} and {b!r} are the same VPC: name two")
        return ours, theirs

    # --- endpoints ---------------------------------------------------------------------------

    def add_endpoint(self, spec: EndpointSpec, *, now_ns: int) -> list[Op]:
        """Claim an endpoint for this gateway; refused if it lives at another site."""
        return self._endpoints.add(spec, now_ns)

    def add_endpoints(
        self, specs: Sequence[EndpointSpec], *, now_ns: int
    ) -> tuple[list[Op], list[tuple[int, RequestError]]]:
        """Many at once: the writes for those that are good, and (index, error) of the others."""
        return self._endpoints.add_all(specs, now_ns)

    def move_endpoint(self, spec: EndpointSpec, *, now_ns: int) -> list[Op]:
        """Claim here what lives elsewhere, above every claim seen; keeps what is not given."""
        return self._endpoints.move(spec, now_ns)

    def remove_endpoint(self, vpc: str, ip: str, *, now_ns: int) -> list[Op]:
        """Give up the own claim; a foreign one is evicted, which needs the VPC's authority."""
        return self._endpoints.remove(vpc, ip, now_ns)

    def resolve_conflict(self, key: str, keep: str, *, now_ns: int) -> list[Op]:
        """End a conflict about an endpoint (`endpoint/VPC/IP`): its site `keep`'s claim stays, the
        others are evicted. `keep` is a node's name or id. Other conflicts end by a new value."""
        shard, raw = parse_key(self._view, key)
        parsed = keys.unpack(shard, raw)
        if not isinstance(parsed, keys.EndpointKey):
            raise Refused(
                f"{key}: only conflicts about endpoints are resolved by eviction; end this one "
                "with another VNI (weft vpc set), a removal, or by setting the value again"
            )
        return self._endpoints.resolve(self._view.vpc(shard), parsed.addr, keep, now_ns)

    # --- what time brings --------------------------------------------------------------------

    def housekeeping(self, now_ns: int, endpoints_max: int | None = None) -> list[Op]:
        """The writes that are due by themselves: see `mesh.core.housekeeping`."""
        return self._housekeeper.run(now_ns, endpoints_max)

    @property
    def housekeeping_behind(self) -> bool:
        """Whether the last `housekeeping` left changed endpoints to the next."""
        return self._housekeeper.behind

    def next_deadline_ns(self) -> int | None:
        """When `housekeeping` has something to do next; 0: at once; None: when the view changes."""
        return self._housekeeper.next_deadline_ns()

    def withdrawals(self) -> dict[tuple[str, str], int]:
        """(VPC id, IP) of own claims that a move outranks -> when `housekeeping` withdraws each."""
        return self._housekeeper.withdrawals()

    def held(self, now_ns: int) -> list[HeldMove]:
        """Endpoints that are not moved from here now because they move too often: an alarm each."""
        return self._damper.held(now_ns)


def _covers(cidrs: Iterable[str], inner: str) -> bool:
    """Whether one of the networks holds all of `inner`."""
    return any(within(span(inner), span(cidr)) for cidr in cidrs)
