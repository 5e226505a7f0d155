"""The keys of a node, one after the other: which is in use, and what the earlier ones count for.

- A rotation names the key that it replaces, is signed by that one and by the new one, and so needs
  nobody else's word. The keys of a node are a line from its first; a rotation of a key that is not
  on the line counts for nothing, nor does one to a key that is on it before.
- Of two rotations of one key to different keys the lower hash counts, everywhere. The other stays
  as the proof that somebody else had the key. What comes after it does not.
- A rotation says by a hash what goes on counting of the key that it replaces: which heads of chains
  and which statements. Until that is known all of it does, so that nothing vanishes meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple

from crdt.header import ChainId, Epoch, Header
from crdt.lattice import Lattice
from mesh.core.errors import PeerError
from mesh.core.members import Member
from mesh.core.ops import NodeId
from mesh.core.statements import HEADS, ROTATE, Statement

ROTATIONS_MAX: Final = 64
"""In the life of a node, monthly for five years: all are shown in the handshake with a peer that
knows only an earlier key (`SHOWN_BYTES_MAX` of `mesh.node.p2p.session`)."""
ALL_LINKED_MAX: Final = 8
"""Other members, up to which everybody is linked with everybody (`mesh.node.p2p.overlay`)."""
HEADS_MAX: Final = 8192
"""Marks of heads in one statement: a branch and an earlier epoch for each of 4096 chains."""
MARK_BYTES: Final = 16
"""Of a hash, where an attacker would have to find another value for one of a few thousand."""
_HEAD_BYTES: Final = 6
_MARKED_BYTES: Final = MARK_BYTES + _HEAD_BYTES


def unheard(
    node: NodeId,
    members: Mapping[NodeId, Member],
    linked: Collection[NodeId],
    heard: Callable[[NodeId], bool],
) -> list[Member]:
    """Active members that have not told and given `node` all that they hold since it started. What
    it wrote and has lost since with its disk may be there only, and counts no more once a rotation
    does not name it. In a large mesh, where few are linked, those that are count for all.

    Args:
        heard: whether a member has once told this process all that it held.
    """
    others = [m for m in members.values() if m.state == "active" and m.node != node]
    lacking = [member for member in others if not heard(member.node)]
    if len(others) > ALL_LINKED_MAX and len(lacking) < len(others):
        lacking = [member for member in lacking if member.node in linked]
    return sorted(lacking, key=lambda member: member.name)


class Counted(NamedTuple):
    """What goes on counting of a replaced key."""

    heads: Mapping[bytes, int]
    """mark of (shard, epoch) -> head up to which it counts"""
    said: frozenset[bytes]
    """marks of statements"""


class Replaced(NamedTuple):
    """An earlier key; `counted` None: all of it counts, for it is not known yet what does."""

    key: bytes
    counted: Counted | None


@dataclass(frozen=True, slots=True)
class Line:
    """The keys of one node as its rotations make them."""

    in_use: bytes
    replaced: tuple[Replaced, ...] = ()
    """the first key first"""
    contested: bool = False
    """Whether a key was replaced by two others: somebody else had it."""
    rotations: tuple[Statement, ...] = ()
    """those that count, the first first"""
    kept: frozenset[bytes] = frozenset()
    """hashes of the statements that stay in the set: rotations, proofs of a contest, heads"""

    def of_header(self, header: Header) -> Iterator[bytes]:
        """The keys that may have signed it."""
        yield self.in_use
        if not self.replaced:
            return
        mark = head_mark(header.chain.shard, header.epoch)
        for key, counted in reversed(self.replaced):
            if counted is None or header.hi <= counted.heads.get(mark, 0):
                yield key

    def key_at(self, turn: int) -> bytes | None:
        """The key of that turn, the first being 0; None: there is none yet."""
        if turn == len(self.replaced):
            return self.in_use
        return self.replaced[turn].key if 0 <= turn < len(self.replaced) else None

    def counts(self, statement: Statement) -> bool:
        """Whether what the key of its turn has signed, a statement of this node, counts."""
        if not 0 <= statement.turn < len(self.replaced):
            return statement.turn == len(self.replaced)
        counted = self.replaced[statement.turn].counted
        return counted is None or statement.hash[:MARK_BYTES] in counted.said


def line_of(first: bytes, rotations: Iterable[Statement], heads: Mapping[bytes, Statement]) -> Line:
    """The line that begins with `first`, by the verified rotations of that node.

    Args:
        heads: the statements of kind HEADS of that node, by hash.
    """
    by_key: dict[bytes, list[Statement]] = {}
    for rotation in sorted(rotations, key=lambda statement: statement.hash):
        by_key.setdefault(rotation.replaced_key(), []).append(rotation)
    in_use, replaced = first, list[Replaced]()
    counting, kept = list[Statement](), set[bytes]()
    contested = False
    while len(replaced) < ROTATIONS_MAX:
        before = {in_use, *(key for key, _ in replaced)}
        offered = [r for r in by_key.get(in_use, ()) if r.key() not in before]
        if not offered:
            break
        best = offered[0]
        rival = next((r for r in offered if r.key() != best.key()), None)
        if rival is not None:
            contested = True
            kept.add(rival.hash)
        told = heads.get(best.heads_hash())
        kept.add(best.hash)
        if told is not None:
            kept.add(told.hash)
        counting.append(best)
        replaced.append(Replaced(in_use, counted_by(told) if told else None))
        in_use = best.key()
    return Line(in_use, tuple(replaced), contested, tuple(counting), frozenset(kept))


def lines_of(statements: Iterable[Statement], firsts: Mapping[NodeId, bytes]) -> dict[NodeId, Line]:
    """The lines of the nodes that have rotated, of those whose first key is in `firsts`."""
    rotations: dict[NodeId, list[Statement]] = {}
    heads: dict[bytes, Statement] = {}
    for statement in statements:
        if statement.kind == ROTATE:
            rotations.setdefault(statement.node(), []).append(statement)
        elif statement.kind == HEADS:
            heads[statement.hash] = statement
    return {
        node: line_of(firsts[node], of_node, heads)
        for node, of_node in rotations.items()
        if node in firsts
    }


def heads_signed(lattice: Lattice, node: NodeId) -> list[tuple[ChainId, Epoch, int]]:
    """How far the node's chains are signed, with the earlier epochs that they cover, as others may
    still hold them; the latest of these first."""
    headers = [
        branch.header
        for id in lattice.chains()
        if id.node == node
        for branch in lattice.branches(id)
        if branch.header is not None
    ]
    covered = sorted(
        (
            (cover.epoch.counter, header.chain, cover.epoch, cover.head)
            for header in headers
            for cover in header.covers
        ),
        reverse=True,
    )
    signed = [(header.chain, header.epoch, header.hi) for header in headers]
    return signed + [(chain, epoch, head) for _, chain, epoch, head in covered]


def head_mark(shard: str, epoch: Epoch) -> bytes:
    """What stands for an epoch of a chain in a statement of its node."""
    text = b"weft-head" + epoch.counter.to_bytes(8, "big") + epoch.nonce + shard.encode()
    return sha256(text).digest()[:MARK_BYTES]


def heads_fields(
    node: NodeId, heads: Iterable[tuple[ChainId, Epoch, int]], said: Iterable[bytes]
) -> dict[str, object]:
    """The fields of a statement of heads: of `heads` the first HEADS_MAX are named, `said` are
    hashes."""
    marks: dict[bytes, int] = {}
    for id, epoch, head in heads:
        mark = head_mark(id.shard, epoch)
        if mark in marks or len(marks) < HEADS_MAX:
            marks[mark] = max(head, marks.get(mark, 0))
    packed = b"".join(mark + marks[mark].to_bytes(_HEAD_BYTES, "big") for mark in sorted(marks))
    return {
        "node": node,
        "heads": packed,
        "said": b"".join(sorted(hash[:MARK_BYTES] for hash in said)),
    }


def counted_by(statement: Statement) -> Counted:
    """What a statement of heads says. Raises PeerError."""
    packed, said = statement.fields.get("heads"), statement.fields.get("said")
    if not isinstance(packed, bytes) or not isinstance(said, bytes):
        raise PeerError("statement: heads")
    if len(packed) % _MARKED_BYTES or len(packed) > HEADS_MAX * _MARKED_BYTES:
        raise PeerError("statement: heads")
    if len(said) % MARK_BYTES:
        raise PeerError("statement: said")
    heads = {
        packed[at : at + MARK_BYTES]: int.from_bytes(
            packed[at + MARK_BYTES : at + _MARKED_BYTES], "big"
        )
        for at in range(0, len(packed), _MARKED_BYTES)
    }
    marks = (said[at : at + MARK_BYTES] for at in range(0, len(said), MARK_BYTES))
    return Counted(heads, frozenset(marks))
