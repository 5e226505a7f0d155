"""Registers: objects with one record per writer, and how one value is read from them.

`deleted` wins for good (ids are never used again); else the highest (revision, hlc, node). Writers
take the highest revision they have seen plus one, so equal revisions with different values mean
that neither knew of the other: that is reported, not hidden.

A node that signed two histories is heard only where nobody else is: whatever it says, a deletion
too, ranks after every other writer's record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Generic, NamedTuple, TypeVar

from mesh.core.model import PeeringRecord, SubnetRecord, VpcRecord, same_value
from mesh.core.ops import NodeId

R = TypeVar("R", VpcRecord, SubnetRecord, PeeringRecord)


RULE_STAMP: Final = "later hlc, then higher node id"
RULE_FORKED: Final = "the others were written by nodes that signed two histories"


class Decided(NamedTuple, Generic[R]):
    """The record that counts, whose it is, and the writers it was disputed with.

    `disputed` is empty, or names the writers that say as much, the winner first: those of its
    revision, and forked ones of at least that. `rule` says why the winner is it, and `since_hlc`
    is the stamp from which on they disagreed.
    """

    record: R
    node: NodeId
    disputed: tuple[NodeId, ...] = ()
    since_hlc: int = 0
    rule: str = ""


def decide(
    records: Mapping[NodeId, R],
    may_write: Callable[[NodeId], bool],
    forked: Callable[[NodeId], bool],
) -> Decided[R] | None:
    """The value that the records with authority add up to; None if there are none."""
    ranked = sorted(
        (
            (not forked(node), record.deleted, record.revision, record.hlc, node)
            for node, record in records.items()
            if may_write(node)
        ),
        reverse=True,
    )
    if not ranked:
        return None
    honest, deleted, revision, _, winner = ranked[0]
    record = records[winner]
    if deleted:
        return Decided(record, winner)
    peers = [
        (node, clean)
        for clean, _, other, _, node in ranked
        if other == revision or (other > revision and clean != honest)
    ]
    rivals = [
        clean for node, clean in peers if node != winner and not same_value(records[node], record)
    ]
    if not rivals:
        return Decided(record, winner)
    # Within a revision the later stamp wins, so as a rule the winner's is when the dispute began.
    disputed = tuple(node for node, _ in peers)
    since_hlc = max(records[node].hlc for node in disputed)
    rule = RULE_STAMP if honest in rivals else RULE_FORKED
    return Decided(record, winner, disputed, since_hlc, rule)
