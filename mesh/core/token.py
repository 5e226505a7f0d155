"""Join tokens: what an inviter gives to one new node, and how that node proves it has it.

A token names the mesh, the inviter's public key and addresses, a 16-byte secret and an expiry. The
secret never crosses the wire: the joiner, whose channel to the inviter's key is authenticated,
sends an HMAC-SHA256 over both public keys and what it asks for. A token is known by the hash of
its secret.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass
from hashlib import sha256

import msgpack

from crdt.packed import unpack_list
from mesh.core import ed25519
from mesh.core.errors import BadInput, PeerError, Refused

TOKEN_VERSION = 1
TOKEN_BYTES_MAX = 4096
SECRET_BYTES = 16
ADDRS_MAX = 16


@dataclass(frozen=True, slots=True)
class Token:
    """One invitation. `site` is empty when the joiner may name its own."""

    mesh_id: bytes
    mesh_name: str
    inviter_key: bytes
    addrs: tuple[str, ...]
    secret: bytes
    expires_s: int
    site: str = ""

    @property
    def hash(self) -> bytes:
        """32 bytes by which the invitation is known without its secret."""
        return sha256(b"weft-token" + self.secret).digest()

    def encode(self) -> str:
        """base64url text with a checksum, so that a truncated copy is seen before dialling."""
        raw = msgpack.packb(
            [
                TOKEN_VERSION,
                self.mesh_id,
                self.mesh_name,
                self.inviter_key,
                list(self.addrs),
                self.secret,
                self.expires_s,
                self.site,
            ]
        )
        return base64.urlsafe_b64encode(raw + sha256(raw).digest()[:4]).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Token:
        """Raises Refused for what is no whole token."""
        garbled = Refused("token is garbled or cut short: copy it again from `weft invite`")
        text = text.strip()
        if len(text) > TOKEN_BYTES_MAX:
            raise garbled
        try:
            whole = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            raw, check = whole[:-4], whole[-4:]
            if sha256(raw).digest()[:4] != check:
                raise garbled
            version, *fields = msgpack.unpackb(raw)
            if version != TOKEN_VERSION:
                raise Refused(f"token is of version {version}: this weft knows {TOKEN_VERSION}")
            mesh, name, key, addrs, secret, expires_s, site = fields[:7]
            if not all(isinstance(text, str) for text in (name, site, *addrs)):
                raise garbled
            token = cls(mesh, name, key, tuple(addrs), secret, expires_s, site)
        except (ValueError, TypeError, binascii.Error, msgpack.exceptions.UnpackException):
            raise garbled from None
        if not token._sound():
            raise garbled
        return token

    def _sound(self) -> bool:
        return (
            all(isinstance(b, bytes) for b in (self.mesh_id, self.inviter_key, self.secret))
            and len(self.mesh_id) == ed25519.ID_BYTES
            and len(self.inviter_key) == ed25519.KEY_BYTES
            and len(self.secret) == SECRET_BYTES
            and 0 < len(self.addrs) <= ADDRS_MAX
            and type(self.expires_s) is int
        )


@dataclass(frozen=True, slots=True)
class JoinRequest:
    """What a joiner asks for, with its proof."""

    token_hash: bytes
    name: str
    site: str
    proof: bytes


def _proof(secret: bytes, joiner: bytes, inviter: bytes, name: str, site: str) -> bytes:
    message = msgpack.packb([b"weft-join-1", joiner, inviter, name, site])
    return hmac.digest(secret, message, "sha256")


def join_request(token: Token, joiner_key: bytes, name: str, site: str) -> bytes:
    """The request of the node with public key `joiner_key`."""
    proof = _proof(token.secret, joiner_key, token.inviter_key, name, site)
    return bytes(msgpack.packb([TOKEN_VERSION, token.hash, name, site, proof]))


def parse_join_request(raw: bytes) -> JoinRequest:
    """Raises PeerError."""
    try:
        version, token_hash, name, site, proof = unpack_list(raw)[:5]
    except ValueError:
        raise PeerError("join request is malformed") from None
    if version != TOKEN_VERSION:
        raise PeerError(f"join request is of version {version}: this node knows {TOKEN_VERSION}")
    if not (isinstance(name, str) and isinstance(site, str) and isinstance(token_hash, bytes)):
        raise PeerError("join request is malformed")
    if not isinstance(proof, bytes):
        raise PeerError("join request is malformed")
    return JoinRequest(token_hash, name, site, proof)


def check_join(
    request: JoinRequest, token: Token, joiner_key: bytes, used: bool, now_s: int
) -> None:
    """Raise Refused unless `request`, which came over a channel that authenticated `joiner_key`,
    proves `token`, in time, unused, and for the token's site."""
    secret, inviter = token.secret, token.inviter_key
    proof = _proof(secret, joiner_key, inviter, request.name, request.site)
    if not hmac.compare_digest(proof, request.proof):
        raise Refused("token does not prove itself")
    if used:
        raise Refused("token was used before: ask for a new one")
    if now_s >= token.expires_s:
        raise Refused(f"token expired {now_s - token.expires_s} s ago: ask for a new one")
    if token.site and request.site != token.site:
        raise Refused(f"token is for site {token.site}, not {request.site}")


def parse_join_answer(raw: bytes) -> tuple[list[bytes], list[str]]:
    """The mesh's statements and addresses to dial first. Raises BadInput."""
    try:
        statements, addrs = unpack_list(raw)[:2]
        if not all(isinstance(blob, bytes) for blob in statements):
            raise ValueError("statements")
        return list(statements), [addr for addr in addrs if isinstance(addr, str)]
    except (ValueError, TypeError):
        raise BadInput("the inviter's answer is malformed") from None


def join_answer(statements: list[bytes], addrs: list[str]) -> bytes:
    return bytes(msgpack.packb([statements, addrs]))
