"""Deliberate bugs in what is made of records: view, rows, housekeeping, interest, stamps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from crdt.lattice import Applied, Lattice
from dataplane.fib.compile import Compiler
from mesh.core import housekeeping
from mesh.core.antientropy import AntiEntropy
from mesh.core.clock import HybridClock
from mesh.core.housekeeping import Housekeeper
from mesh.core.interest import Interests
from mesh.core.replica import Replica
from mesh.core.view import Peering, catalog, claims, registers
from mesh.core.view.catalog import Catalog
from mesh.core.view.owners import OwnerIndex
from mesh.core.view.registers import Decided

Patch = pytest.MonkeyPatch


def view_not_told_of_deletes(patch: Patch) -> None:
    install = Lattice._install

    def quiet(self: Lattice, *args: Any) -> Applied:
        applied = install(self, *args)
        return applied._replace(changed=tuple(applied.puts))

    patch.setattr(Lattice, "_install", quiet)


def rank_by_arrival(patch: Patch) -> None:
    """Of equal claims the one that came first wins."""
    arrived: dict[int, dict[tuple[bytes, bytes], int]] = {}
    add = OwnerIndex.add
    ranked = claims.ClaimTable.ranked

    def noting(self: OwnerIndex, node: bytes, vpc: str, claimed: Sequence[bytes]) -> None:
        known = arrived.setdefault(id(self), {})
        for key in claimed:
            known.setdefault((node, key), len(known))
        add(self, node, vpc, claimed)

    def by_arrival(self: claims.ClaimTable, vpc: str, key: bytes) -> list[claims.Ranked]:
        known = arrived.get(id(self.owners), {})
        order = ranked(self, vpc, key)
        return sorted(order, key=lambda claim: known.get((claim.node, key), 0))

    patch.setattr(OwnerIndex, "add", noting)
    patch.setattr(claims.ClaimTable, "ranked", by_arrival)


def housekeeping_never_ends(patch: Patch) -> None:
    """It writes at every look, though nothing has changed."""
    patch.setattr(Housekeeper, "next_deadline_ns", lambda self: 0)


def trespass_read(patch: Patch) -> None:
    """Whoever writes a VPC's registers and evictions is read."""
    patch.setattr(Catalog, "may_write", lambda self, vpc, node: self.reads(node))


def mobility_not_ranked(patch: Patch) -> None:
    """The earliest claim wins, whether or not the endpoint has moved since."""
    ranked = claims.ClaimTable.ranked

    def by_age(self: claims.ClaimTable, vpc: str, addr: bytes) -> list[claims.Ranked]:
        return sorted(ranked(self, vpc, addr), key=lambda claim: claim[2:])

    patch.setattr(claims.ClaimTable, "ranked", by_age)


def evictions_not_read(patch: Patch) -> None:
    patch.setattr(Catalog, "hidden_up_to", lambda self, vpc, addr, node: -1)


def deletion_outranked(patch: Patch) -> None:
    """A later edit revives what was deleted."""
    patch.setattr(catalog, "decide", _decide_by_revision)


def _decide_by_revision(records: Any, may_write: Any, forked: Any) -> Any:
    ranked = sorted(
        (record.revision, record.hlc, node) for node, record in records.items() if may_write(node)
    )
    return Decided(records[ranked[-1][2]], ranked[-1][2]) if ranked else None


def newcomer_takes_vni(patch: Patch) -> None:
    """Of two VPCs with one VNI the earlier stamp has it, whoever uses it already."""
    patch.setattr(Catalog, "votes", lambda self, vpc: 0)


def peered_by_half(patch: Patch) -> None:
    """One side is enough."""
    peerings = Catalog.peerings

    def one_sided(self: Catalog) -> list[Peering]:
        return [replace(peering, state="active") for peering in peerings(self)]

    patch.setattr(Catalog, "peerings", one_sided)


def tie_not_broken(patch: Patch) -> None:
    """Claims that nothing else tells apart are ranked by node id."""
    patch.setattr(claims, "_tie", lambda node, addr: b"")


def stranger_told_of(patch: Patch) -> None:
    """A retired node's claims lose their rank."""
    patch.setattr(Catalog, "reads", _only_active)


def _only_active(self: Catalog, node: bytes) -> bool:
    member = self.members.get(node)
    return member is not None and member.state == "active"


def withdrawn_at_once(patch: Patch) -> None:
    """A claim is given up as soon as a move outranks it."""
    patch.setattr(housekeeping, "WITHDRAW_AFTER_NS", 0)


def outranked_collected(patch: Patch) -> None:
    """A register's record is deleted as soon as another writer's counts."""
    patch.setattr(Housekeeper, "_is_spent", _is_outranked)


def _is_outranked(self: Housekeeper, vpc: str, records: Any, now_ns: int) -> bool:
    decided = self._view.catalog.decide(vpc, records)
    return decided is not None and decided.node != self._author.node


def fork_not_ranked(patch: Patch) -> None:
    """In registers a forked node's records count as anybody's."""

    def forgiving(self: Catalog, vpc: str, records: Any) -> Any:
        return registers.decide(records, lambda n: self.may_write(vpc, n), lambda n: False)

    patch.setattr(Catalog, "decide", forgiving)


def dropped_shards_kept(patch: Patch) -> None:
    """A node whose site has nothing to do with a VPC any more holds on to it."""
    patch.setattr(Replica, "_drop", lambda self, id: None)


def interest_not_ended(patch: Patch) -> None:
    """What a node once kept, it keeps."""
    decide = Interests._decide

    def clinging(self: Interests, vpc: str) -> None:
        kept = vpc in self.vpcs
        decide(self, vpc)
        if kept:
            self.vpcs.add(vpc)

    patch.setattr(Interests, "_decide", clinging)


def interest_ignored(patch: Patch) -> None:
    """Every node takes whatever it is given, and keeps it."""

    def decide(self: Interests, vpc: str) -> None:
        if vpc not in self.vpcs:
            self.vpcs.add(vpc)
            self.version += 1

    patch.setattr(Interests, "_decide", decide)


def newcomer_takes_all(patch: Patch) -> None:
    """A node that has read nothing of the mesh yet keeps every shard."""
    update = Interests.update

    def later(self: Interests) -> bool:
        return update(self) and bool(self._standings)

    patch.setattr(Interests, "update", later)


def entitlement_not_asked(patch: Patch) -> None:
    """A VPC's shard is given to whoever says that it keeps it."""

    def wanted(self: AntiEntropy, peer: bytes) -> Any:
        return self._interest

    patch.setattr(AntiEntropy, "_for", wanted)


def homes_not_entitled(patch: Patch) -> None:
    """Only the VPC's own list of sites says whom its shard is for."""
    derive = Interests._derive

    def listed(self: Interests, vpc: str) -> bool:
        news = derive(self, vpc)
        live = self._catalog.vpcs.get(vpc)
        if live is not None and live.sites:
            self._standings[vpc].admitted = {*live.sites}
        return news

    patch.setattr(Interests, "_derive", listed)


def conflict_of_one(patch: Patch) -> None:
    """A claim that was outranked by a move is taken to be in conflict with it."""
    contest = claims.ClaimTable.contest

    def any_two(self: claims.ClaimTable, vpc: str, key: bytes) -> Any:
        ranked = self.ranked(vpc, key)
        found = contest(self, vpc, key)
        if found is None and len({claim.site for claim in ranked}) > 1:
            return claims.Contest(tuple(ranked), "mobility", ranked[0].hlc)
        return found

    patch.setattr(claims.ClaimTable, "contest", any_two)


def row_not_withdrawn(patch: Patch) -> None:
    """What is claimed no more is forwarded as before."""
    set_endpoint = Compiler.set_endpoint

    def clinging(self: Compiler, vpc: str, ip: str, fact: Any) -> None:
        if fact is not None:
            set_endpoint(self, vpc, ip, fact)

    patch.setattr(Compiler, "set_endpoint", clinging)
    patch.setattr(Compiler, "drop_endpoints", lambda self, vpc, addrs: None)


def nobody_wins(patch: Patch) -> None:
    """Of claims of equal mobility none counts."""
    endpoints = claims.ClaimTable.endpoints

    def undecided(self: claims.ClaimTable, vpc: str, key: bytes) -> Any:
        shown = endpoints(self, vpc, key)
        return () if any(claim.state == "conflict" for claim in shown) else shown

    patch.setattr(claims.ClaimTable, "endpoints", undecided)


def clock_follows_anybody(patch: Patch) -> None:
    """One bad clock drags all others along."""

    def follow(self: HybridClock, hlc: int, now_ns: int) -> bool:
        self.last = max(self.last, hlc)
        return True

    patch.setattr(HybridClock, "observe", follow)
