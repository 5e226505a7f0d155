"""The roster: who is in the mesh, as a set of self-certifying statements.

- Join is union; membership is a pure function of the set (`membership`), so the order of arrival is
  irrelevant. What the statements are, and who signs which, is in `statements`.
- A statement is taken once its signer's key is known, and its signer may say such a thing or did
  once; until then it waits, that is, it is left out and offered again by whoever holds it. Only
  what no honest node can hold is its sender's fault: what is malformed, forged or of another mesh.
- The set is bounded (`retaining`), so that no member can fill it. Within the bounds nothing leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256
from types import MappingProxyType

from crdt.header import Header
from mesh.core import ed25519
from mesh.core.bounds import QUOTA_MAX, Quotas
from mesh.core.errors import PeerError, Refused
from mesh.core.members import Member
from mesh.core.membership import Authority, members_by
from mesh.core.ops import NodeId
from mesh.core.retaining import beyond_bounds
from mesh.core.statements import (
    ADMIN,
    ADMIT,
    FORGET,
    FORK,
    MESH,
    ORDER,
    RETIRE,
    Statement,
    admission,
    contradict,
    demotions,
    make_fork,
    make_statement,
    rank,
)


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
        self._members: Mapping[NodeId, Member] | None = None
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
        twin = Roster(self.mesh_id)
        twin._statements = dict(self._statements)
        twin._root_key, twin._members = self._root_key, self._members
        twin._admin_keys = dict(self._admin_keys)
        twin._admitted_keys = dict(self._admitted_keys)
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
        ordered = sorted(self._statements.values(), key=rank)
        return [statement.blob for statement in ordered]

    def said_by(self, node: NodeId) -> list[Statement]:
        """What the node has signed, in the order of `statements`."""
        said = (s for s in self._statements.values() if s.signer == node and s.kind != FORK)
        return sorted(said, key=rank)

    def hashes(self) -> set[bytes]:
        return set(self._statements)

    def get(self, hash: bytes) -> bytes | None:
        statement = self._statements.get(hash)
        return statement.blob if statement else None

    def digest(self) -> bytes:
        """32 bytes, equal exactly when the sets are."""
        return sha256(b"".join(sorted(self._statements))).digest()

    def add(self, blobs: Iterable[bytes]) -> list[bytes]:
        """Take in statements; the new ones. Those that wait for their signer are left out.

        Raises PeerError when one is malformed, of another mesh or forged; none is taken then.
        """
        parsed = sorted(map(Statement.parse, blobs), key=rank)
        fresh: dict[bytes, Statement] = {}
        try:
            for statement in parsed:
                if statement.hash not in self._statements and self._accept(statement):
                    self._statements[statement.hash] = statement
                    fresh[statement.hash] = statement
        except PeerError:
            for hash in fresh:
                del self._statements[hash]
            self._learn_keys()
            raise
        if fresh:
            self._members = None
            self._let_go(fresh)
        return [statement.blob for statement in fresh.values()]

    def _let_go(self, fresh: dict[bytes, Statement]) -> None:
        """Drop what is beyond the bounds, of the set and of what is `fresh` in it."""
        leaving = beyond_bounds(self._statements.values())
        for statement in leaving:
            del self._statements[statement.hash]
            if fresh.pop(statement.hash, None) is None:
                self._left.append(statement.blob)
        if leaving:
            self._learn_keys()

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
        key = self._key_for(statement)
        if key is None:
            return False
        if statement.kind == FORK:
            self._check_fork(statement, key)
        elif not ed25519.verify(key, statement.body, statement.signature):
            raise PeerError("roster: forged statement")
        if statement.kind == MESH:
            self._root_key = key
        elif statement.kind == ADMIN:
            self._admin_keys[statement.node()] = statement.key()
        elif statement.kind == ADMIT:
            self._admitted_keys[statement.node()] = statement.key()
        return True

    def _key_for(self, statement: Statement) -> bytes | None:
        """The key that must have signed it; None while that, or the signer's right, is unknown."""
        if statement.kind == MESH:
            root_key = statement.blob_of("root", ed25519.KEY_BYTES)
            if ed25519.mesh_id(root_key) != self.mesh_id:
                raise PeerError("roster: founding key is not this mesh's")
            return root_key
        if statement.kind == FORK:
            return self._key_of(statement.node())
        if not statement.signer:
            return self._root_key or None
        if statement.kind in ORDER and not statement.of_itself:
            return self._admin_keys.get(statement.signer)
        return self._key_of(statement.signer)

    def _key_of(self, node: NodeId) -> bytes | None:
        return self._admin_keys.get(node) or self._admitted_keys.get(node)

    def _check_fork(self, statement: Statement, key: bytes) -> None:
        a, b = statement.headers()
        if not (contradict(a, b) and self._signed(a, key) and self._signed(b, key)):
            raise PeerError("roster: a fork that is not proven")

    def _signed(self, header: Header, key: bytes) -> bool:
        return ed25519.verify(key, header.message(self.mesh_id), header.signature)

    def _learn_keys(self) -> None:
        """Know exactly the keys that the set holds."""
        held = self._statements.values()
        self._root_key = next(
            (s.blob_of("root", ed25519.KEY_BYTES) for s in held if s.kind == MESH), b""
        )
        self._admin_keys = {s.node(): s.key() for s in held if s.kind == ADMIN}
        self._admitted_keys = {s.node(): s.key() for s in held if s.kind == ADMIT}

    # ---- membership ----

    def members(self) -> Mapping[NodeId, Member]:
        """Every node whose admission counts, by id: a pure function of the set."""
        if self._members is None:
            self._members = MappingProxyType(members_by(self._statements.values()))
        return self._members

    def active(self, node: NodeId) -> Member | None:
        """The member `node` if it is active."""
        member = self.members().get(node)
        return member if member and member.state == "active" else None

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
        return member.quotas.of(shard) if member else QUOTA_MAX

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
        signer = ed25519.node_id(ed25519.public_key(seed))
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
        return make_statement(seed, signer, self.mesh_id, ADMIT, fields)

    def retire(self, seed: bytes, node: NodeId, *, compromised: bool = False) -> bytes:
        """The statement by which `seed`'s node retires `node` (or itself, as not compromised).

        Raises Refused.
        """
        leaves = ed25519.node_id(ed25519.public_key(seed)) == node and not compromised
        signer = self._author(seed, "retire", need_admin=not leaves)
        fields: dict[str, object] = {"node": self._known(node)}
        if compromised:
            fields["compromised"] = True
        return make_statement(seed, signer, self.mesh_id, RETIRE, fields)

    def forget(self, seed: bytes, node: NodeId) -> bytes:
        """The statement by which the admin `seed` has everybody forget `node`. Raises Refused."""
        signer = self._author(seed, "forget", need_admin=True)
        return make_statement(seed, signer, self.mesh_id, FORGET, {"node": self._known(node)})

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
        return make_statement(root_seed, b"", self.mesh_id, ADMIN, {"key": member.key})

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
        key = self._key_of(a.chain.node)
        if key is None or not contradict(a, b):
            return None
        if not (self._signed(a, key) and self._signed(b, key)):
            return None
        return make_fork(self.mesh_id, a, b)

    def _check_root(self, root_seed: bytes) -> None:
        if ed25519.public_key(root_seed) != self._root_key:
            raise Refused("the root key is another mesh's: give the file of this one")

    def _author(self, seed: bytes, what: str, *, need_admin: bool) -> NodeId:
        signer = ed25519.node_id(ed25519.public_key(seed))
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
