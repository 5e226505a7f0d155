"""What a node writes: its stamps; and what it deletes by itself, if it is spent by the design.

- an own claim that an eviction hides; one that this node has seen outranked by a move for 30 s, so
  that no reader sees neither (where no clock is set forward); one in a VPC that was removed a day
  ago;
- an own value of a register that another writer has deleted; an own deletion of 90 days ago;
- what belongs to a VPC that was removed: evictions, subnets and halves after a day, bindings at
  once.

Collected earlier, a reader to whom the cause comes later would see neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mesh.core import keys, model
from mesh.core.clock import AHEAD_MAX_MS, hlc_of_ns, ns_of_hlc
from mesh.core.effects import Effect, Persist
from mesh.core.ops import MESH_SHARD, Delete, NodeId, Op, Put
from mesh.core.pacing import TICK_NS
from sim.core.checkers import Violations
from sim.core.clock import MS_NS, SECOND_NS
from sim.core.node import Process

WITHDRAW_AFTER_NS = 30 * SECOND_NS
LOOK_NS: Final = 2 * SECOND_NS
"""A node looks after its claims once a second, and does not see what passes in between."""
SEEN_BEFORE_NS: Final = TICK_NS + 10 * MS_NS
"""A view has a frame at once; the batch that stores it, by which this hears of it, comes up to a
tick later in a busy mesh, and once the store has the batch before."""
DAY_NS: Final = 24 * 3600 * SECOND_NS
DELETION_KEPT_NS: Final = 90 * DAY_NS


class TidyChecks:
    """Of one run. `clocks_go`: no node's wall clock is ever set."""

    def __init__(self, violations: Violations, *, clocks_go: bool) -> None:
        self._violations = violations
        self._clocks_go = clocks_go
        self._skews_ns: dict[int, int] = {}
        """by node: the furthest ahead that its wall clock was"""
        self._outranked: dict[tuple[NodeId, str, bytes], int] = {}
        """(node, VPC, address) of a claim -> since when, at the latest, its node sees it outranked,
        in virtual time"""
        self._standing: dict[NodeId, set[tuple[NodeId, str, bytes]]] = {}
        """by node: of its claims those that stand, for sure"""
        self._lifted: dict[tuple[NodeId, str, bytes], tuple[int, int]] = {}
        """of claims that are not outranked any more: since when they were, and until when"""

    def drained(self, process: Process, effects: Sequence[Effect], now_ns: int) -> None:
        """The node's view, if it has one, has what `effects` are about to store."""
        if not process.sees:
            return
        for effect in effects:
            if isinstance(effect, Persist) and effect.chain.shard == MESH_SHARD:
                self._standing.pop(process.identity.node, None)  # other claims may count now
            elif isinstance(effect, Persist):
                for key in (*effect.puts, *effect.deletes):
                    if key[:1] == keys.ENDPOINT:
                        self._note(process, effect.chain.shard, key[1:], now_ns)

    def _note(self, process: Process, vpc: str, addr: bytes, now_ns: int) -> None:
        node = process.identity.node
        place = (node, vpc, addr)
        since_ns = self._outranked.pop(place, None)
        held = process.replica.record(vpc, keys.ENDPOINT + addr) is not None
        outranked = held and any(
            claim.node == node and claim.state == "shadowed"
            for claim in process.view.claims(vpc, keys.ip_of(addr))
        )
        if outranked:
            lifted = self._lifted.pop(place, None)
            if since_ns is None and lifted is not None and now_ns - lifted[1] < LOOK_NS:
                since_ns = lifted[0]
            # Where it is not known to have stood until now, nothing is said about since when.
            stood = place in self._standing.get(node, ())
            self._outranked[place] = (now_ns if stood else 0) if since_ns is None else since_ns
        elif since_ns is not None:
            self._lifted[place] = since_ns, now_ns
        if held and not outranked:
            self._standing.setdefault(node, set()).add(place)
        else:
            # What is gone may be back, and outranked, after a start with a disk that has it yet.
            self._standing.get(node, set()).discard(place)

    def wrote(self, process: Process, ops: Sequence[Op], skew_ns: int) -> None:
        """The node has written `ops`; its wall clock is so far from the true time. A stamp is only
        as far ahead of the writer's clock, as it was at any time, as another's may drag it."""
        me = process.identity.index
        most_ns = self._skews_ns[me] = max(skew_ns, self._skews_ns.get(me, skew_ns))
        latest_ns = process.wall_ns - skew_ns + most_ns + AHEAD_MAX_MS * MS_NS
        for op in ops:
            if isinstance(op, Put) and _stamp(op) > hlc_of_ns(latest_ns + MS_NS):
                words = f"{process.identity.name}: {op.key.hex()} of {op.shard[:8]}"
                self._violations.add("no stamp runs ahead of its writer's clock", words)

    def deleting(self, process: Process, op: Delete) -> None:
        """The node's housekeeping is about to write `op`."""
        try:
            key = keys.unpack(op.shard, op.key)
        except (keys.UnknownKey, keys.InvalidKey):
            words = "a key that it does not know"
        else:
            words = self._objection(process, op.shard, key)
        if words:
            self._violations.add(
                "a node deletes only what is spent",
                f"{process.identity.name}: {op.key.hex()} of {op.shard[:8]}: {words}",
            )

    def _objection(self, process: Process, shard: str, key: keys.Key) -> str:
        view, node = process.view, process.identity.node
        match key:
            case keys.EndpointKey(addr):
                return self._claim(process, shard, addr)
            case keys.BindingKey(_, vpc):
                return "" if vpc in view.catalog.removed else "its VPC was not removed"
            case keys.EvictionKey(vpc):
                return "" if self._gone(process, vpc) else "its VPC was not removed a day ago"
            case keys.VpcKey(vpc):
                records = view.catalog.vpc_records(vpc)
            case keys.SubnetKey(vpc, subnet):
                records = view.catalog.subnet_records(vpc, subnet)  # type: ignore[assignment]
            case keys.PeeringKey(vpc, other, half):
                records = view.catalog.half_records(vpc, other)[half]  # type: ignore[assignment]
                if self._gone(process, other):
                    return ""
            case keys.InterestKey(_, vpc):
                return "it keeps the VPC" if process.replica.keeps(vpc) else ""
            case _:
                return "nothing makes a registration spent"
        if not isinstance(key, keys.VpcKey) and self._gone(process, vpc):
            return ""
        own = records[node]
        others = [
            record
            for writer, record in records.items()
            if writer != node and view.catalog.may_write(vpc, writer)
        ]
        if own.deleted:
            aged = ns_of_hlc(own.hlc) + DELETION_KEPT_NS <= process.wall_ns
            return "" if aged else "its deletion is not 90 days old"
        return "" if any(record.deleted for record in others) else "nobody has deleted the object"

    def _claim(self, process: Process, vpc: str, addr: bytes) -> str:
        view, node = process.view, process.identity.node
        ip = keys.ip_of(addr)
        if vpc in view.catalog.removed:
            return "" if self._gone(process, vpc) else "its VPC was not removed a day ago"
        own = view.claim(node, vpc, ip)
        if own is not None and own.mobility <= view.catalog.hidden_up_to(vpc, addr, node):
            return ""
        claims = view.claims(vpc, ip)
        if own is None or not claims or claims[0].mobility <= own.mobility:
            return "nothing outranks the claim"
        since_ns = self._outranked.get((node, vpc, addr), 0)
        if self._clocks_go and since_ns - SEEN_BEFORE_NS + WITHDRAW_AFTER_NS > process.now_ns:
            return "it has not been outranked for 30 s"
        return ""

    def _gone(self, process: Process, vpc: str) -> bool:
        hlc = process.view.catalog.removed.get(vpc)
        return hlc is not None and ns_of_hlc(hlc) + DAY_NS <= process.wall_ns


def _stamp(op: Put) -> int:
    """0 where the record has none."""
    try:
        record = model.decode(keys.unpack(op.shard, op.key), op.record)
    except (keys.UnknownKey, keys.InvalidKey, model.UnknownRecord, model.InvalidRecord):
        return 0
    return getattr(record, "hlc", 0)
