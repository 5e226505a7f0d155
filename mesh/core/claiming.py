"""How a node claims, moves and gives up endpoints. Every method answers the writes to make.

A node writes claims for itself only. It gets rid of another's by moving the endpoint here (a
higher mobility) or, with the VPC's authority, by evicting it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from mesh.core import keys, model, validate
from mesh.core.author import Author
from mesh.core.damping import MOVES_MAX, WINDOW_NS, MoveDamper
from mesh.core.errors import BadInput, NotFound, Refused, RequestError
from mesh.core.importing import EndpointSpec, Fresh, Said, fresh, said_of
from mesh.core.model import Claim
from mesh.core.ops import Delete, Op, Put
from mesh.core.view import Endpoint, Vpc

_S: Final = 1_000_000_000


class _Place(NamedTuple):
    """An address of a VPC that this node may claim."""

    vpc: Vpc
    ip: str
    addr: bytes


class EndpointWriter:
    """The endpoint part of a `Writer`."""

    def __init__(self, author: Author, damper: MoveDamper) -> None:
        self._author = author
        self._view = author.view
        self._damper = damper

    # --- add ---------------------------------------------------------------------------------

    def add(self, spec: EndpointSpec, now_ns: int) -> list[Op]:
        """Claim an endpoint that lives nowhere else; nothing if that is claimed already."""
        place = self._place(spec)
        wanted = _claim_of(spec, place)
        own = self._own(place)
        claims = self._view.claims(place.vpc.id, place.ip)
        hidden = self._hidden(place)
        mobility = hidden + 1
        if claims:
            best = claims[0]
            if best.site != self._author.site:
                raise Refused(self._elsewhere(place, best))
            if own is not None and own.mobility == best.mobility > hidden:
                if _same(own, wanted):
                    return []
                raise Refused(
                    f"{place.ip} of VPC {place.vpc.name} exists with other values "
                    f"({_shown(own)}); remove it first"
                )
            mobility = self._beside(place, best, wanted, hidden)
        return [self._put(place, wanted, mobility, claims, now_ns)]

    def add_all(
        self, specs: Sequence[EndpointSpec], now_ns: int
    ) -> tuple[list[Op], list[tuple[int, RequestError]]]:
        """As `add` for each, without seeing each other's claims: what would be written, and the
        index and error of each that cannot be. Of several for one address, all must say the same.
        """
        ops: list[Op] = []
        errors: list[tuple[int, RequestError]] = []
        first: dict[tuple[str, bytes], tuple[int, Said]] = {}
        new = fresh(self._author, specs)
        for index, spec in enumerate(specs):
            try:
                known = new.get(index) or self._asked(spec)
                vpc, key, said = known
                other, before = first.setdefault((vpc, key), (index, said))
                if said != before:
                    raise BadInput(
                        f"{spec.ip} of VPC {self._view.vpc(vpc).name} is there twice and differs"
                        f" from entry {other + 1}; keep one"
                    )
                if other == index and index in new:
                    ops.append(known.put(self._author.stamp(now_ns)))
                elif other == index:
                    ops += self.add(spec, now_ns)
            except RequestError as error:
                errors.append((index, error))
        return ops, errors

    def _asked(self, spec: EndpointSpec) -> Fresh:
        """What is asked for, whether or not it is there. Raises as `add`."""
        place = self._place(spec)
        vpc = place.vpc.id
        return Fresh(vpc, keys.ENDPOINT + place.addr, said_of(spec, vpc, place.ip))

    def _beside(self, place: _Place, best: Endpoint, wanted: Claim, hidden: int) -> int:
        """The mobility of a claim beside one of another gateway of this site."""
        if self._is_retired(best):
            return _higher(place, max(best.mobility, hidden))
        held = Claim(best.mobility, best.hlc, best.mac, best.name, best.host, best.labels)
        if best.mobility <= hidden or not _same(held, wanted):
            raise Refused(self._elsewhere(place, best))
        return best.mobility

    # --- move and remove ---------------------------------------------------------------------

    def move(self, spec: EndpointSpec, now_ns: int) -> list[Op]:
        """Claim here, above every claim seen, what lives elsewhere or is contested. What `spec`
        does not say stays as it was, except the host: it is attached here. Nothing if it lives
        here undisputed and as said. Refused while it moves too often: see `mesh.core.damping`."""
        place = self._place(spec)
        claims = self._view.claims(place.vpc.id, place.ip)
        if not claims:
            raise NotFound(f"no endpoint {place.ip} in VPC {place.vpc.name}; use weft endpoint add")
        best = claims[0]
        said = _claim_of(spec, place)
        wanted = Claim(
            mobility=_higher(place, max(best.mobility, self._hidden(place))),
            hlc=0,
            mac=best.mac if spec.mac is None else said.mac,
            name=said.name or best.name,
            host=said.host,
            labels=said.labels or best.labels,
        )
        own = self._own(place)
        here = best.node == self._author.node and own is not None and _same(own, wanted)
        if here and all(claim.state != "conflict" for claim in claims):
            return []
        self._require_calm(place, best, now_ns)
        return [self._put(place, wanted, wanted.mobility, claims, now_ns)]

    def _require_calm(self, place: _Place, best: Endpoint, now_ns: int) -> None:
        """Raises Refused while the endpoint has moved too often to be moved once more."""
        key = place.vpc.id, place.ip
        self._damper.note(key, best, now_ns)
        until_ns = self._damper.held_until_ns(key, now_ns)
        if until_ns is not None:
            raise Refused(
                f"{place.ip} of VPC {place.vpc.name} has moved more than {MOVES_MAX} times within "
                f"{WINDOW_NS // _S} s, last {self._where(best)}: two sites may hold it for theirs; "
                f"moves from here are held for {-(-(until_ns - now_ns) // _S)} s more"
            )

    def remove(self, vpc_name: str, ip: str, now_ns: int) -> list[Op]:
        """Give up the own claim; evict the claims of others that stand in for it.

        The own winning claim: it goes, and what may be evicted of what it outranked and of retired
        co-writers, so that no stale claim comes back. The own losing claim of a conflict: it goes,
        the others stay. No own claim that counts: eviction of all, which needs the VPC's authority
        or that they are of retired gateways of this site.
        """
        vpc = self._view.vpc(vpc_name)
        ip = validate.ip("ip", ip)
        addr = keys.addr_of(ip)
        author = self._author
        claims = self._view.claims(vpc.id, ip)
        own = next((claim for claim in claims if claim.node == author.node), None)
        stored = self._view.claim(author.node, vpc.id, ip) is not None
        withdrawal: list[Op] = [Delete(vpc.id, keys.pack(keys.EndpointKey(addr)))] if stored else []
        others = [claim for claim in claims if claim.node != author.node]
        if own is not None and own.state == "conflict":
            return withdrawal
        if own is not None and own.state == "active":
            others = [c for c in others if c.state == "shadowed" or self._is_retired(c)]
            others = [c for c in others if self._may_evict(c)]
        elif not others:
            if stored:
                return withdrawal
            raise NotFound(f"no endpoint {ip} in VPC {vpc.name}; see weft endpoint ls")
        elif foreign := [claim for claim in others if not self._may_evict(claim)]:
            where = self._where(foreign[0])
            raise Refused(
                f"{ip} of VPC {vpc.name} lives {where}; remove it there, or on a gateway of the "
                f"VPC's owner, site {vpc.site or 'unknown'}"
            )
        return withdrawal + self._evict(vpc.id, addr, others, now_ns)

    def resolve(self, vpc: Vpc, addr: bytes, keep: str, now_ns: int) -> list[Op]:
        """End a conflict: evict the claims of the sites that do not keep the address."""
        self._author.require_owner(vpc)
        text = self._view.names.endpoint_key(vpc.id, addr)
        kept = self._view.member(keep)
        claims = self._view.claims(vpc.id, keys.ip_of(addr))
        top = [claim for claim in claims if claim.state != "shadowed"]
        if all(claim.state == "active" for claim in top):
            raise NotFound(f"no conflict about {text}; see weft conflicts ls")
        if all(claim.node != kept.node for claim in top):
            claimants = ", ".join(self._view.names.node_text(claim.node) for claim in top)
            raise Refused(f"{kept.name} does not claim {text}; keep one of {claimants}")
        others = [claim for claim in top if claim.site != kept.site]
        return self._evict(vpc.id, addr, others, now_ns)

    # --- what they share ---------------------------------------------------------------------

    def _place(self, spec: EndpointSpec) -> _Place:
        """Where the endpoint would be. Raises unless this site may claim it."""
        ip = validate.pod_ip("ip", spec.ip)
        vpc, addr = self._view.vpc(spec.vpc), keys.addr_of(ip)
        layout = self._view.catalog.layout(vpc.id)
        subnet = layout.at(addr)
        if subnet is None:
            raise Refused(f"{ip} lies in no subnet of VPC {vpc.name}; weft subnet add makes one")
        if layout.claimable(addr) is None:
            role = "gateway" if ip == subnet.gateway else "network or broadcast"
            raise Refused(f"{ip} is the {role} address of subnet {subnet.name}; take another")
        site = self._author.site
        if not vpc.admits(site):
            raise Refused(
                f"VPC {vpc.name} does not admit site {site}; its owner may (weft vpc set)"
            )
        if not subnet.admits(site):
            homes = ", ".join(subnet.sites)
            raise Refused(
                f"subnet {subnet.name} is restricted to {homes}; {site} may not claim {ip}"
            )
        return _Place(vpc, ip, addr)

    def _own(self, place: _Place) -> Claim | None:
        return self._view.claim(self._author.node, place.vpc.id, place.ip)

    def _hidden(self, place: _Place) -> int:
        """Up to which mobility this node is evicted from the place; -1: it is not."""
        return self._view.catalog.hidden_up_to(place.vpc.id, place.addr, self._author.node)

    def _put(
        self, place: _Place, said: Claim, mobility: int, seen: Iterable[Endpoint], now_ns: int
    ) -> Put:
        if mobility > model.MOBILITY_MAX:
            raise _used_up(place)
        hlc = self._author.stamp(now_ns, (other.hlc for other in seen))
        key = keys.EndpointKey(place.addr)
        claim = Claim(mobility, hlc, said.mac, said.name, said.host, said.labels)
        return self._author.put(key, claim, shard=place.vpc.id)

    def _evict(self, vpc: str, addr: bytes, claims: Iterable[Endpoint], now_ns: int) -> list[Op]:
        return [
            self._author.evict(vpc, addr, claim.node, claim.mobility, now_ns) for claim in claims
        ]

    def _may_evict(self, claim: Endpoint) -> bool:
        return self._view.catalog.may_evict(claim.vpc, self._author.node, claim.node)

    def _is_retired(self, claim: Endpoint) -> bool:
        return self._view.members[claim.node].state == "retired"

    def _where(self, claim: Endpoint) -> str:
        return f"at site {claim.site} on gateway {self._view.names.node_text(claim.node)}"

    def _elsewhere(self, place: _Place, best: Endpoint) -> str:
        return (
            f"{place.ip} of VPC {place.vpc.name} lives {self._where(best)}; to bring it here use "
            f"weft endpoint move --vpc {place.vpc.name} {place.ip}"
        )


def _claim_of(spec: EndpointSpec, place: _Place) -> Claim:
    """The claim that is asked for, without mobility and stamp."""
    mac, name, host, labels = said_of(spec, place.vpc.id, place.ip)
    return Claim(0, 0, mac, name, host, labels)


def _same(a: Claim, b: Claim) -> bool:
    """Whether both say the same but for mobility and stamp."""
    return (a.mac, a.name, a.host, a.labels) == (b.mac, b.name, b.host, b.labels)


def _shown(claim: Claim) -> str:
    parts = [f"mac {claim.mac}"]
    if claim.name:
        parts.append(f"name {claim.name}")
    if claim.host is not None:
        parts.append(f"host {claim.host}")
    return ", ".join(parts)


def _used_up(place: _Place) -> Refused:
    return Refused(
        f"the claims for {place.ip} of VPC {place.vpc.name} use the highest mobility there is; its "
        "owner can evict them (weft endpoint rm)"
    )


def _higher(place: _Place, mobility: int) -> int:
    if mobility >= model.MOBILITY_MAX:
        raise _used_up(place)
    return mobility + 1
