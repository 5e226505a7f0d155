"""Endpoint claims: stored packed, ranked when read.

There may be a million, so a claim is kept as the bytes that came (shared with the replica) in a
flat tuple (node, record, node, record, …) per address, which the garbage collector does not track.

Rank: higher mobility, then earlier hlc, then lower hash of (node, key). Claims of one site with
equal mobility are one claim with several writers. Claims of different sites with the highest
mobility are a conflict: neither knew of the other.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeAlias

from mesh.core import keys
from mesh.core.model import Claim, decode_claim
from mesh.core.ops import NodeId
from mesh.core.view.catalog import Catalog
from mesh.core.view.layout import Span
from mesh.core.view.types import Endpoint, EndpointState

RULE_ONLY = "only claim"
RULE_SITE = "one claim with several writers of its site"
RULE_MOBILITY = "higher mobility"
RULE_HLC = "earlier hlc"
RULE_HASH = "lower hash of node and key"
LOST_MOBILITY = "lower mobility"
LOST_HLC = "later hlc"
LOST_HASH = "higher hash of node and key"

Packed: TypeAlias = tuple[bytes, ...]
"""(node, record, node, record, …) for one address."""


class Ranked(NamedTuple):
    """A claim that counts. Tuples of these sort best first; the order is total."""

    minus_mobility: int
    hlc: int
    tie: bytes
    node: NodeId
    site: str
    claim: Claim


class Contest(NamedTuple):
    """Claims of several sites with equal top mobility, best first."""

    claims: tuple[Ranked, ...]
    rule: str
    since_hlc: int


class ClaimTable:
    """All claims of all VPCs, and which addresses are contested."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._packed: dict[str, dict[bytes, Packed]] = {}
        self._contested: defaultdict[str, set[bytes]] = defaultdict(set)

    # --- storing -----------------------------------------------------------------------------

    def put(self, node: NodeId, vpc: str, addr: bytes, record: bytes | None) -> None:
        """Store what the node claims now. The record must decode; `judge` must follow."""
        claims = self._packed.get(vpc)
        if claims is None:
            claims = self._packed[vpc] = {}
        held = claims.get(addr, ())
        if not held or (len(held) == 2 and held[0] == node):
            kept: Packed = ()
        else:
            kept = tuple(
                part for i in range(0, len(held), 2) if held[i] != node for part in held[i : i + 2]
            )
        if record is not None:
            claims[addr] = (*kept, node, record)
        elif kept:
            claims[addr] = kept
        else:
            claims.pop(addr, None)
            if not claims:
                del self._packed[vpc]

    def judge(self, vpc: str, addr: bytes) -> bool:
        """Decide anew whether the address is contested; True if it is, or was until now."""
        contested = self._contested.get(vpc, ())
        was = addr in contested
        single = len(self._packed.get(vpc, {}).get(addr, ())) <= 2
        now = not single and self.contest(vpc, addr) is not None
        if now:
            self._contested[vpc].add(addr)
        elif was:
            self._contested[vpc].discard(addr)
            if not self._contested[vpc]:
                del self._contested[vpc]
        return was or now

    # --- reading -----------------------------------------------------------------------------

    def record(self, node: NodeId, vpc: str, addr: bytes) -> bytes | None:
        """What the node claims, whether or not it counts."""
        held = self._packed.get(vpc, {}).get(addr, ())
        for i in range(0, len(held), 2):
            if held[i] == node:
                return held[i + 1]
        return None

    def records(self, vpc: str, addr: bytes) -> list[tuple[NodeId, bytes]]:
        """Every node's claim for the address, whether or not it counts, by node."""
        held = self._packed.get(vpc, {}).get(addr, ())
        return sorted(zip(held[::2], held[1::2], strict=True))

    def vpcs(self) -> list[str]:
        """The VPCs, live or not, of which there are claims."""
        return sorted(self._packed)

    def addrs(self, vpc: str) -> list[bytes]:
        """The VPC's addresses of which there are claims, IPv4 first, in order."""
        return sorted(self._packed.get(vpc, ()), key=lambda addr: (len(addr), addr))

    def within(self, vpc: str, spans: Iterable[Span]) -> Iterator[bytes]:
        """Those of `addrs` within any of the spans, in no order."""
        bounds = list(spans)
        for addr in self._packed.get(vpc, ()):
            size = len(addr)
            if any(len(first) == size and first <= addr <= last for first, last in bounds):
                yield addr

    def contests(self) -> list[tuple[str, bytes, Contest]]:
        """(VPC, address, conflict) of every conflict, by VPC and address."""
        found: list[tuple[str, bytes, Contest]] = []
        for vpc, addr in sorted((vpc, a) for vpc, addrs in self._contested.items() for a in addrs):
            contest = self.contest(vpc, addr)
            assert contest is not None, "judged contested since anything about it changed"
            found.append((vpc, addr, contest))
        return found

    def ranked(self, vpc: str, addr: bytes) -> list[Ranked]:
        """The claims that count, best first. This is where authority is judged."""
        held = self._packed.get(vpc, {}).get(addr)
        catalog = self._catalog
        live = catalog.vpcs.get(vpc)
        if held is None or live is None:
            return []
        subnet = catalog.layouts[vpc].claimable(addr)
        if subnet is None:
            return []
        found: list[Ranked] = []
        for i in range(0, len(held), 2):
            node = held[i]
            if not catalog.reads(node):
                continue
            site = catalog.members[node].site
            if not live.admits(site) or not subnet.admits(site):
                continue
            claim = decode_claim(held[i + 1])
            if claim.mobility <= catalog.hidden_up_to(vpc, addr, node):
                continue
            tie = _tie(node, addr) if len(held) > 2 else b""
            found.append(Ranked(-claim.mobility, claim.hlc, tie, node, site, claim))
        if len(found) > 1:
            found.sort()
        return found

    def contest(self, vpc: str, addr: bytes) -> Contest | None:
        """The conflict about the address, if there is one."""
        ranked = self.ranked(vpc, addr)
        top = [r for r in ranked if r.minus_mobility == ranked[0].minus_mobility]
        firsts: dict[str, Ranked] = {}
        for claim in top:
            firsts.setdefault(claim.site, claim)
        if len(firsts) < 2:
            return None
        best, rival = list(firsts.values())[:2]
        return Contest(tuple(top), _won(best, rival), rival.hlc)

    def endpoints(self, vpc: str, addr: bytes) -> tuple[Endpoint, ...]:
        """The claims that count as readers see them, best first."""
        ranked = self.ranked(vpc, addr)
        if not ranked:
            return ()
        best, ip = ranked[0], keys.ip_of(addr)
        rivals = [r for r in ranked[1:] if not _co_writer(best, r)]
        rule = _won(best, rivals[0]) if rivals else RULE_ONLY
        shown = [_endpoint(vpc, ip, best, "active", rule)]
        for other in ranked[1:]:
            shown.append(_endpoint(vpc, ip, other, *_standing(best, other)))
        return tuple(shown)


def _tie(node: NodeId, addr: bytes) -> bytes:
    return hashlib.sha256(node + keys.ENDPOINT + addr).digest()[:8]


def _co_writer(best: Ranked, other: Ranked) -> bool:
    return other.site == best.site and other.minus_mobility == best.minus_mobility


def _won(best: Ranked, rival: Ranked) -> str:
    """The rule by which `best` ranks before `rival`."""
    if best.minus_mobility != rival.minus_mobility:
        return RULE_MOBILITY
    return RULE_HLC if best.hlc != rival.hlc else RULE_HASH


_LOST = {RULE_MOBILITY: LOST_MOBILITY, RULE_HLC: LOST_HLC, RULE_HASH: LOST_HASH}


def _standing(best: Ranked, other: Ranked) -> tuple[EndpointState, str]:
    if _co_writer(best, other):
        return "active", RULE_SITE
    rule = _won(best, other)
    return ("shadowed" if rule == RULE_MOBILITY else "conflict"), _LOST[rule]


def _endpoint(vpc: str, ip: str, ranked: Ranked, state: EndpointState, rule: str) -> Endpoint:
    claim = ranked.claim
    return Endpoint(
        vpc=vpc,
        ip=ip,
        mac=claim.mac,
        name=claim.name,
        node=ranked.node,
        site=ranked.site,
        host=claim.host,
        mobility=claim.mobility,
        hlc=claim.hlc,
        labels=claim.labels,
        state=state,
        rule=rule,
    )
