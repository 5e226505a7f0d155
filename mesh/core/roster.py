"""The roster: who is in the mesh, as a grow-only set of self-certifying statements.

- Join is union; membership is a pure function of the set, so the order of arrival is irrelevant.
- The mesh root key makes admins. Admins (and the root key) admit nodes. An admin, or a node itself,
  retires a node; an admin forgets one, or retires it as compromised, which forgets it at once. All
  of it is for good: forgotten counts before retired, and retired before active.
- An admission carries its token's hash: of two for one token the lower statement hash wins, so that
  a token that two partitioned admins accepted admits one node.

A statement is msgpack `[body, signature]`, body is msgpack `[version, kind, mesh, signer, fields]`.
`signer` is the node id of an admin or of the node itself, empty for the root key. Kinds and fields
that a newer version adds are kept and passed on once their signature holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from types import MappingProxyType

import msgpack

from mesh.core import ed25519
from mesh.core.bounds import MESH_RECORDS, QUOTA_MAX, VPC_RECORDS, Quotas
from mesh.core.errors import PeerError, Refused
from mesh.core.members import Member, MemberState
from mesh.core.ops import NodeId

STATEMENT_VERSION = 1
STATEMENT_BYTES_MAX = 2048
STATEMENTS_MAX = 20_000
"""Ten for each of two thousand gateways. Only admins can grow the set."""
NAME_BYTES_MAX = 63

MESH, ADMIN, ADMIT, RETIRE, FORGET = "mesh", "admin", "admit", "retire", "forget"
_ORDER = {MESH: 0, ADMIN: 1, ADMIT: 2, RETIRE: 3, FORGET: 4}
"""Statements are taken in this order, so that one frame never holds a signer after its use."""


@dataclass(frozen=True, slots=True)
class Statement:
    """One parsed statement; `hash` is the SHA-256 of `blob` and its identity."""

    blob: bytes
    hash: bytes
    kind: str
    mesh: bytes
    signer: NodeId
    fields: Mapping[str, object]
    body: bytes
    signature: bytes

    @classmethod
    def parse(cls, blob: bytes) -> Statement:
        """Raises PeerError on anything malformed."""
        if len(blob) > STATEMENT_BYTES_MAX:
            raise PeerError(f"statement of {len(blob)} bytes")
        try:
            body, signature = msgpack.unpackb(blob)
            version, kind, mesh, signer, fields = msgpack.unpackb(body)[:5]
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise PeerError(f"statement: {type(error).__name__}") from None
        shapes = (
            (version, int),
            (kind, str),
            (mesh, bytes),
            (signer, bytes),
            (fields, dict),
            (signature, bytes),
        )
        if any(type(value) is not wanted for value, wanted in shapes):
            raise PeerError("statement: wrong types")
        return cls(blob, sha256(blob).digest(), kind, mesh, signer, fields, body, signature)

    def text(self, field: str) -> str:
        """A name field. Raises PeerError."""
        value = self.fields.get(field)
        if not isinstance(value, str) or not 0 < len(value.encode()) <= NAME_BYTES_MAX:
            raise PeerError(f"statement: {field}")
        return value

    def blob_of(self, field: str, size_bytes: int) -> bytes:
        value = self.fields.get(field)
        if not isinstance(value, bytes) or len(value) != size_bytes:
            raise PeerError(f"statement: {field}")
        return value

    def quotas(self) -> Quotas:
        """What an admission grants, the usual when it names nothing. Raises PeerError."""
        granted = self.fields.get("quotas", [MESH_RECORDS, VPC_RECORDS])
        if not isinstance(granted, list) or len(granted) < 2:
            raise PeerError("statement: quotas")
        if any(type(n) is not int or not 0 < n <= QUOTA_MAX for n in granted[:2]):
            raise PeerError(f"statement: quotas beyond {QUOTA_MAX}")
        return Quotas(*granted[:2])


def make_statement(
    seed: bytes, signer: NodeId, mesh: bytes, kind: str, fields: Mapping[str, object]
) -> bytes:
    """Sign a statement with the key `seed`; `signer` is empty for the root key."""
    body = msgpack.packb([STATEMENT_VERSION, kind, mesh, signer, dict(fields)])
    return bytes(msgpack.packb([body, ed25519.sign(seed, body)]))


def found_mesh(
    name: str, root_seed: bytes, node_seed: bytes, node_name: str, site: str
) -> tuple[bytes, ...]:
    """The founding statements: the mesh, its first admin, and that node's admission."""
    root_key = ed25519.public_key(root_seed)
    mesh = ed25519.mesh_id(root_key)
    key = ed25519.public_key(node_seed)
    node = ed25519.node_id(key)
    return (
        make_statement(root_seed, b"", mesh, MESH, {"name": name, "root": root_key}),
        make_statement(root_seed, b"", mesh, ADMIN, {"key": key}),
        make_statement(node_seed, node, mesh, ADMIT, _admission(key, node_name, site, b"")),
    )


def _admission(
    key: bytes, name: str, site: str, token_hash: bytes, quotas: Quotas | None = None
) -> dict[str, object]:
    admission: dict[str, object] = {"key": key, "name": name, "site": site, "token": token_hash}
    if quotas is not None:
        admission["quotas"] = [quotas.mesh, quotas.vpc]
    return admission


class Roster:
    """The set of statements of one mesh and the membership that follows from it."""

    def __init__(self, mesh: bytes) -> None:
        self.mesh_id = mesh
        self.mesh_name = ""
        self._statements: dict[bytes, Statement] = {}
        self._root_key = b""
        self._admin_keys: dict[NodeId, bytes] = {}
        self._admitted_keys: dict[NodeId, bytes] = {}
        """of every admission, also of those that count for nothing: what a key signed before that
        was known is in the set everywhere or nowhere"""
        self._members: Mapping[NodeId, Member] | None = None

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

    # ---- the set ----

    def statements(self) -> list[bytes]:
        """Every statement, in an order in which an empty roster can take them."""
        ordered = sorted(self._statements.values(), key=_rank)
        return [statement.blob for statement in ordered]

    def hashes(self) -> set[bytes]:
        return set(self._statements)

    def get(self, hash: bytes) -> bytes | None:
        statement = self._statements.get(hash)
        return statement.blob if statement else None

    def digest(self) -> bytes:
        """32 bytes, equal exactly when the sets are."""
        return sha256(b"".join(sorted(self._statements))).digest()

    def add(self, blobs: Iterable[bytes]) -> list[bytes]:
        """Take in statements; the new ones. Those of a signer not known yet are left out.

        Raises PeerError when one is malformed, of another mesh or forged; none is taken then.
        """
        fresh: list[Statement] = []
        try:
            for statement in sorted(map(Statement.parse, set(blobs)), key=_rank):
                if statement.hash in self._statements:
                    continue
                if len(self._statements) >= STATEMENTS_MAX:
                    raise PeerError(f"roster: beyond {STATEMENTS_MAX} statements")
                if self._accept(statement):
                    self._statements[statement.hash] = statement
                    fresh.append(statement)
        except PeerError:
            self._take_back(fresh)
            raise
        if fresh:
            self._members = None
        return [statement.blob for statement in fresh]

    def _take_back(self, taken: Iterable[Statement]) -> None:
        for statement in taken:
            del self._statements[statement.hash]
        self._root_key, self.mesh_name = b"", ""
        self._admin_keys.clear()
        self._admitted_keys.clear()
        for statement in sorted(self._statements.values(), key=_rank):
            self._accept(statement)

    def _accept(self, statement: Statement) -> bool:
        if statement.mesh != self.mesh_id:
            raise PeerError("roster: statement of another mesh")
        if statement.kind == MESH:
            root_key = statement.blob_of("root", ed25519.KEY_BYTES)
            if ed25519.mesh_id(root_key) != self.mesh_id:
                raise PeerError("roster: founding key is not this mesh's")
            self._check(statement, root_key)
            self._root_key = root_key
            self.mesh_name = statement.text("name")
            return True
        key = self._key_of(statement)
        if key is None:
            return False
        self._check(statement, key)
        if statement.kind == ADMIN:
            if statement.signer:
                raise PeerError("roster: only the root key makes admins")
            admin_key = statement.blob_of("key", ed25519.KEY_BYTES)
            self._admin_keys[ed25519.node_id(admin_key)] = admin_key
        elif statement.kind == ADMIT:
            if statement.signer and statement.signer not in self._admin_keys:
                raise PeerError("roster: admission by one who is no admin")
            statement.text("name"), statement.text("site"), statement.quotas()
            admitted_key = statement.blob_of("key", ed25519.KEY_BYTES)
            self._admitted_keys[ed25519.node_id(admitted_key)] = admitted_key
        elif statement.kind == RETIRE:
            node = statement.blob_of("node", ed25519.ID_BYTES)
            if statement.signer not in (b"", node) and statement.signer not in self._admin_keys:
                raise PeerError("roster: retirement by one who is no admin")
        elif statement.kind == FORGET:
            statement.blob_of("node", ed25519.ID_BYTES)
            if statement.signer and statement.signer not in self._admin_keys:
                raise PeerError("roster: forgetting by one who is no admin")
        return True

    def _key_of(self, statement: Statement) -> bytes | None:
        if not statement.signer:
            return self._root_key or None
        return self._admin_keys.get(statement.signer) or self._admitted_keys.get(statement.signer)

    @staticmethod
    def _check(statement: Statement, key: bytes) -> None:
        if not ed25519.verify(key, statement.body, statement.signature):
            raise PeerError("roster: forged statement")

    # ---- membership ----

    def members(self) -> Mapping[NodeId, Member]:
        """Every node ever admitted, by id: a pure function of the set."""
        if self._members is None:
            self._members = MappingProxyType(self._compute())
        return self._members

    def _compute(self) -> dict[NodeId, Member]:
        admissions = sorted(
            (s for s in self._statements.values() if s.kind == ADMIT), key=lambda s: s.hash
        )
        states = self._states()
        members: dict[NodeId, Member] = {}
        tokens: set[object] = set()
        for statement in admissions:
            key = statement.blob_of("key", ed25519.KEY_BYTES)
            node = ed25519.node_id(key)
            token = statement.fields.get("token")
            if node in members or (token and token in tokens):
                continue
            tokens.add(token)
            members[node] = Member(
                node=node,
                name=statement.text("name"),
                site=statement.text("site"),
                key=key,
                state=states.get(node, "active"),
                admin=node in self._admin_keys and node not in states,
                quotas=statement.quotas(),
            )
        return dict(sorted(members.items()))

    def _states(self) -> dict[NodeId, MemberState]:
        """The nodes that are not active (any more)."""
        states: dict[NodeId, MemberState] = {}
        for statement in self._statements.values():
            if statement.kind not in (RETIRE, FORGET):
                continue
            node = statement.blob_of("node", ed25519.ID_BYTES)
            by_admin = not statement.signer or statement.signer in self._admin_keys
            # Of a node that is no admin, its word about itself only ever means that it has left.
            compromised = by_admin and statement.fields.get("compromised") is True
            if statement.kind == FORGET or compromised:
                states[node] = "forgotten"
            else:
                states.setdefault(node, "retired")
        return states

    def active(self, node: NodeId) -> Member | None:
        """The member `node` if it is active."""
        member = self.members().get(node)
        return member if member and member.state == "active" else None

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

        `quotas` are within QUOTA_MAX; None: the usual ones.

        The caller adds it to the roster. Raises Refused.
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
            s.kind == ADMIT and s.fields.get("token") == token_hash
            for s in self._statements.values()
        ):
            raise Refused("token was used before: ask for a new one")
        admission = _admission(key, name, site, token_hash, quotas)
        return make_statement(seed, signer, self.mesh_id, ADMIT, admission)

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


def _rank(statement: Statement) -> tuple[int, bytes]:
    return (_ORDER.get(statement.kind, len(_ORDER)), statement.hash)
