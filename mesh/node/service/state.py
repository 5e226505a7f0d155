"""The replicated state itself as JSON: digests, chains, records."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import trio

from crdt.chain import Chain
from crdt.header import ChainId
from mesh.core import ed25519
from mesh.core.errors import NotFound
from mesh.core.keytext import describe_record, key_text
from mesh.core.ops import MESH_SHARD
from mesh.node.context import NodeContext

Json: TypeAlias = dict[str, Any]

_SLICE: Final = 500  # records decoded between two looks at what else is to be done


class StateService:
    """See the package."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    async def digest(self, shard: str | None = None) -> Json:
        shard_id = self._shard(shard or MESH_SHARD)
        return {"shard": shard_id, "digest": self._node.replica.lattice.digest(shard_id).hex()}

    async def dump(
        self, shard: str | None = None, chain: str | None = None, records: bool = False
    ) -> list[Json]:
        """Every branch of every chain, by shard and node, or those asked for."""
        lattice = self._node.replica.lattice
        shard_id = None if shard is None else self._shard(shard)
        writer = None if chain is None else self._node.view.member(chain).node
        dumped: list[Json] = []
        for id in list(lattice.chains(shard_id)):
            if writer is None or id.node == writer:
                for branch in lattice.branches(id):
                    dumped.append(await self._branch(branch, records))
        return sorted(dumped, key=lambda b: (b["shard"] != MESH_SHARD, b["shard"], b["node"]))

    async def _branch(self, branch: Chain, records: bool) -> Json:
        id, header = branch.id, branch.header
        dumped: Json = {
            "node": self._node.view.names.node_text(id.node),
            "shard": id.shard,
            "epoch": f"{branch.epoch.counter}-{branch.epoch.nonce.hex()}",
            "head": header.hi if header else 0,
            "root": header.root.hex() if header else "",
            "records": len(branch.live),
            "signature": self._signature_state(branch),
        }
        if records:
            dumped["entries"] = await self._entries(id, list(branch.live.items()))
        await trio.lowlevel.checkpoint()
        return dumped

    def _signature_state(self, branch: Chain) -> str:
        if branch.header is None:
            return "unsigned"
        roster = self._node.replica.roster
        member = roster.members().get(branch.id.node)
        if member is None:
            return "unknown writer"
        message = branch.header.message(roster.mesh_id)
        holds = ed25519.verify(member.key, message, branch.header.signature)
        return "valid" if holds else "invalid"

    async def _entries(
        self, id: ChainId, live: list[tuple[bytes, tuple[int, bytes]]]
    ) -> list[Json]:
        entries: list[Json] = []
        for start in range(0, len(live), _SLICE):
            for key, (seq, record) in live[start : start + _SLICE]:
                entries.append(
                    {
                        "key": key_text(self._node.view, id.shard, key),
                        "seq": seq,
                        "value": describe_record(id.shard, key, record),
                    }
                )
            await trio.lowlevel.checkpoint()
        return entries

    def _shard(self, text: str) -> str:
        """A shard by its name: `mesh`, or a VPC's name or id. Raises NotFound."""
        lattice = self._node.replica.lattice
        if text == MESH_SHARD or text in lattice.shards():
            return text
        try:
            return self._node.view.vpc(text).id
        except NotFound as error:
            raise NotFound(f"shard {text!r}: {error}") from None
