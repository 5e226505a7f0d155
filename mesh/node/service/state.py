"""The replicated state itself as JSON: digests, chains, records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import trio

from crdt.chain import Chain
from crdt.entry import Entry, record_of, seq_of
from crdt.header import ChainId, Epoch
from mesh.core.clock import ns_of_hlc
from mesh.core.errors import BadInput, NotFound
from mesh.core.history import history
from mesh.core.keytext import describe_record, key_text
from mesh.core.ops import MESH_SHARD
from mesh.core.sync import behind, held, resolved
from mesh.core.vectors import Held
from mesh.node.context import NodeContext
from mesh.node.service.objects import time_text
from mesh.node.verifying import Verifier

Json: TypeAlias = dict[str, Any]

_SLICE: Final = 500  # records decoded between two looks at what else is to be done


class StateService:
    """See the package."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node
        self._verifier = Verifier(node)

    async def digest(self, shard: str | None = None) -> Json:
        shard_id = self._shard(shard or MESH_SHARD)
        if not self._node.replica.keeps(shard_id):
            raise NotFound(
                f"shard {shard!r}: not held here, since this node's site has nothing to do with the"
                ' VPC: ask another node, or set [mesh] interest = "all" in weft.toml'
            )
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
            "epoch": _epoch_text(branch.epoch),
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
        if branch.id.node not in roster.members():
            return "unknown writer"
        return "valid" if roster.signed(branch.header) else "invalid"

    async def _entries(self, id: ChainId, live: list[tuple[bytes, Entry]]) -> list[Json]:
        entries: list[Json] = []
        for start in range(0, len(live), _SLICE):
            for key, entry in live[start : start + _SLICE]:
                entries.append(
                    {
                        "key": key_text(self._node.view, id.shard, key),
                        "seq": seq_of(entry),
                        "value": describe_record(id.shard, key, record_of(entry)),
                    }
                )
            await trio.lowlevel.checkpoint()
        return entries

    async def history(self, key: str) -> list[Json]:
        """Everything known of a key, in order. Raises NotFound where nothing is."""
        node = self._node
        known = history(node.view, node.replica.lattice, key)
        if not known:
            raise NotFound(f"key {key!r}: nothing is known of it: see weft state dump --records")
        rows = []
        for one in known:
            name = node.view.names.node_text(one.chain.node)
            at = None if one.hlc is None else time_text(ns_of_hlc(one.hlc))
            dot = f"{name}/{one.epoch.counter}/{one.seq}"
            rows.append({"at": at, "node": name, "what": one.what, "dot": dot, "value": one.value})
        return rows

    # ---- against itself ----

    async def verify(self, start: str | None = None) -> Json:
        """Verify some chains, from `start` on. `next` is to be given with the next call; null: all
        are done. `total` counts the chains there are now."""
        step = await self._verifier.step(None if start is None else self._chain_id(start))
        names = self._node.view.names
        return {
            "chains": step.chains,
            "records": step.records,
            "total": len(self._verifier.order()),
            "next": None if step.next is None else f"{step.next.node.hex()}-{step.next.shard}",
            "differences": [
                {
                    "node": names.node_text(found.chain.node) if found.chain else None,
                    "shard": found.chain.shard if found.chain else None,
                    "epoch": _epoch_text(found.epoch) if found.epoch else None,
                    "what": found.what,
                }
                for found in step.differences
            ],
        }

    @staticmethod
    def _chain_id(text: str) -> ChainId:
        node, _, shard = text.partition("-")
        try:
            return ChainId(bytes.fromhex(node), shard)
        except ValueError:
            raise BadInput(f"start: {text!r}: give `next` of the call before") from None

    # ---- against a peer ----

    async def diff(self, peer: str) -> list[Json]:
        """The chains that a linked peer holds otherwise than this node: none when they agree.

        `difference` is `missing here`, `missing there`, `older here`, `older there` or `differs`;
        `here` and `there` are `epoch/head`, or null.
        """
        node = self._node.view.member(peer).node
        if node == self._node.id:
            raise BadInput(f"peer: {peer!r} is this node: name another one")
        theirs = await self._node.inquiries.ask(node)
        lattice = self._node.replica.lattice
        rows: list[Json] = []
        for shard in sorted(theirs):
            chains = {id.short(): id for id in lattice.chains(shard)}
            vector = theirs[shard]
            for short in sorted({*chains, *vector}):
                id = chains.get(short)
                mine = lattice.branches(id) if id else []
                difference = compare(mine, vector.get(short, ()))
                if difference is not None:
                    there = vector.get(short, ())
                    rows.append(
                        {
                            "node": self._node.view.names.node_text(id.node) if id else None,
                            "shard": shard,
                            "chain": short.hex(),
                            "difference": difference,
                            "here": _place([held(branch) for branch in mine if branch.header]),
                            "there": _place(there),
                        }
                    )
        return rows

    def _shard(self, text: str) -> str:
        """A shard by its name: `mesh`, or a VPC's name or id. Raises NotFound."""
        lattice = self._node.replica.lattice
        if text == MESH_SHARD or text in lattice.shards():
            return text
        try:
            return self._node.view.vpc(text).id
        except NotFound as error:
            raise NotFound(f"shard {text!r}: {error}") from None


def _epoch_text(epoch: Epoch) -> str:
    return f"{epoch.counter}-{epoch.nonce.hex()}"


def compare(mine: list[Chain], theirs: Sequence[Held]) -> str | None:
    """How what is held of one chain here differs from what a peer tells; None: it does not."""
    here = [held(branch) for branch in mine if branch.header]
    theirs = resolved(mine, tuple(theirs))
    if not theirs:
        return "missing there" if here else None
    if not here:
        return "missing here"
    behind_here = behind(mine, theirs)
    latest, theirs_latest = here[0], max(theirs)
    if latest.epoch == theirs_latest.epoch:
        behind_there = (latest.head, latest.root) > (theirs_latest.head, theirs_latest.root)
    else:
        behind_there = latest.epoch > theirs_latest.epoch
    if behind_here and behind_there:
        return "differs"
    if behind_here:
        return "older here"
    return "older there" if behind_there else None


def _place(branches: Sequence[Held]) -> str | None:
    return f"{branches[0].epoch.counter}/{branches[0].head}" if branches else None
