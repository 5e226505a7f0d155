"""Who is in the mesh, by a set of statements: a pure function of the set.

- An admin is whom the root key has appointed and not demoted. Both are for good.
- What an admin says counts; of a demoted one only what the root key keeps. So a member that only a
  demoted admin admitted is none, and who was retired only by it is not.
- Of the admissions of one node the lowest hash counts; of two nodes admitted by one token, the one
  with the lower hash.
- A node's key is the last of the line that its rotations make (`rotations`).
- Forgotten counts before retired, and retired before active. Every member may retire itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.core import ed25519
from mesh.core.members import Member, MemberState
from mesh.core.ops import NodeId
from mesh.core.rotations import Line, lines_of
from mesh.core.statements import ADMIN, ADMIT, DEMOTE, FORGET, FORK, RETIRE, Statement


class Authority:
    """Whose word counts, by the root key's statements among `statements`."""

    def __init__(self, statements: Iterable[Statement]) -> None:
        self.keys: dict[NodeId, bytes] = {}
        """of everybody who was ever made an admin"""
        self.kept: dict[NodeId, set[bytes]] = {}
        """demoted admin -> the hashes of what stays of it"""
        for statement in statements:
            if statement.kind == ADMIN:
                self.keys[statement.node()] = statement.key()
            elif statement.kind == DEMOTE:
                self.kept.setdefault(statement.node(), set()).update(statement.keep())

    def is_admin(self, node: NodeId) -> bool:
        return node in self.keys and node not in self.kept

    def counts(self, statement: Statement) -> bool:
        """Whether it was said by the root key or by an admin, and stays if that one was demoted."""
        signer = statement.signer
        if not signer:
            return True
        if signer in self.kept:
            return signer in self.keys and statement.hash in self.kept[signer]
        return signer in self.keys


def members_by(statements: Iterable[Statement]) -> dict[NodeId, Member]:
    """Every node whose admission counts, by id."""
    held = list(statements)
    authority = Authority(held)
    states = _states(held, authority)
    forked = {statement.node() for statement in held if statement.kind == FORK}
    lines = lines_of(held, {s.node(): s.key() for s in held if s.kind == ADMIT})
    members: dict[NodeId, Member] = {}
    tokens: set[bytes] = set()
    for statement in sorted((s for s in held if s.kind == ADMIT), key=lambda s: s.hash):
        if not authority.counts(statement):
            continue
        key = statement.key()
        node = ed25519.node_id(key)
        token = statement.token()
        if node in members or (token and token in tokens):
            continue
        tokens.add(token)
        line = lines.get(node) or Line(key)
        members[node] = Member(
            node=node,
            name=statement.text("name"),
            site=statement.text("site"),
            key=line.in_use,
            state=states.get(node, "active"),
            admin=authority.is_admin(node) and node not in states,
            forked=node in forked,
            quotas=statement.quotas(),
            rotations=len(line.rotations),
            contested=line.contested,
        )
    return dict(sorted(members.items()))


def _states(statements: Iterable[Statement], authority: Authority) -> dict[NodeId, MemberState]:
    """The nodes that are not active (any more)."""
    states: dict[NodeId, MemberState] = {}
    for statement in statements:
        if statement.kind not in (RETIRE, FORGET):
            continue
        counts = authority.counts(statement)
        if not counts and not statement.of_itself:
            continue
        # Of a node that is no admin, its word about itself only ever means that it has left.
        compromised = counts and statement.fields.get("compromised") is True
        node = statement.node()
        if statement.kind == FORGET or compromised:
            states[node] = "forgotten"
        else:
            states.setdefault(node, "retired")
    return states
