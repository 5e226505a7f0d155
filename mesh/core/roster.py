"""The roster: who is in the mesh, as a set of self-certifying statements.

- Join is union; membership is a pure function of the set (`membership`), so the order of arrival is
  irrelevant. What the statements are, and who signs which, is in `statements`.
- A statement is taken once its signer's key is known, and its signer may say such a thing or did
  once; until then it waits, that is, it is left out and offered again by whoever holds it. Only
  what no honest node can hold is its sender's fault: what is malformed, forged or of another mesh.
- The set is bounded (`retaining`), so that no member can fill it.
- What an earlier key of a node has signed is taken as far as the node's rotations say
  (`rotations`). What they leave out leaves the set when they come; so do all but the lowest of
  concurrent rotations, and what hung on them. Within the bounds nothing else leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from hashlib import sha256
from types import MappingProxyType
from typing import Final

from crdt.header import ChainId, Epoch, Header
from mesh.core import ed25519
from mesh.core.bounds import QUOTA_MAX, Quotas, bytes_of
from mesh.core.errors import PeerError, Refused
from mesh.core.members import Member
from mesh.core.membership import Authority, members_by
from mesh.core.ops import NodeId
from mesh.core.retaining import beyond_bounds
from mesh.core.rotations import (
    ROTATIONS_MAX,
    Line,
    counted_by,
    heads_fields,
    lines_of,
)
from mesh.core.statements import (
    ADMIN,
    ADMIT,
    FORGET,
    FORK,
    HEADS,
    MESH,
    ORDER,
    RETIRE,
    ROTATE,
    Statement,
    admission,
    contradict,
    demotions,
    make_fork,
    make_rotation,
    make_statement,
    rank,
)

SAID_BY_MEMBER_MAX: Final = 64
"""Statements that a member that is no admin may have said: more than the roster takes of it."""

Verify = Callable[[bytes, bytes, bytes], bool]
"""(public key, message, signature) -> whether it holds"""


class Roster:
    """The set of statements of one mesh and the membership that follows from it."""

    def __init__(self, mesh: bytes) -> None:
        self.mesh_id = mesh
        self._statements: dict[bytes, Statement] = {}
        self._root_key = b""
        self._admin_keys: dict[NodeId, bytes] = {}
        self._admitted_keys: dict[NodeId, bytes] = {}
        """of every admission, also of those that count for nothing: what a key signed before that
        was known is in the set everywhere or nowhere"""
        self._lines: dict[NodeId, Line] = {}
        """of the nodes that have rotated"""
        self._turns: dict[NodeId, list[Statement]] = {}
        """what these lines are made of"""
        self._signed_with: dict[bytes, bytes] = {}
        """hash of a statement held -> the key that its signature was verified with"""
        self._digest: bytes | None = None
        self._members: Mapping[NodeId, Member] | None = None
        self._nodes: dict[bytes, NodeId] = {}
        """key in use -> member, as old as `_members`"""
        self._left: list[bytes] = []

    @classmethod
    def founded_by(cls, statements: Iterable[bytes]) -> Roster:
        """A roster from stored or received statements. Raises PeerError when none founds a mesh."""
        blobs = list(statements)
        parsed = map(Statement.parse, blobs)
        mesh = next((statement.mesh for statement in parsed if statement.kind == MESH), None)
        if mesh is None:
            raise PeerError("roster: no founding statement")
        roster = cls(mesh)
        roster.add(blobs)
        return roster

    def copy(self) -> Roster:
        """A roster of the same statements. What was parsed and verified is shared."""
        self.members(), self.digest()  # made once, and not by every copy
        twin = Roster(self.mesh_id)
        twin._statements = dict(self._statements)
        twin._root_key, twin._members = self._root_key, self._members
        twin._digest = self._digest
        twin._admin_keys = dict(self._admin_keys)
        twin._admitted_keys = dict(self._admitted_keys)
        twin._lines, twin._nodes = dict(self._lines), dict(self._nodes)
        twin._turns = {node: list(turns) for node, turns in self._turns.items()}
        twin._signed_with = dict(self._signed_with)
        twin._left = list(self._left)
        return twin

    # ---- the set ----

    @property
    def mesh_name(self) -> str:
        """What the root key calls the mesh; of several names the one of the lowest hash."""
        named = [s for s in self._statements.values() if s.kind == MESH]
        return min(named, key=rank).text("name") if named else ""

    def statements(self) -> list[bytes]:
        """Every statement, in an order in which an empty roster can take them."""
        ordered = sorted(self._statements.values(), key=self._place)
        return [statement.blob for statement in ordered]

    def _place(self, statement: Statement) -> tuple[int, int, int, bytes]:
        """As `rank`, but rotations in their order, and those of admins before what these say."""
        place, hash = rank(statement)
        if statement.kind not in (ROTATE, HEADS):
            return 2 * place, 0, 0, hash
        node = statement.node()
        line = self._lines.get(node)
        turns = line.rotations if line else ()
        turn = next(
            (i for i, r in enumerate(turns) if hash in (r.hash, r.heads_hash())), len(turns)
        )
        early = node in self._admin_keys
        return 2 * ORDER[ADMIT] + (-1 if early else 1), place, turn, hash

    def said_by(self, node: NodeId) -> list[Statement]:
        """What the node has signed about others or itself, in the order of `statements`."""
        held = self._statements.values()
        return sorted((s for s in held if s.signer == node and s.kind != ROTATE), key=rank)

    def rotations(self, node: NodeId) -> list[bytes]:
        """The rotations that lead to the node's key in use, the first first."""
        line = self._lines.get(node)
        return [rotation.blob for rotation in line.rotations] if line else []

    def admission(self, node: NodeId) -> bytes | None:
        """The statement by which the node was admitted."""
        said = self._statements.values()
        found = [s for s in said if s.kind == ADMIT and s.node() == node]
        return min(found, key=rank).blob if found else None

    def hashes(self) -> set[bytes]:
        return set(self._statements)

    def get(self, hash: bytes) -> bytes | None:
        statement = self._statements.get(hash)
        return statement.blob if statement else None

    def digest(self) -> bytes:
        """32 bytes, equal exactly when the sets are."""
        if self._digest is None:
            self._digest = sha256(b"".join(sorted(self._statements))).digest()
        return self._digest

    def add(self, blobs: Iterable[bytes]) -> list[bytes]:
        """Take in statements; the new ones. Those that wait for their signer are left out.

        Raises PeerError when one is malformed, of another mesh or forged; none is taken then.
        """
        parsed = sorted(map(Statement.parse, blobs), key=rank)
        fresh: dict[bytes, Statement] = {}
        try:
            self._take(parsed, fresh)
        except PeerError:
            for hash in fresh:
                self._remove(hash)
            self._learn_keys()
            raise
        if fresh:
            self._members = self._digest = None
            self._let_go(fresh)
        return [statement.blob for statement in fresh.values()]

    def _take(self, offered: list[Statement], fresh: dict[bytes, Statement]) -> None:
        """Take what can be taken, and what can be taken after that."""
        while offered:
            waiting = []
            for statement in offered:
                if statement.hash in self._statements:
                    continue
                if self._accept(statement):
                    self._statements[statement.hash] = statement
                    fresh[statement.hash] = statement
                    if statement.kind in (ROTATE, HEADS):
                        self._learn_turn(statement)
                else:
                    waiting.append(statement)
            if len(waiting) == len(offered):
                return
            offered = waiting

    def _let_go(self, fresh: dict[bytes, Statement]) -> None:
        """Drop what does not stay, of the set and of what is `fresh` in it: what is beyond the
        bounds, and what the keys in use do not account for any more."""
        turned = {s.node() for s in fresh.values() if s.kind in (ROTATE, HEADS)}
        leaving = beyond_bounds(self._statements.values())
        if leaving:
            turned |= {s.node() for s in leaving if s.kind in (ROTATE, HEADS)}
            for statement in leaving:
                self._remove(statement.hash)
            self._learn_keys()
        falling = [s for s in self._concerning(turned) if not self._stands(s)] if turned else []
        if any(s.kind not in (ROTATE, HEADS) for s in falling):
            leaving += self._take_anew()
        elif falling:  # nothing hangs on these
            for statement in falling:
                self._remove(statement.hash)
            self._learn_keys()
            leaving += falling
        for statement in leaving:
            if fresh.pop(statement.hash, None) is None:
                self._left.append(statement.blob)

    def _concerning(self, nodes: set[NodeId]) -> list[Statement]:
        """The statements held that hang on the keys of these nodes."""
        return [
            s
            for s in self._statements.values()
            if s.signer in nodes or (s.kind in (HEADS, FORK) and s.node() in nodes)
        ]

    def _stands(self, statement: Statement) -> bool:
        """Whether a statement that is held would be taken now."""
        if statement.kind in (ROTATE, HEADS):
            line = self._lines.get(statement.node())
            return line is not None and statement.hash in line.kept
        if statement.kind == FORK:
            return all(self.signed(header) for header in statement.headers())
        line = self._line(statement.signer)
        return line is not None and line.counts(statement) and self._signs(line, statement)

    def _take_anew(self) -> list[Statement]:
        """Build the set again of what is held; what is not in it any more. No signature of a
        statement is verified twice."""
        before = list(self._statements.values())
        held = sorted(before, key=rank)
        while True:
            self._statements = {}
            self._learn_keys()
            self._take(held, {})
            standing = [s for s in held if s.hash in self._statements and self._holds(s)]
            if len(standing) == len(self._statements):
                break
            held = standing
        gone = [s for s in before if s.hash not in self._statements]
        for statement in gone:
            self._signed_with.pop(statement.hash, None)
        return gone

    def _holds(self, statement: Statement) -> bool:
        by_node = statement.signer or statement.kind in (HEADS, FORK)
        return not by_node or self._stands(statement)

    def _remove(self, hash: bytes) -> None:
        del self._statements[hash]
        self._signed_with.pop(hash, None)

    def take_left(self) -> list[bytes]:
        """The statements that left the set since the last call, for the store to drop."""
        left, self._left = self._left, []
        return left

    def _accept(self, statement: Statement) -> bool:
        """Whether to take a statement now. Raises PeerError where no honest node would hold it."""
        if statement.mesh != self.mesh_id:
            raise PeerError("roster: statement of another mesh")
        if statement.by_root_only and statement.signer:
            raise PeerError(f"roster: {statement.kind} by another than the root key")
        statement.check()
        if statement.kind in (ROTATE, HEADS):
            return self._accept_turn(statement)
        if statement.kind == FORK:
            return self._accept_fork(statement)
        line = self._line_for(statement)
        if line is None:
            return False
        if not self._signs(line, statement):
            if statement.turn == 0:
                raise PeerError("roster: forged statement")
            return False  # by a key that is not known here, or of a line that does not count
        if not line.counts(statement):
            return False
        if statement.kind == MESH:
            self._root_key = line.in_use
        elif statement.kind == ADMIN:
            self._admin_keys[statement.node()] = statement.key()
        elif statement.kind == ADMIT:
            self._admitted_keys[statement.node()] = statement.key()
        return True

    def _line_for(self, statement: Statement) -> Line | None:
        """The keys of whoever said it; None while they, or the right to say it, are unknown."""
        if statement.kind == MESH:
            root_key = statement.blob_of("root", ed25519.KEY_BYTES)
            if ed25519.mesh_id(root_key) != self.mesh_id:
                raise PeerError("roster: founding key is not this mesh's")
            return Line(root_key)
        if not statement.signer:
            return Line(self._root_key) if self._root_key else None
        if statement.kind in ORDER and not statement.of_itself:
            return self._line(statement.signer) if statement.signer in self._admin_keys else None
        return self._line(statement.signer)

    def _line(self, node: NodeId) -> Line | None:
        """The keys of a node that was ever admitted or made an admin."""
        if line := self._lines.get(node):
            return line
        first = self._first_key(node)
        return _only(first) if first else None

    def _first_key(self, node: NodeId) -> bytes | None:
        return self._admin_keys.get(node) or self._admitted_keys.get(node)

    def _signs(self, line: Line, statement: Statement) -> bool:
        """Whether the key of its turn has signed it."""
        key = line.key_at(statement.turn)
        if key is None:
            return False
        if self._signed_with.get(statement.hash) != key:
            if not ed25519.verify(key, statement.body, statement.signature):
                return False
            self._signed_with[statement.hash] = key
        return True

    def _accept_turn(self, statement: Statement) -> bool:
        """As `_accept`, for a rotation or what belongs to one."""
        node = statement.node()
        line = self._line(node)
        if statement.kind == HEADS:
            said = counted_by(statement).said
            if len(said) > SAID_BY_MEMBER_MAX and node not in self._admin_keys:
                return False
            return line is not None and any(
                rotation.heads_hash() == statement.hash for rotation in line.rotations
            )
        if statement.signer != node:
            raise PeerError("roster: a rotation by another than the node")
        if line is None or line.key_at(statement.turn) != statement.replaced_key():
            return False
        if not (self._signs(line, statement) and statement.proves_new_key()):
            raise PeerError("roster: forged rotation")
        return True

    def _accept_fork(self, statement: Statement) -> bool:
        a, b = statement.headers()
        line = self._line(statement.node())
        if not contradict(a, b):
            raise PeerError("roster: a fork that is not proven")
        if line is None:
            return False
        if self.signed(a) and self.signed(b):
            return True
        if not line.replaced:
            raise PeerError("roster: a fork that is not proven")
        return False  # by a key that does not count for it

    def signed(self, header: Header, verify: Verify = ed25519.verify) -> bool:
        """Whether a header is signed by its node, with the key in use, or with an earlier one as
        far as that counts."""
        line = self._line(header.chain.node)
        if line is None:
            return False
        message = header.message(self.mesh_id)
        if not line.replaced:
            return verify(line.in_use, message, header.signature)
        return any(verify(key, message, header.signature) for key in line.of_header(header))

    def _learn_keys(self) -> None:
        """Know exactly the keys that the set holds."""
        held = self._statements.values()
        self._root_key = next(
            (s.blob_of("root", ed25519.KEY_BYTES) for s in held if s.kind == MESH), b""
        )
        self._admin_keys = {s.node(): s.key() for s in held if s.kind == ADMIN}
        self._admitted_keys = {s.node(): s.key() for s in held if s.kind == ADMIT}
        self._turns = {}
        for statement in held:
            if statement.kind in (ROTATE, HEADS):
                self._turns.setdefault(statement.node(), []).append(statement)
        self._lines = lines_of(held, {**self._admitted_keys, **self._admin_keys})

    def _learn_turn(self, statement: Statement) -> None:
        node = statement.node()
        turns = self._turns.setdefault(node, [])
        turns.append(statement)
        self._lines.update(lines_of(turns, {node: self._first_key(node) or b""}))

    # ---- membership ----

    def members(self) -> Mapping[NodeId, Member]:
        """Every node whose admission counts, by id: a pure function of the set."""
        if self._members is None:
            self._members = MappingProxyType(members_by(self._statements.values()))
            self._nodes = {}
            for node, member in self._members.items():
                self._nodes.setdefault(member.key, node)
        return self._members

    def node_of_key(self, key: bytes) -> NodeId | None:
        """The member whose key in use `key` is."""
        self.members()
        return self._nodes.get(key)

    def had_key(self, key: bytes) -> Member | None:
        """The member whose key `key` was, and is no more."""
        for node, line in self._lines.items():
            if any(replaced == key for replaced, _ in line.replaced):
                return self.members().get(node)
        return None

    def active(self, node: NodeId) -> Member | None:
        """The member `node` if it is active."""
        member = self.members().get(node)
        return member if member is not None and member.state == "active" else None

    def counts(self, statement: Statement) -> bool:
        """Whether membership follows from what a member has said, too: it had the right to, and
        the root key keeps it if its author is an admin no more."""
        return Authority(self._statements.values()).counts(statement) or statement.of_itself

    def was_admin(self, node: NodeId) -> bool:
        """Whether the root key ever made the node an admin."""
        return node in self._admin_keys

    def demoted(self, node: NodeId) -> bool:
        """Whether the root key has ended the node's being an admin."""
        return node in Authority(self._statements.values()).kept

    def stray_admins(self) -> list[Member]:
        """Forgotten members whose key still speaks for an admin: the root key has not ended it."""
        authority = Authority(self._statements.values())
        return [
            member
            for member in self.members().values()
            if member.state == "forgotten" and authority.is_admin(member.node)
        ]

    def quota(self, node: NodeId, shard: str) -> int:
        """Records that the node's chain of `shard` may hold; of one not known yet, the most."""
        member = self.members().get(node)
        return QUOTA_MAX if member is None else member.quotas.of(shard)

    def quota_bytes(self, node: NodeId, shard: str) -> int:
        """As `quota`, in bytes."""
        return bytes_of(self.quota(node, shard))

    def by_name(self, name: str) -> list[Member]:
        """Members of that name, retired ones too, in the order of their ids."""
        return [member for member in self.members().values() if member.name == name]

    # ---- saying things ----

    def admit(
        self,
        seed: bytes,
        key: bytes,
        name: str,
        site: str,
        token_hash: bytes = b"",
        quotas: Quotas | None = None,
    ) -> bytes:
        """The statement by which the admin `seed` admits the node of public key `key`.

        `quotas` are within QUOTA_MAX; None: the usual ones. The caller adds it to the roster.
        Raises Refused.
        """
        signer = self._speaker(seed)
        member = self.active(signer)
        if member is None or not member.admin:
            raise Refused("this node is no admin of the mesh: invite at one that is")
        known = self.members().get(ed25519.node_id(key))
        if known is not None:
            raise Refused(f"node {known.name} was admitted before: join with a new directory")
        if any(other.state == "active" for other in self.by_name(name)):
            raise Refused(f"node name {name} is taken: choose another")
        if token_hash and any(
            s.kind == ADMIT and s.token() == token_hash for s in self._statements.values()
        ):
            raise Refused("token was used before: ask for a new one")
        fields = admission(key, name, site, token_hash, quotas)
        return self._say(seed, signer, ADMIT, fields)

    def retire(self, seed: bytes, node: NodeId, *, compromised: bool = False) -> bytes:
        """The statement by which `seed`'s node retires `node` (or itself, as not compromised).

        Raises Refused.
        """
        leaves = self._speaker(seed) == node and not compromised
        signer = self._author(seed, "retire", need_admin=not leaves)
        fields: dict[str, object] = {"node": self._known(node)}
        if compromised:
            fields["compromised"] = True
        return self._say(seed, signer, RETIRE, fields)

    def forget(self, seed: bytes, node: NodeId) -> bytes:
        """The statement by which the admin `seed` has everybody forget `node`. Raises Refused."""
        signer = self._author(seed, "forget", need_admin=True)
        return self._say(seed, signer, FORGET, {"node": self._known(node)})

    def rotate(
        self, seed: bytes, new_seed: bytes, heads: Iterable[tuple[ChainId, Epoch, int]]
    ) -> list[bytes]:
        """The statements by which `seed`'s node replaces that key by `new_seed`.

        Of the old key `heads` go on counting, and what it has said as far as it is held here.
        Raises Refused.
        """
        node = self._speaker(seed)
        member = self.active(node)
        if member is None:
            raise Refused("this node is no active member with that key: it has nothing to replace")
        if member.rotations >= ROTATIONS_MAX:
            raise Refused(
                f"the key of {member.name} was replaced {ROTATIONS_MAX} times, and that is the most"
                " there can be: join with a new directory, then retire it"
            )
        said = [statement.hash for statement in self.said_by(node)]
        fields = heads_fields(node, heads, said)
        return list(make_rotation(seed, new_seed, self.mesh_id, node, fields, member.rotations))

    def appoint(self, root_seed: bytes, node: NodeId) -> bytes:
        """The statement by which the root key makes an active member an admin. Raises Refused."""
        self._check_root(root_seed)
        member = self.active(self._known(node))
        if member is None:
            raise Refused("only an active node can be an admin: name another one")
        if self.demoted(node):
            raise Refused(
                f"node {member.name} was an admin, and what it signs counts no more, for good:"
                " make another node an admin"
            )
        return make_statement(root_seed, b"", self.mesh_id, ADMIN, {"key": self._first_key(node)})

    def demote(self, root_seed: bytes, node: NodeId, keep: Iterable[bytes]) -> list[bytes]:
        """The statements by which the root key ends a node's being an admin, for good.

        Of what it has signed `keep` stays (hashes), with what earlier demotions of it keep; it goes
        on as a member if its own admission stays. Raises Refused.
        """
        self._check_root(root_seed)
        if node not in self._admin_keys:
            raise Refused(f"node {node.hex()} never was an admin: see weft members -o json")
        return list(demotions(root_seed, self.mesh_id, node, keep))

    def fork_proof(self, a: Header, b: Header) -> bytes | None:
        """The statement by which two headers of one chain prove that its node signed two histories.

        None when they prove nothing. At most one is kept a node, the first to arrive: any two say
        the same (see `statements`), so a node that goes on forking makes no second one.
        """
        if not contradict(a, b) or not (self.signed(a) and self.signed(b)):
            return None
        return make_fork(self.mesh_id, a, b)

    def _speaker(self, seed: bytes) -> NodeId:
        """The member whose key in use `seed` is; empty for none."""
        return self.node_of_key(ed25519.public_key(seed)) or b""

    def _say(self, seed: bytes, signer: NodeId, kind: str, fields: Mapping[str, object]) -> bytes:
        turn = self.members()[signer].rotations
        return make_statement(seed, signer, self.mesh_id, kind, fields, turn)

    def _check_root(self, root_seed: bytes) -> None:
        if ed25519.public_key(root_seed) != self._root_key:
            raise Refused("the root key is another mesh's: give the file of this one")

    def _author(self, seed: bytes, what: str, *, need_admin: bool) -> NodeId:
        signer = self._speaker(seed)
        member = self.active(signer)
        if member is None or (need_admin and not member.admin):
            admins = sorted(m.name for m in self.members().values() if m.admin)
            where = ", ".join(admins) or "one that the root key makes an admin"
            raise Refused(f"this node is no admin of the mesh: {what} at {where}")
        return signer

    def _known(self, node: NodeId) -> NodeId:
        if node not in self.members():
            raise Refused(f"no node {node.hex()} in the mesh")
        return node


@lru_cache(maxsize=4096)
def _only(key: bytes) -> Line:
    """The line of a node that has never rotated."""
    return Line(key)
