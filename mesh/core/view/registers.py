"""Registers: objects with one record per writer, and how one value is read from them.

`deleted` wins for good (ids are never used again); else the highest (revision, hlc, node). Writers
take the highest revision they have seen plus one, so equal revisions with different values mean
that neither knew of the other: that is reported, not hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from mesh.core.model import PeeringRecord, SubnetRecord, VpcRecord, same_value
from mesh.core.ops import NodeId

R = TypeVar("R", VpcRecord, SubnetRecord, PeeringRecord)


@dataclass(frozen=True, slots=True)
class Decided(Generic[R]):
    """The record that counts, whose it is, and the writers it was disputed with.

    `disputed` is empty, or names the writers of the top revision, the winner first, and
    `since_hlc` is the stamp from which on they disagreed.
    """

    record: R
    node: NodeId
    disputed: tuple[NodeId, ...] = ()
    since_hlc: int = 0


def decide(records: Mapping[NodeId, R], may_write: Callable[[NodeId], bool]) -> Decided[R] | None:
    """The value that the records with authority add up to; None if there are none."""
    ranked = sorted(
        ((record.deleted, record.revision, record.hlc, node) for node, record in records.items()
         if may_write(node)),
        reverse=True,
    )  # fmt: skip
    if not ranked:
        return None
    deleted, revision, _, winner = ranked[0]
    record = records[winner]
    peers = [node for _, other, _, node in ranked if other == revision]
    rivals = [node for node in peers if not same_value(records[node], record)]
    if deleted or not rivals:
        return Decided(record, winner)
    # Within a revision the later stamp wins, so the winner's is when the dispute began.
    return Decided(record, winner, tuple(peers), record.hlc)
