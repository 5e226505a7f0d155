"""Status, members, their retirement and invitations as JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import trio

from dataplane.backend import Usage
from mesh.core.bounds import MESH_RECORDS, USUAL_QUOTAS, VPC_RECORDS, Quotas
from mesh.core.clock import AHEAD_MAX_MS, span_text
from mesh.core.errors import NotReady
from mesh.core.members import Member
from mesh.core.ops import MESH_SHARD, NodeId
from mesh.core.token import Token
from mesh.node.context import NodeContext
from mesh.node.diagnosis import nearly_full, some
from mesh.node.p2p.events import PeerInfo
from mesh.node.service.objects import time_text
from mesh.version import VERSION

Json: TypeAlias = dict[str, Any]

_USAGE_WAIT_S: Final = 0.3  # status answers within 1 s, also while a large batch is being written

_ALARM_FIXES: Final = {
    "endpoint.moves_held": "find out which two places claim the address in turn, and stop one",
    "node.cloned": "stop the other process that runs with this node's key: this one goes on a"
    " minute after nothing more of the other has come to peers; what either wrote is kept",
    "chain.over_quota": "remove records at that node, or find out what writes so many",
    "peer.incompatible": "upgrade the older of the two: nodes a release apart get on, two do not",
    "chain.disproved": "that node signs what it does not hold: run weft retire on it, look at it",
    "store.rebuilt": "wait until a peer has told what this node wrote, then remove that file",
    "store.failed": "free space or mend the disk: until then this node forwards and follows the"
    " others, and refuses writes",
}


class MembershipService:
    """See the package."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._usage = Usage(0, 0)

    # ---- status ----

    async def status(self) -> Json:
        node = self._node
        lattice = node.replica.lattice
        peers = node.transport.peers()
        active = [m for m in node.replica.roster.members().values() if m.state == "active"]
        return {
            "mesh": node.replica.roster.mesh_name,
            "site": node.member.site,
            "node": node.member.name,
            "version": VERSION,
            "ready": node.replica.writable,
            "peers": {"connected": len(peers), "known": len(active) - 1},
            "digest": lattice.digest(MESH_SHARD).hex(),
            "shards": {s: self.shard(s) for s in lattice.shards() if node.replica.keeps(s)},
            "oldest_sync_s": self._oldest_sync_s(peers),
            "dataplane": await self._dataplane(),
            "conflicts": len(node.view.conflicts()),
            "problems": self._problems(peers),
        }

    def shard(self, shard: str) -> Json:
        """Counts and digest of one shard."""
        lattice = self._node.replica.lattice
        chains = list(lattice.chains(shard))
        return {
            "chains": len(chains),
            "records": sum(len(b.live) for chain in chains for b in lattice.branches(chain)),
            "unknown": self._node.view.unknown_in(shard),
            "digest": lattice.digest(shard).hex(),
        }

    def _oldest_sync_s(self, peers: list[PeerInfo]) -> float | None:
        """How long ago the digests of the worst linked peer were equal to ours."""
        ages = [self._sync_age_s(peer.node) for peer in peers]
        known = [age for age in ages if age is not None]
        return max(known) if known else None

    def _sync_age_s(self, peer: NodeId) -> float | None:
        synced_ns = self._node.replica.last_sync_ns(peer)
        if synced_ns is None:
            return None
        return round((time.monotonic_ns() - synced_ns) / 1e9, 1)

    async def _dataplane(self) -> Json:
        forwarder = self._node.forwarder
        tables = self._node.forwarding.tables()
        with trio.move_on_after(_USAGE_WAIT_S):
            try:
                self._usage = await forwarder.read(lambda backend: backend.usage())
            except NotReady:
                self._usage = Usage(0, 0)
        return {
            "mode": forwarder.backend.mode,
            "reason": forwarder.reason,
            "endpoints": len(tables.endpoints),
            "subnets": len(tables.subnets),
            "map_used": self._usage.used,
            "map_max": self._usage.max,
            "synced": forwarder.synced,
        }

    def _problems(self, peers: list[PeerInfo]) -> list[Json]:
        node = self._node
        found = [
            {"what": f"{alarm}: {fields}", "fix": _ALARM_FIXES.get(alarm, "see the node's log")}
            for alarm, fields in sorted(node.alarms.items())
            if alarm
            not in (
                "chain.forked",
                "key.contested",
            )  # those of the mesh are below, and after a restart too
        ]
        found += [
            {
                "what": f"node {member.name} signed two histories of one chain: its claims rank"
                " last everywhere",
                "fix": "find out who else runs with its key or an old copy of its memory, then run"
                f" weft retire {member.name} (--compromised if the key is stolen)",
            }
            for member in node.replica.roster.members().values()
            if member.forked and member.state == "active"
        ]
        found += [
            {
                "what": f"a key of node {member.name} was replaced by two others: somebody else has"
                " had it, and only one of the two counts",
                "fix": f"run weft retire {member.name} --compromised, and join it anew",
            }
            for member in node.replica.roster.members().values()
            if member.contested and member.state == "active"
        ]
        found += [
            {
                "what": f"node {member.name} is forgotten, and what its key signs as an admin still"
                " counts",
                "fix": f"run weft admin rm {member.name} --root-key FILE, with the mesh root key",
            }
            for member in node.replica.roster.stray_admins()
        ]
        found += [
            {
                "what": f"two processes run as node {member.name}: one at {twins.linked}, one that"
                f" called from {twins.refused} and was refused",
                "fix": "stop the one that should not be: a copied disk or machine was started",
            }
            for id, twins in node.transport.twins().items()
            if (member := node.replica.roster.members().get(id)) is not None
        ]
        found += clock_problem([p.clock_offset_ns for p in peers if p.clock_offset_ns is not None])
        if node.replica.retired:
            found.append(
                {
                    "what": "this node was retired from the mesh: it takes no writes",
                    "fix": "stop it; to come back, join with a new directory",
                }
            )
        if node.forwarder.problem is not None:
            found.append(
                {
                    "what": f"data plane: {node.forwarder.problem}",
                    "fix": "mend that, then run weft dataplane audit --repair",
                }
            )
        full = node.forwarder.nearly_full()
        if full:
            what, fix = nearly_full(full)
            found.append({"what": f"data plane: tables are {what}", "fix": fix})
        apart = node.forwarding.apart()
        if apart:
            found.append(
                {
                    "what": "no traffic is carried to gateways with an underlay address of the"
                    f" other IP family: {some([node.view.names.node_text(n) for n in apart])}",
                    "fix": "give all gateways [node] underlay addresses of one family",
                }
            )
        gone = node.forwarder.missing_interfaces
        if gone:
            found.append(
                {
                    "what": f"{len(gone)} attached interfaces are gone, nothing of their endpoints"
                    f" is carried: {some(gone)}",
                    "fix": "make them again, or run weft endpoint rm for what is gone for good",
                }
            )
        if self._fell_back_to_memory():
            found.append(
                {
                    "what": f"no traffic is carried: data plane in {node.forwarder.reason}",
                    "fix": 'mend that, or set [dataplane] mode = "memory" in weft.toml',
                }
            )
        if node.damaged_branches:
            found.append(
                {
                    "what": f"{node.damaged_branches} stored chains were damaged and left out",
                    "fix": "check the disk; peers that hold them send them again",
                }
            )
        return found

    def _fell_back_to_memory(self) -> bool:
        config = self._node.config
        wanted = config.dataplane_mode == "auto" and config.underlay is not None
        return wanted and self._node.forwarder.backend.mode == "memory"

    # ---- members ----

    async def members(self) -> list[Json]:
        links = {peer.node: peer for peer in self._node.transport.peers()}
        members = self._node.replica.roster.members().values()
        ordered = sorted(members, key=lambda member: (member.site, member.name, member.node))
        return [self._member(member, links.get(member.node)) for member in ordered]

    def _member(self, member: Member, link: PeerInfo | None) -> Json:
        gateway = self._node.view.gateways.get(member.node)
        here = member.node == self._node.id
        rtt_ms = link.rtt_ms if link else None
        offset_ns = 0 if here else link.clock_offset_ns if link else None
        return {
            "node": member.name,
            "site": member.site,
            "state": member.state,
            "rtt": None if rtt_ms is None else round(rtt_ms, 2),
            "path": "self" if here else link.path if link else None,
            "version": VERSION if here else gateway.version if gateway else None,
            "last_sync": 0.0 if here else self._sync_age_s(member.node),
            "clock": None if offset_ns is None else _ahead_text(offset_ns / 1e9),
            "clock_offset_s": None if offset_ns is None else offset_ns / 1e9,
            "id": member.node.hex(),
            "admin": member.admin,
            "forked": member.forked,
            "quotas": _quotas(member.quotas),
            "key": member.key.hex(),
            "rotations": member.rotations,
        }

    async def rotate(self, force: bool = False) -> Json:
        await self._node.rotating.rotate(force=force)
        member = self._node.replica.roster.members()[self._node.id]
        return {
            "node": member.name,
            "id": member.node.hex(),
            "key": member.key.hex(),
            "rotations": member.rotations,
        }

    async def retire(self, node: str, compromised: bool = False) -> Json:
        member = self._node.view.member(node)
        await self._node.retiring.retire(member, compromised=compromised)
        return self._state_of(member.node)

    async def forget(self, node: str) -> Json:
        member = self._node.view.member(node)
        await self._node.retiring.forget(member)
        return self._state_of(member.node)

    async def leave(self) -> Json:
        await self._node.retiring.leave()
        return self._state_of(self._node.id)

    def _state_of(self, node: NodeId) -> Json:
        member = self._node.replica.roster.members()[node]
        return {"node": member.name, "id": node.hex(), "state": member.state}

    # ---- invitations ----

    async def invite(
        self,
        ttl_s: int,
        site: str | None = None,
        quota_mesh: int = MESH_RECORDS,
        quota_vpc: int = VPC_RECORDS,
    ) -> Json:
        quotas = Quotas(quota_mesh, quota_vpc)
        granted = None if quotas == USUAL_QUOTAS else quotas
        text = await self._node.joining.invite(site or "", ttl_s, granted)
        self._node.transport.open_joining(True)  # now, for whoever joins within the second
        token = Token.decode(text)
        return {
            "token": text,
            "mesh": token.mesh_name,
            "site": site,
            "quotas": _quotas(quotas),
            "addrs": list(token.addrs),
            "expires": time_text(token.expires_s * 1_000_000_000),
        }


def clock_problem(offsets_ns: Sequence[int]) -> list[Json]:
    """What is wrong with this node's clock, by those of its linked peers ahead of it: something,
    when more than half of them are `AHEAD_MAX_MS` ahead, or that far behind."""
    far_ns = AHEAD_MAX_MS * 1_000_000
    for side, word in ((1, "behind"), (-1, "ahead of")):
        far = sorted(abs(offset) for offset in offsets_ns if side * offset > far_ns)
        if 2 * len(far) > len(offsets_ns):
            by = span_text(far[len(far) // 2] / 1e9)
            return [
                {
                    "what": f"this node's clock is {by} {word} those of {len(far)} of"
                    f" {len(offsets_ns)} linked peers: it loses or wins ties that it should not",
                    "fix": "set it by NTP (timedatectl set-ntp true), or theirs: weft members shows"
                    " each one's",
                }
            ]
    return []


def _ahead_text(offset_s: float) -> str:
    return ("-" if offset_s < 0 else "+") + span_text(abs(offset_s))


def _quotas(quotas: Quotas) -> Json:
    return {"mesh": quotas.mesh, "vpc": quotas.vpc}
