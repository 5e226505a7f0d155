"""The statements that the roster is made of: their form, and who signs which.

A statement is msgpack `[body, signature]`, and its body is msgpack too: `[version, kind, mesh,
signer, fields, turn]`. `signer` is a node id, empty for the mesh root key; `turn` says which of the
signer's keys has signed, and is left out for the first (0). Kinds and fields that a newer version
adds are kept and passed on once the signature holds.

    mesh     {name, root}                       by the root key: founds the mesh
    admin    {key}                              by the root key: makes an admin, for good or until
    demote   {node, keep: [hash, …]}            by the root key: ends that, but for these statements
    admit    {key, name, site, token, quotas?}  by an admin or the root key
    retire   {node, compromised?}               by an admin or the root key, or the node of itself
    forget   {node}                             by an admin or the root key
    rotate   {node, old, key, heads, proof}     by the node's key `old`, and by the new one (proof)
    heads    {node, heads, said}                by nobody: a rotation names its hash
    fork     {a, b}                             by nobody: the signatures of both headers prove it

A statement is what was said, not how it was signed or wrapped: its hash is over the body. A relay
that packs it otherwise, or a signer that signs it twice, makes no second one. A fork's hash is over
the node alone: whichever two headers prove it, the fact is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgpack

from crdt.header import HEADER_BYTES_MAX, ChainId, Header
from crdt.packed import unpack_list
from mesh.core import ed25519
from mesh.core.bounds import MESH_RECORDS, QUOTA_MAX, VPC_RECORDS, Quotas
from mesh.core.errors import PeerError
from mesh.core.ops import NodeId

STATEMENT_VERSION: Final = 1
STATEMENT_BYTES_MAX: Final = 2048
KEEP_MAX: Final = 400
"""Hashes in one demotion; several add up."""
NAME_BYTES_MAX: Final = 63

MESH, ADMIN, DEMOTE, ADMIT = "mesh", "admin", "demote", "admit"
RETIRE, FORGET, FORK = "retire", "forget", "fork"
ROTATE, HEADS = "rotate", "heads"
ORDER: Final = {
    kind: place
    for place, kind in enumerate((MESH, ADMIN, DEMOTE, ADMIT, ROTATE, HEADS, RETIRE, FORGET, FORK))
}
"""Most signers come before their use in this order; `Roster.statements` gives the whole order."""
UNSIGNED: Final = frozenset((HEADS, FORK))
"""Kinds that prove themselves, or are proven by another statement."""
_BYTES_MAX: Final = {
    FORK: 2 * HEADER_BYTES_MAX + 512,
    DEMOTE: 16_384,
    HEADS: 512 << 10,  # `HEADS_MAX` heads, and what an admin may have said
}
_ANY_BYTES_MAX: Final = max(_BYTES_MAX.values())
_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Statement:
    """One parsed statement. `blob` is its form packed anew: whoever relays it cannot pad it."""

    blob: bytes
    hash: bytes
    """32 bytes: its identity. See the module's header."""
    kind: str
    mesh: bytes
    signer: NodeId
    fields: Mapping[str, object]
    body: bytes
    signature: bytes
    turn: int = 0
    """which of the signer's keys"""

    @classmethod
    def parse(cls, blob: bytes) -> Statement:
        """Raises PeerError on anything malformed. Fields are looked at by the methods below."""
        if len(blob) > _ANY_BYTES_MAX:
            raise PeerError(f"statement of {len(blob)} bytes")
        try:
            body, signature = unpack_list(blob)
            version, kind, mesh, signer, fields, *more = msgpack.unpackb(body, strict_map_key=False)
            turn = more[0] if more else 0
        except (ValueError, TypeError, msgpack.exceptions.UnpackException) as error:
            raise PeerError(f"statement: {type(error).__name__}") from None
        shapes = (
            (version, int),
            (kind, str),
            (mesh, bytes),
            (signer, bytes),
            (fields, dict),
            (signature, bytes),
            (turn, int),
        )
        if any(type(value) is not wanted for value, wanted in shapes):
            raise PeerError("statement: wrong types")
        if len(blob) > _BYTES_MAX.get(kind, STATEMENT_BYTES_MAX):
            raise PeerError(f"statement of {len(blob)} bytes")
        whole = bytes(msgpack.packb([body, signature]))
        hash = sha256(body).digest()
        statement = cls(whole, hash, kind, mesh, signer, fields, body, signature, turn)
        if kind in UNSIGNED and (signer or signature):
            raise PeerError(f"statement: {kind} that somebody signs")
        if kind != FORK:
            return statement
        node = statement.headers()[0].chain.node
        fact = sha256(b"weft-fork" + mesh + node).digest()
        return cls(whole, fact, kind, mesh, signer, fields, body, signature)

    def text(self, field: str) -> str:
        """A name field. Raises PeerError."""
        value = self.fields.get(field)
        if not isinstance(value, str) or not 0 < len(value.encode()) <= NAME_BYTES_MAX:
            raise PeerError(f"statement: {field}")
        return value

    def blob_of(self, field: str, size_bytes: int) -> bytes:
        """A field of that many bytes. Raises PeerError."""
        value = self.fields.get(field)
        if not isinstance(value, bytes) or len(value) != size_bytes:
            raise PeerError(f"statement: {field}")
        return value

    def node(self) -> NodeId:
        """The node that a statement is about, of an admission or an appointment by its key. Raises
        PeerError."""
        if self.kind == FORK:
            return self.headers()[0].chain.node
        if self.kind in (ADMIT, ADMIN):
            return ed25519.node_id(self.key())
        return self.blob_of("node", ed25519.ID_BYTES)

    def key(self) -> bytes:
        """The first public key of a node, in an admission or an appointment; the new one in a
        rotation. Raises PeerError."""
        return self.blob_of("key", ed25519.KEY_BYTES)

    def replaced_key(self) -> bytes:
        """The public key that a rotation replaces. Raises PeerError."""
        return self.blob_of("old", ed25519.KEY_BYTES)

    def heads_hash(self) -> bytes:
        """The hash of the statement of heads that belongs to a rotation. Raises PeerError."""
        return self.blob_of("heads", _HASH_BYTES)

    def proves_new_key(self) -> bool:
        """Whether the new key of a rotation has signed it, too. Raises PeerError."""
        proof = self.blob_of("proof", ed25519.SIGNATURE_BYTES)
        message = rotation_message(
            self.mesh, self.node(), self.replaced_key(), self.key(), self.heads_hash()
        )
        return ed25519.verify(self.key(), message, proof)

    def quotas(self) -> Quotas:
        """What an admission grants, the usual when it names nothing. Raises PeerError."""
        granted = self.fields.get("quotas", [MESH_RECORDS, VPC_RECORDS])
        if not isinstance(granted, list) or len(granted) < 2:
            raise PeerError("statement: quotas")
        if any(type(n) is not int or not 0 < n <= QUOTA_MAX for n in granted[:2]):
            raise PeerError(f"statement: quotas beyond {QUOTA_MAX}")
        return Quotas(*granted[:2])

    def token(self) -> bytes:
        """The hash of an admission's token; empty: there was none. Raises PeerError."""
        token = self.fields.get("token", b"")
        if not isinstance(token, bytes) or len(token) > _HASH_BYTES:
            raise PeerError("statement: token")
        return token

    def keep(self) -> list[bytes]:
        """The hashes that a demotion keeps. Raises PeerError."""
        hashes = self.fields.get("keep")
        if not isinstance(hashes, list) or len(hashes) > KEEP_MAX:
            raise PeerError("statement: keep")
        if any(type(h) is not bytes or len(h) != _HASH_BYTES for h in hashes):
            raise PeerError("statement: keep")
        return hashes

    def headers(self) -> tuple[Header, Header]:
        """The two of a fork, not proven yet. Raises PeerError."""
        try:
            return Header.unpack(self.fields.get("a")), Header.unpack(self.fields.get("b"))
        except (ValueError, TypeError) as error:
            raise PeerError(f"statement: fork: {error}") from None

    def check(self) -> None:
        """Raise PeerError unless the fields are what the kind needs. Unknown kinds pass."""
        match self.kind:
            case "mesh":
                self.text("name"), self.blob_of("root", ed25519.KEY_BYTES)
            case "admin":
                self.key()
            case "demote":
                self.node(), self.keep()
            case "admit":
                self.key(), self.text("name"), self.text("site"), self.token(), self.quotas()
            case "retire" | "forget" | "heads":
                self.node()
            case "rotate":
                self.node(), self.replaced_key(), self.key(), self.heads_hash()

    @property
    def by_root_only(self) -> bool:
        """Whether nobody but the root key may say such a thing."""
        return self.kind in (MESH, ADMIN, DEMOTE)

    @property
    def of_itself(self) -> bool:
        """Whether a node says this of itself, by no more right than being a member."""
        return self.kind == RETIRE and self.signer == self.fields.get("node")


def rank(statement: Statement) -> tuple[int, bytes]:
    """The order in which statements are taken and given."""
    return ORDER.get(statement.kind, len(ORDER)), statement.hash


def make_statement(
    seed: bytes,
    signer: NodeId,
    mesh: bytes,
    kind: str,
    fields: Mapping[str, object],
    turn: int = 0,
) -> bytes:
    """Sign a statement with the key `seed`; `signer` is empty for the root key."""
    body = msgpack.packb(
        [STATEMENT_VERSION, kind, mesh, signer, dict(fields), *([turn] if turn else [])]
    )
    return bytes(msgpack.packb([body, ed25519.sign(seed, body)]))


def rotation_message(mesh: bytes, node: NodeId, old: bytes, new: bytes, heads: bytes) -> bytes:
    """What the new key signs, so that nobody gives a node a key that is not its own."""
    return b"weft-rotate-1" + mesh + node + old + new + heads


def make_rotation(
    seed: bytes,
    new_seed: bytes,
    mesh: bytes,
    node: NodeId,
    heads: Mapping[str, object],
    turn: int = 0,
) -> tuple[bytes, bytes]:
    """The statements by which `node` replaces the key `seed`: the rotation, and what goes on
    counting of the old key, with the fields `heads`."""
    told = bytes(msgpack.packb([STATEMENT_VERSION, HEADS, mesh, b"", dict(heads)]))
    old, new, hash = ed25519.public_key(seed), ed25519.public_key(new_seed), sha256(told).digest()
    proof = ed25519.sign(new_seed, rotation_message(mesh, node, old, new, hash))
    fields = {"node": node, "old": old, "key": new, "heads": hash, "proof": proof}
    rotation = make_statement(seed, node, mesh, ROTATE, fields, turn)
    return rotation, bytes(msgpack.packb([told, b""]))


def admission(
    key: bytes, name: str, site: str, token_hash: bytes, quotas: Quotas | None = None
) -> dict[str, object]:
    """The fields of an admission; no `quotas`: the usual ones."""
    fields: dict[str, object] = {"key": key, "name": name, "site": site, "token": token_hash}
    if quotas is not None:
        fields["quotas"] = [quotas.mesh, quotas.vpc]
    return fields


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
        make_statement(node_seed, node, mesh, ADMIT, admission(key, node_name, site, b"")),
    )


def demotions(
    root_seed: bytes, mesh: bytes, node: NodeId, keep: Iterable[bytes]
) -> tuple[bytes, ...]:
    """The statements by which the root key ends a node's being an admin, but for `keep`."""
    hashes = sorted(set(keep))
    return tuple(
        make_statement(
            root_seed, b"", mesh, DEMOTE, {"node": node, "keep": hashes[start : start + KEEP_MAX]}
        )
        for start in range(0, len(hashes) or 1, KEEP_MAX)
    )


# ---- forks ----


def contradict(a: Header, b: Header) -> bool:
    """Whether no honest author signed both of these: they are of one chain and epoch, and

    - their intervals overlap and they are not the same flush, or
    - one goes on where the other ends, from another root than the other signed there.

    Within an epoch an honest author signs each seq once, and each flush on top of the last. What
    restores and restarts make begins in an epoch of its own. Signatures are the caller's to check.
    """
    if a.chain != b.chain or a.epoch != b.epoch:
        return False
    if max(a.lo, b.lo) < min(a.hi, b.hi):
        return a.packed != b.packed
    first, then = (a, b) if a.hi <= b.lo else (b, a)
    return first.hi == then.lo and then.prev_root != first.root


def make_fork(mesh: bytes, a: Header, b: Header) -> bytes:
    """The statement that shows two headers which contradict each other, the lower one first."""
    low, high = sorted((a, b), key=lambda header: (header.lo, header.hi, header.packed))
    fields = {"a": low.pack(), "b": high.pack()}
    body = msgpack.packb([STATEMENT_VERSION, FORK, mesh, b"", fields])
    return bytes(msgpack.packb([body, b""]))


def forks(blobs: Iterable[bytes]) -> list[ChainId]:
    """The chains of which statements among `blobs`, verified before, prove a fork."""
    parsed = map(Statement.parse, blobs)
    return [statement.headers()[0].chain for statement in parsed if statement.kind == FORK]


def turned(blobs: Iterable[bytes]) -> list[NodeId]:
    """The nodes whose keys statements among `blobs`, verified before, are about; sorted."""
    parsed = map(Statement.parse, blobs)
    return sorted({statement.node() for statement in parsed if statement.kind in (ROTATE, HEADS)})


def rotations_among(blobs: Iterable[bytes]) -> list[bytes]:
    """Those of statements, verified before, that give a node a new key."""
    return [blob for blob in blobs if Statement.parse(blob).kind == ROTATE]
