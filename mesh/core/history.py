"""What is known of one key: every writer's record, evictions, and what was dropped of late.

A chain holds one record a key, its writer's last. What a writer dropped leaves nothing but its
place among the last few thousand deletes of its chain (`crdt.chain`), for as long as it is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from crdt import entry
from crdt.header import ChainId, Epoch
from crdt.lattice import Lattice
from mesh.core import keys
from mesh.core.keytext import describe_record, parse_key
from mesh.core.ops import MESH_SHARD
from mesh.core.view import View


@dataclass(frozen=True, slots=True)
class Known:
    """One thing known: a record that is held, or that one was dropped."""

    chain: ChainId
    epoch: Epoch
    seq: int
    value: dict[str, Any] | None
    """As `describe_record`; None: the node dropped what it had."""

    @property
    def hlc(self) -> int | None:
        """Its stamp; None where it has none that can be read."""
        return self.value.get("hlc") if self.value else None

    @property
    def what(self) -> str:
        """In a word: claim, revision, deletion, eviction, … or dropped."""
        if self.value is None:
            return "dropped"
        if self.value.get("deleted"):
            return "deletion"
        named = {"endpoint": "claim", "evict": "eviction", "gateway": "registration"}
        kind = str(self.value["kind"])
        return "revision" if "revision" in self.value else named.get(kind, kind)


def history(view: View, lattice: Lattice, text: str) -> list[Known]:
    """All that is known of the key of that text, in the order of their stamps.

    A drop has none: it comes before what its node wrote later, else last. Raises as `parse_key`.
    """
    shard, key = parse_key(view, text)
    found = list(_under(lattice, shard, key))
    if shard != MESH_SHARD and key[:1] == keys.ENDPOINT:
        addr = key[1:]
        for evicted, by_writer in view.catalog.evictions(shard, addr).items():
            packed = keys.pack(keys.EvictionKey(shard, evicted, addr))
            for writer in by_writer:
                found += _of(lattice, ChainId(writer, MESH_SHARD), packed)
    latest = max((known.hlc for known in found if known.hlc is not None), default=0)

    def moment(known: Known) -> tuple[int, bool, ChainId, Epoch, int]:
        hlc = known.hlc
        if hlc is None:
            later = [k.hlc for k in found if k.chain == known.chain and k.seq > known.seq and k.hlc]
            hlc = min(later, default=latest + 1)
        return hlc, known.value is not None, known.chain, known.epoch, known.seq

    return sorted(found, key=moment)


def _under(lattice: Lattice, shard: str, key: bytes) -> Iterator[Known]:
    for id in lattice.chains(shard):
        yield from _of(lattice, id, key)


def _of(lattice: Lattice, id: ChainId, key: bytes) -> Iterator[Known]:
    held = lattice.get(id, key)
    if held is not None:
        epoch, seq, record = held
        yield Known(id, epoch, seq, describe_record(id.shard, key, record))
    for branch in lattice.branches(id):
        for dot in branch.ring:
            if entry.record_of(dot) == key:  # a seq, and the key in a record's place
                yield Known(id, branch.epoch, entry.seq_of(dot), None)
