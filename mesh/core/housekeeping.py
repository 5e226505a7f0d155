"""What a node writes by itself, because of what it sees and because time passes.

- It withdraws an own claim 30 s after it has seen it outranked by a move: not at once, so that no
  reader sees neither claim.
- It drops an own claim that an eviction hides.
- It counts moves of endpoints, of which it makes no more itself when they are too many.
- It binds the VNI of a VPC in which it has endpoints, and never binds one VNI to two live VPCs:
  a newcomer cannot take the VNI of an established VPC.
- It keeps its registration as the node has set it, and one record for each VPC of which the node
  keeps the shard.
- Once an hour it sweeps what nobody needs: own records in VPCs removed a day ago, own values of
  objects that another writer has deleted, own deletions of 90 days ago that hide nothing.

`run` is level-triggered: called late, it does late what is due. Its cost follows what changed in
the view, apart from the sweep, which reads the keys of the `mesh` shard once.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from itertools import islice
from typing import Final

from mesh.core import keys, model
from mesh.core.author import Author
from mesh.core.clock import ns_of_hlc
from mesh.core.damping import MoveDamper
from mesh.core.ops import MESH_SHARD, Delete, NodeId, Op
from mesh.core.view import ViewDelta
from mesh.core.view.registers import R

_S: Final = 1_000_000_000
WITHDRAW_AFTER_NS: Final = 30 * _S
"""By then the claim that outranks ours has reached whoever is not cut off."""
REMOVED_VPC_KEPT_NS: Final = 24 * 3600 * _S
DELETION_KEPT_NS: Final = 90 * 24 * 3600 * _S
"""Longer than a site is expected to be cut off while it still holds a value not seen here."""
SWEEP_INTERVAL_NS: Final = 3600 * _S


class Housekeeper:
    """Follows the view for one author. See the module."""

    def __init__(self, author: Author, damper: MoveDamper) -> None:
        self._author = author
        self._damper = damper
        self._view = author.view
        self._reader = author.view.reader()
        self._waiting: dict[str, dict[bytes, None]] = {}
        """VPC → keys of endpoints that changed and were not looked at yet. None without a key."""
        self._registration: model.Registration | None = None
        self._interest: Set[str] | None = None
        self._interest_changed = False
        self._outranked: dict[tuple[str, str], int] = {}
        """Own claim → since when it is seen outranked. In that order, as time does not go back."""
        self._hosted: dict[str, dict[bytes, None]] = {}
        """VPC → keys that this node claims, where the claim counts. No sets: those a collection of
        garbage goes through key by key, and a dictionary of bytes it leaves out."""
        self._removed_seen_ns: dict[str, int] = {}
        """Removed VPC → since when this process sees it so: its remover's clock may be ahead."""
        self._sweep_at_ns = 0

    def register(self, registration: model.Registration, now_ns: int) -> list[Op]:
        """Have `registration` (its stamp is ignored) as this node's; nothing if it is."""
        self._registration = registration
        return self._refresh_registration(now_ns)

    def set_interest(self, vpcs: Set[str]) -> None:
        """The VPCs of which this node keeps the shard: `run` has it said."""
        self._interest, self._interest_changed = vpcs, True

    def next_deadline_ns(self) -> int | None:
        """When `run` has something to do next; 0: at once; None: not before the view changes."""
        if self._reader or self._waiting or self._interest_changed or not self._sweep_at_ns:
            return 0
        for seen_ns in self._outranked.values():
            return min(self._sweep_at_ns, seen_ns + WITHDRAW_AFTER_NS)
        return self._sweep_at_ns

    def withdrawals(self) -> dict[tuple[str, str], int]:
        """(VPC, IP) of the own claims that are seen outranked -> when each is withdrawn."""
        return {place: ns + WITHDRAW_AFTER_NS for place, ns in self._outranked.items()}

    @property
    def behind(self) -> bool:
        """Whether the last `run` left changed endpoints to be looked at by the next."""
        return bool(self._waiting)

    def run(self, now_ns: int, endpoints_max: int | None = None) -> list[Op]:
        """The writes that are due. Call again after they have reached the view.

        With `endpoints_max` no more changed endpoints than that are looked at.
        """
        delta = self._reader.take()
        for vpc, touched in delta.endpoints.items():
            if vpc in self._waiting:
                self._waiting[vpc].update(touched)
            else:
                self._waiting[vpc] = touched  # nobody else has it: a copy of a million takes 20 ms
        delta.endpoints = self._next_endpoints(endpoints_max)
        ops = self._note_endpoints(delta, now_ns)
        ops += self._bind(delta, now_ns)
        if self._author.node in delta.gateways:
            ops += self._refresh_registration(now_ns)
        if self._interest_changed or any(node == self._author.node for node, _ in delta.interests):
            ops += self._tell_interest(now_ns)
        ops += self._withdraw(now_ns)
        if now_ns >= self._sweep_at_ns:
            self._sweep_at_ns = now_ns + SWEEP_INTERVAL_NS
            ops += self._sweep(now_ns)
        return ops

    def _next_endpoints(self, endpoints_max: int | None) -> dict[str, dict[bytes, None]]:
        """Take out those that waited longest."""
        if endpoints_max is None:
            taken, self._waiting = self._waiting, {}
            return taken
        taken, left = {}, endpoints_max
        while self._waiting and left:
            vpc, waiting = next(iter(self._waiting.items()))
            taken[vpc] = dict.fromkeys(islice(waiting, left))
            for key in taken[vpc]:
                del waiting[key]
            left -= len(taken[vpc])
            if not waiting:
                del self._waiting[vpc]
        return taken

    # --- own claims --------------------------------------------------------------------------

    def _note_endpoints(self, delta: ViewDelta, now_ns: int) -> list[Op]:
        ops: list[Op] = []
        author, view = self._author, self._view
        for vpc, ip in self._of_concern(delta):
            hosted = self._hosted.get(vpc, {})
            claims = view.claims(vpc, ip)
            self._damper.note((vpc, ip), claims[0] if claims else None, now_ns)
            own = next((c for c in claims if c.node == author.node), None)
            if own is None:
                hosted.pop(_key(ip), None)
                self._outranked.pop((vpc, ip), None)
                if self._evicted(vpc, ip):
                    ops.append(_drop_claim(vpc, keys.addr_of(ip)))
                continue
            if _key(ip) not in hosted:
                self._hosted.setdefault(vpc, hosted)[_key(ip)] = None
                delta.vpcs.add(vpc)
            if own.state == "shadowed":
                self._outranked.setdefault((vpc, ip), now_ns)
            else:
                self._outranked.pop((vpc, ip), None)
        return ops

    def _of_concern(self, delta: ViewDelta) -> list[tuple[str, str]]:
        """The (VPC, IP) of the delta's endpoints, sorted, but for those that are neither this
        node's nor have moved, and for its own of which there is nothing to say but that they are
        hosted: most are of no concern here."""
        places: list[tuple[str, str]] = []
        for vpc, touched in delta.endpoints.items():
            tracked = self._damper.tracked(vpc)
            wanted = set(self._view.table.notable(vpc, list(touched), self._author.node))
            calm = self._view.table.calm(vpc, list(wanted), self._author.node)
            calm -= {key for key in calm if key in tracked}
            if self._outranked:
                calm -= {key for key in calm if (vpc, keys.ip_of(key[1:])) in self._outranked}
            hosted = self._hosted.get(vpc, {})
            if not calm <= hosted.keys():
                self._hosted.setdefault(vpc, hosted).update(dict.fromkeys(calm))
                delta.vpcs.add(vpc)
            wanted |= tracked & touched.keys()
            wanted |= hosted.keys() & touched.keys()
            places += ((vpc, keys.ip_of(key[1:])) for key in wanted - calm)
        return sorted(places)

    def _evicted(self, vpc: str, ip: str) -> bool:
        """Whether there is an own claim that an eviction hides."""
        node = self._author.node
        claim = self._view.claim(node, vpc, ip)
        if claim is None:
            return False
        return claim.mobility <= self._view.catalog.hidden_up_to(vpc, keys.addr_of(ip), node)

    def _withdraw(self, now_ns: int) -> list[Op]:
        due: list[tuple[str, str]] = []
        for place, seen_ns in self._outranked.items():
            if seen_ns + WITHDRAW_AFTER_NS > now_ns:
                break
            due.append(place)
        for place in due:
            del self._outranked[place]
        return [_drop_claim(vpc, keys.addr_of(ip)) for vpc, ip in due]

    # --- VNI bindings and the registration ---------------------------------------------------

    def _bind(self, delta: ViewDelta, now_ns: int) -> list[Op]:
        ops: list[Op] = []
        node, catalog = self._author.node, self._view.catalog
        looked_at = set(delta.vpcs)
        for vpc in delta.vpcs:
            binding, live = catalog.binding(vpc, node), self._view.vpcs.get(vpc)
            if binding is not None and (live is None or live.vni != binding.vni):
                looked_at.update(catalog.with_vni(binding.vni))  # the VNI may be free for these
        for vpc in sorted(looked_at):
            binding, live = catalog.binding(vpc, node), self._view.vpcs.get(vpc)
            if live is None:
                self._hosted.pop(vpc, None)
                if binding is not None and vpc in catalog.removed:
                    ops.append(Delete(MESH_SHARD, keys.pack(keys.BindingKey(node, vpc))))
                continue
            if not self._hosted.get(vpc) or live.state != "active":
                continue
            if (binding is None or binding.vni != live.vni) and not self._bound(live.vni, vpc):
                record = model.Binding(self._author.stamp(now_ns), live.vni)
                ops.append(self._author.put(keys.BindingKey(node, vpc), record))
        return ops

    def _bound(self, vni: int, but: str) -> bool:
        """Whether this node has bound the VNI to another live VPC."""
        catalog = self._view.catalog
        for vpc in catalog.with_vni(vni):
            binding = catalog.binding(vpc, self._author.node)
            if vpc != but and binding is not None and binding.vni == vni:
                return True
        return False

    def _refresh_registration(self, now_ns: int) -> list[Op]:
        wanted, node = self._registration, self._author.node
        held = self._view.catalog.registration(node)
        if wanted is None or (held is not None and _says(held) == _says(wanted)):
            return []
        hlc = self._author.stamp(now_ns, () if held is None else (held.hlc,))
        return [self._author.put(keys.GatewayKey(node), replace(wanted, hlc=hlc))]

    def _tell_interest(self, now_ns: int) -> list[Op]:
        self._interest_changed = False
        if self._interest is None:
            return []
        author, told = self._author, self._view.catalog.interest(self._author.node)
        ops: list[Op] = [
            Delete(MESH_SHARD, keys.pack(keys.InterestKey(author.node, vpc)))
            for vpc in sorted(told - self._interest)
        ]
        for vpc in sorted(self._interest - told):
            record = model.Interest(author.stamp(now_ns))
            ops.append(author.put(keys.InterestKey(author.node, vpc), record))
        return ops

    # --- the sweep ---------------------------------------------------------------------------

    def _sweep(self, now_ns: int) -> list[Op]:
        catalog, owners, node = self._view.catalog, self._view.table.owners, self._author.node
        ops: list[Op] = []
        seen_ns = self._removed_seen_ns
        self._removed_seen_ns = {vpc: seen_ns.get(vpc, now_ns) for vpc in catalog.removed}
        gone = {
            vpc
            for vpc, hlc in catalog.removed.items()
            if min(ns_of_hlc(hlc), self._removed_seen_ns[vpc]) + REMOVED_VPC_KEPT_NS <= now_ns
        }
        for vpc in sorted(gone):
            claimed = (key for key in owners.keys(vpc) if node in owners.owners(vpc, key))
            ops += (Delete(vpc, key) for key in claimed)
        for key in catalog.written_by(node):
            if self._is_useless(key, gone, now_ns):
                ops.append(Delete(MESH_SHARD, keys.pack(key)))
        return ops

    def _is_useless(self, key: keys.LongLived, gone: set[str], now_ns: int) -> bool:
        catalog = self._view.catalog
        match key:
            case keys.VpcKey(vpc):
                return self._is_spent(vpc, catalog.vpc_records(vpc), now_ns)
            case keys.SubnetKey(vpc, subnet):
                records = catalog.subnet_records(vpc, subnet)
                return vpc in gone or self._is_spent(vpc, records, now_ns)
            case keys.PeeringKey(a, b, half):
                halves = catalog.half_records(a, b)[half]
                return a in gone or b in gone or self._is_spent(a, halves, now_ns)
            case _:  # an eviction
                return key.vpc in gone

    def _is_spent(self, vpc: str, records: Mapping[NodeId, R], now_ns: int) -> bool:
        """Whether the own record says nothing any more: a value that another writer's deletion
        overrides, or an old deletion that overrides nothing."""
        own = records[self._author.node]
        catalog = self._view.catalog
        others = [
            record
            for node, record in records.items()
            if node != self._author.node and catalog.may_write(vpc, node)
        ]
        if not own.deleted:
            decided = catalog.decide(vpc, records)
            return decided is not None and decided.record.deleted
        old = ns_of_hlc(own.hlc) + DELETION_KEPT_NS <= now_ns
        return old and all(record.deleted for record in others)


def _says(registration: model.Registration) -> tuple[object, ...]:
    said = registration.underlay, registration.addrs, registration.version
    return *said, registration.encapsulation


def _key(ip: str) -> bytes:
    return keys.ENDPOINT + keys.addr_of(ip)


def _drop_claim(vpc: str, addr: bytes) -> Delete:
    return Delete(vpc, keys.pack(keys.EndpointKey(addr)))
