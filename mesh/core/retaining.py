"""How many statements the roster holds, and which stay when there are more.

Of each signer, for each of a few purposes, the least in the statements' order stay, as many as
there may be; of all together the least, too. So what stays is a pure function of what was offered,
and two nodes that have exchanged their sets hold the same. (To keep the k least is a join: each of
a union's k least is among the k least of its part.)

Who is no admin can have `NEWER_MAX` statements and its leave in the set, 35 kB, and can go on
replacing the former by lesser ones: each costs it a signature and a frame, as each write to its
chain does, which goes the same ways and is less rare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Final, Literal, TypeAlias

from mesh.core.membership import Authority
from mesh.core.ops import NodeId
from mesh.core.rotations import ROTATIONS_MAX
from mesh.core.statements import ADMIT, FORK, HEADS, ORDER, ROTATE, Statement, rank

STATEMENTS_MAX: Final = 100_000
"""Fifty for each of two thousand gateways; their hashes fit one frame (34 B each of 4 MiB)."""
SAID_MAX: Final = 20_000
"""By the root key or one admin: ten for each of two thousand gateways."""
DROPPED_MAX: Final = 512
"""By a demoted admin and not kept. They count for nothing, and are held because the root key may
keep them yet: a demotion can only name what one node knew of."""
NEWER_MAX: Final = 16
"""By one signer, of kinds that this version does not know."""
NEWER_OF_ADMIN_MAX: Final = 2_000
"""As that, by the root key or one admin: one about each gateway."""

_Purpose: TypeAlias = Literal[
    "said", "kept", "dropped", "newer", "newer of admin", "leave", "fork", "rotate", "heads"
]

_MOST: Final[dict[_Purpose, int]] = {
    "said": SAID_MAX,
    "kept": STATEMENTS_MAX,  # the root key has named each
    "dropped": DROPPED_MAX,
    "newer": NEWER_MAX,
    "newer of admin": NEWER_OF_ADMIN_MAX,
    "leave": 1,
    "fork": 1,
    # Of these only a line and its rivals are in the set (`Line.kept`).
    "rotate": 2 * ROTATIONS_MAX,
    "heads": ROTATIONS_MAX,
}


def beyond_bounds(statements: Collection[Statement]) -> list[Statement]:
    """Those of a set of verified statements that do not stay in it."""
    authority = Authority(statements)
    sizes = Counter(_purpose(statement, authority) for statement in statements)
    if len(statements) <= STATEMENTS_MAX and all(
        n <= _MOST[what] for (_, what), n in sizes.items()
    ):
        return []
    left: Counter[tuple[NodeId, _Purpose]] = Counter()
    known = {b"", *authority.keys}
    staying = 0
    leaving = []
    for statement in sorted(statements, key=rank):
        purpose = _purpose(statement, authority)
        left[purpose] += 1
        stays = left[purpose] <= _MOST[purpose[1]] and staying < STATEMENTS_MAX
        if not stays or _speaker(statement) not in known:
            leaving.append(statement)
            continue
        staying += 1
        if statement.kind == ADMIT:
            known.add(statement.node())
    return leaving


def _speaker(statement: Statement) -> NodeId:
    """The node whose key a statement needs, empty for the root key."""
    return statement.node() if statement.kind in (FORK, HEADS) else statement.signer


def _purpose(statement: Statement, authority: Authority) -> tuple[NodeId, _Purpose]:
    signer = statement.signer
    if statement.kind == FORK:
        return statement.node(), "fork"
    if statement.kind == ROTATE:
        return statement.node(), "rotate"
    if statement.kind == HEADS:
        return statement.node(), "heads"
    if signer in authority.kept and statement.hash in authority.kept[signer]:
        return signer, "kept"
    if statement.kind not in ORDER:
        return signer, "newer of admin" if _has_say(signer, authority) else "newer"
    if _has_say(signer, authority):
        return signer, "said"
    return signer, "leave" if statement.of_itself else "dropped"


def _has_say(signer: NodeId, authority: Authority) -> bool:
    return not signer or authority.is_admin(signer)
