"""Endpoint claims: who claims what is kept, what they say is read when it is asked for.

There may be a million, so records stay where they are (`mesh.core.ops.Records`) and only an index
of owners is kept here. A claim that cannot be read is as one that is not there.

Rank: higher mobility, then earlier hlc, then lower hash of (node, key); those of nodes that signed
two histories come after all others. Claims of one site with equal mobility are one claim with
several writers. Claims of different sites with the winner's mobility or a higher one are a
conflict: neither knew of the other, or one has forked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence, Set
from itertools import chain
from typing import Final, NamedTuple

from mesh.core import keys
from mesh.core.model import (
    Claim,
    InvalidRecord,
    UnknownRecord,
    decode_claim,
    is_unmoved,
    plain_mac,
    plain_macs,
)
from mesh.core.ops import NodeId, Records
from mesh.core.view.catalog import Catalog
from mesh.core.view.layout import claimable_span
from mesh.core.view.owners import OwnerIndex
from mesh.core.view.types import Endpoint, EndpointState

SHOWN_MAX: Final = 4096
"""Keys whose claims are kept as they were read: 2 MB."""
RULE_ONLY: Final = "only claim"
RULE_SITE: Final = "one claim with several writers of its site"
RULE_MOBILITY: Final = "higher mobility"
RULE_HLC: Final = "earlier hlc"
RULE_HASH: Final = "lower hash of node and key"
RULE_FORKED: Final = "the others were written by nodes that signed two histories"
LOST_FORKED: Final = "written by a node that signed two histories"
LOST_MOBILITY: Final = "lower mobility"
LOST_HLC: Final = "later hlc"
LOST_HASH: Final = "higher hash of node and key"


class Ranked(NamedTuple):
    """A claim that counts. Tuples of these sort best first; the order is total."""

    forked: bool
    minus_mobility: int
    hlc: int
    tie: bytes
    node: NodeId
    site: str
    claim: Claim


class Contest(NamedTuple):
    """Claims of several sites, none with less mobility than the best, best first."""

    claims: tuple[Ranked, ...]
    rule: str
    since_hlc: int


class Plain(NamedTuple):
    """What keys say, where that is plain."""

    macs: dict[NodeId, dict[bytes, bytes]]
    """Node → address → MAC of claims that count, have no other beside them, and are attached to
    their gateway."""
    rest: list[bytes]
    """Keys of which nothing is said."""
    free: list[bytes]
    """Keys that nobody claims."""


class ClaimTable:
    """All claims of all VPCs by key, and which are contested."""

    def __init__(self, catalog: Catalog, records: Records) -> None:
        self.owners = OwnerIndex()
        self._catalog = catalog
        self._records = records
        self._contested: dict[str, set[bytes]] = {}
        self._shown: dict[str, dict[bytes, tuple[Endpoint, ...]]] = {}
        """What readers were told of these keys, and will be until one of them is touched."""
        self._shown_left = SHOWN_MAX

    # --- deciding ----------------------------------------------------------------------------

    def judge(self, vpc: str, touched: Set[bytes]) -> bool:
        """Decide anew which of these keys are contested; whether any is, or was until now. Only
        keys with several owners, and those that had them, are looked at."""
        self._forget_shown(vpc, touched)
        contested, shared = self._contested.get(vpc), self.owners.shared(vpc)
        if not shared and not contested:
            return False
        changed = False
        for key in touched:
            was = contested is not None and key in contested
            now = key in shared and self.contest(vpc, key) is not None
            changed |= was or now
            if now and not was:
                contested = self._contested.setdefault(vpc, set())
                contested.add(key)
            elif was and not now and contested is not None:
                contested.discard(key)
        if contested is not None and not contested:
            del self._contested[vpc]
        return changed

    def plain(self, vpc: str, wanted: Sequence[bytes]) -> Plain:
        """What `ranked` says of these keys of IPv4 claims, where that is as plain as it mostly is.
        The rules are those of `ranked`, asked once for a node or a subnet, not once for a key."""
        catalog = self._catalog
        found: dict[NodeId, dict[bytes, bytes]] = {}
        live = catalog.vpcs.get(vpc)
        single, rest, free = self.owners.sorted_out(vpc, wanted)
        if live is None:
            return Plain({}, [*rest, *chain.from_iterable(single.values())], free)
        layout, evicted = catalog.layouts[vpc], catalog.evicted(vpc)
        for node, claimed in single.items():
            if not catalog.reads(node) or not live.admits(catalog.members[node].site):
                rest += claimed
                continue
            site, macs = catalog.members[node].site, found.setdefault(node, {})
            if self._all_plain(node, vpc, claimed, macs):
                continue
            low = high = b""
            for key, record in zip(
                claimed, self._records.read_all(node, vpc, claimed), strict=True
            ):
                addr = key[1:]
                if not low <= addr <= high:
                    subnet = layout.claimable(addr)
                    if subnet is None or not subnet.admits(site):
                        rest.append(key)
                        continue
                    low, high = claimable_span(subnet.cidr)
                mac = None if record is None else plain_mac(record)
                if mac is None or addr in evicted:
                    rest.append(key)
                else:
                    macs[addr] = mac
        return Plain(found, rest, free)

    def _all_plain(
        self, node: NodeId, vpc: str, claimed: Sequence[bytes], macs: dict[bytes, bytes]
    ) -> bool:
        """Add the MACs of claims of a node that are all as plain as can be, in one subnet and none
        evicted; False, and nothing was added, where that is not so. Of a million most come like
        this, and are not looked at one by one."""
        catalog = self._catalog
        addrs = [key[1:] for key in claimed]
        subnet = catalog.layouts[vpc].claimable(addrs[0])
        if subnet is None or not subnet.admits(catalog.members[node].site):
            return False
        low, high = claimable_span(subnet.cidr)
        if min(addrs) < low or max(addrs) > high:
            return False
        evicted = catalog.evicted(vpc)
        if any(map(evicted.__contains__, addrs)):
            return False
        found = plain_macs(self._records.read_all(node, vpc, claimed))
        if found is None:
            return False
        macs.update(zip(addrs, found, strict=True))
        return True

    def notable(self, vpc: str, wanted: Sequence[bytes], node: NodeId) -> list[bytes]:
        """Those of the keys that are the node's, or anything but one plain claim that never moved:
        most are of no concern to the node, and are passed over without decoding."""
        single, several, free = self.owners.sorted_out(vpc, wanted)
        rest = several + free
        for owner, claimed in single.items():
            if owner == node:
                rest += claimed
                continue
            records = self._records.read_all(owner, vpc, claimed)
            rest += [
                key
                for key, record in zip(claimed, records, strict=True)
                if record is None or not is_unmoved(record)
            ]
        return rest

    def calm(self, vpc: str, wanted: Sequence[bytes], node: NodeId) -> set[bytes]:
        """Those of the keys that are plain claims of the node, count, have no other beside them,
        and never moved."""
        kept = [keys.ENDPOINT + addr for addr in self.plain(vpc, wanted).macs.get(node, ())]
        records = self._records.read_all(node, vpc, kept)
        return {
            key
            for key, record in zip(kept, records, strict=True)
            if record is not None and is_unmoved(record, plain=True)
        }

    # --- reading -----------------------------------------------------------------------------

    def claim(self, node: NodeId, vpc: str, key: bytes) -> Claim | None:
        """What the node claims, whether or not it counts; None for what cannot be read, too."""
        record = self._records.read(node, vpc, key)
        if record is None:
            return None
        try:
            return decode_claim(record)
        except (InvalidRecord, UnknownRecord):
            return None

    def claims(self, vpc: str, key: bytes) -> list[tuple[NodeId, Claim]]:
        """Every node's claim under the key, whether or not it counts, by node."""
        found = ((node, self.claim(node, vpc, key)) for node in self.owners.owners(vpc, key))
        return [(node, claim) for node, claim in found if claim is not None]

    def contests(self) -> Iterator[tuple[str, bytes, Contest]]:
        """(VPC, key, conflict) of every conflict, by VPC and key."""
        for vpc, key in sorted((vpc, k) for vpc, held in self._contested.items() for k in held):
            contest = self.contest(vpc, key)
            if contest is not None:  # None: a record went, of which the view is told next
                yield vpc, key, contest

    def ranked(self, vpc: str, key: bytes) -> list[Ranked]:
        """The claims that count, best first. This is where authority is judged."""
        owners = self.owners.owners(vpc, key)
        catalog = self._catalog
        live = catalog.vpcs.get(vpc)
        if not owners or live is None:
            return []
        addr = key[1:]
        subnet = catalog.layouts[vpc].claimable(addr)
        if subnet is None:
            return []
        found: list[Ranked] = []
        evicted = addr in catalog.evicted(vpc)
        for node in owners:
            if not catalog.reads(node):
                continue
            member = catalog.members[node]
            site = member.site
            if not live.admits(site) or not subnet.admits(site):
                continue
            claim = self.claim(node, vpc, key)
            if claim is None:
                continue
            if evicted and claim.mobility <= catalog.hidden_up_to(vpc, addr, node):
                continue
            tie = _tie(node, key) if len(owners) > 1 else b""
            found.append(Ranked(member.forked, -claim.mobility, claim.hlc, tie, node, site, claim))
        if len(found) > 1:
            found.sort()
        return found

    def contest(self, vpc: str, key: bytes) -> Contest | None:
        """The conflict about the key, if there is one."""
        ranked = self.ranked(vpc, key)
        top = [r for r in ranked if r.minus_mobility <= ranked[0].minus_mobility]
        firsts: dict[str, Ranked] = {}
        for claim in top:
            firsts.setdefault(claim.site, claim)
        if len(firsts) < 2:
            return None
        best, rival = list(firsts.values())[:2]
        return Contest(tuple(top), _won(best, rival), max(best.hlc, rival.hlc))

    def endpoints(self, vpc: str, key: bytes) -> tuple[Endpoint, ...]:
        """The claims that count as readers see them, best first. Several ask for what has just
        changed, and users for the same again: the last ones read are kept."""
        shown = self._shown.setdefault(vpc, {})
        found = shown.get(key)
        if found is None:
            if not self._shown_left:
                self._shown, self._shown_left = {vpc: {}}, SHOWN_MAX
                shown = self._shown[vpc]
            self._shown_left -= 1
            found = shown[key] = self._endpoints(vpc, key)
        return found

    def _forget_shown(self, vpc: str, touched: Set[bytes]) -> None:
        shown = self._shown.get(vpc)
        if shown:
            for key in shown.keys() & touched:
                del shown[key]
                self._shown_left += 1
            if not shown:
                del self._shown[vpc]

    def _endpoints(self, vpc: str, key: bytes) -> tuple[Endpoint, ...]:
        ranked = self.ranked(vpc, key)
        if not ranked:
            return ()
        best, ip = ranked[0], keys.ip_of(key[1:])
        rivals = [r for r in ranked[1:] if not _co_writer(best, r)]
        rule = _won(best, rivals[0]) if rivals else RULE_ONLY
        shown = [_endpoint(vpc, ip, best, "active", rule)]
        for other in ranked[1:]:
            shown.append(_endpoint(vpc, ip, other, *_standing(best, other)))
        return tuple(shown)


def _tie(node: NodeId, key: bytes) -> bytes:
    return hashlib.sha256(node + key).digest()[:8]


def _co_writer(best: Ranked, other: Ranked) -> bool:
    return (other.site, other.minus_mobility, other.forked) == (
        best.site,
        best.minus_mobility,
        best.forked,
    )


def _won(best: Ranked, rival: Ranked) -> str:
    """The rule by which `best` ranks before `rival`."""
    if best.forked != rival.forked:
        return RULE_FORKED
    if best.minus_mobility != rival.minus_mobility:
        return RULE_MOBILITY
    return RULE_HLC if best.hlc != rival.hlc else RULE_HASH


_LOST: Final = {
    RULE_FORKED: LOST_FORKED,
    RULE_MOBILITY: LOST_MOBILITY,
    RULE_HLC: LOST_HLC,
    RULE_HASH: LOST_HASH,
}


def _standing(best: Ranked, other: Ranked) -> tuple[EndpointState, str]:
    if _co_writer(best, other):
        return "active", RULE_SITE
    lost = _LOST[_won(best, other)]
    contested = other.site != best.site and other.minus_mobility <= best.minus_mobility
    return ("conflict" if contested else "shadowed"), lost


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
