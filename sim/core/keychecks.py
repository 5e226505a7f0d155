"""What must hold of keys: of a key that was replaced no more counts than its node has said, and
whose key counts no more does not write.

Read anew from the roster's statements, as simply as possible: of two rotations of one key the lower
hash counts, and what goes on counting of it stands in the statement that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from crdt.header import Header
from mesh.core.effects import Effect, Persist
from mesh.core.ops import NodeId
from mesh.core.rotations import Counted, counted_by, head_mark
from mesh.core.statements import HEADS, ROTATE, Statement
from sim.core.checkers import Violations, chain_text
from sim.core.node import Process


class KeyChecks:
    """Of one run."""

    def __init__(self, violations: Violations) -> None:
        self._violations = violations

    def wrote(self, process: Process, key: bytes) -> None:
        """The node, which has this key, has taken a write."""
        member = process.replica.roster.active(process.identity.node)
        if member is None or member.key != key:
            self._violations.add("who counts no more does not write", process.identity.name)

    def drained(self, process: Process, effects: Sequence[Effect]) -> None:
        """What the node has stored of others who have replaced their keys."""
        members = process.replica.roster.members()
        for effect in effects:
            if not isinstance(effect, Persist) or effect.chain.node == process.identity.node:
                continue
            member = members.get(effect.chain.node)
            if member is None or not member.rotations:
                continue
            for branch in process.replica.lattice.branches(effect.chain):
                if branch.header is not None and not _counts(process, branch.header, member.key):
                    self._violations.add(
                        "a replaced key counts no further than was said",
                        f"{process.identity.name}: {chain_text(branch.id)} head {branch.head}",
                    )


def _counts(process: Process, header: Header, in_use: bytes) -> bool:
    message = header.message(process.replica.roster.mesh_id)
    if process.verify(in_use, message, header.signature):
        return True
    for key, counted in _replaced(process, header.chain.node):
        if process.verify(key, message, header.signature):
            mark = head_mark(header.chain.shard, header.epoch)
            return counted is None or header.hi <= counted.heads.get(mark, 0)
    return False


def _replaced(process: Process, node: NodeId) -> Iterator[tuple[bytes, Counted | None]]:
    """Each key of the node that was replaced, and what goes on counting of it; None: not known."""
    held = [Statement.parse(blob) for blob in process.replica.roster.statements()]
    heads = {statement.hash: counted_by(statement) for statement in held if statement.kind == HEADS}
    lowest: dict[bytes, Statement] = {}
    for said in held:
        if said.kind == ROTATE and said.node() == node:
            rival = lowest.get(said.replaced_key())
            if rival is None or said.hash < rival.hash:
                lowest[said.replaced_key()] = said
    for key, rotation in lowest.items():
        yield key, heads.get(rotation.heads_hash())
