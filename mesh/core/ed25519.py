"""Ed25519 (RFC 8032) with 32-byte seeds and public keys, and the ids made from keys."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from mesh.core.ops import NodeId

KEY_BYTES = 32
SIGNATURE_BYTES = 64
ID_BYTES = 16


@lru_cache(maxsize=64)
def _pair(seed: bytes) -> tuple[bytes, bytes]:
    """(public key, secret key as the library has it)"""
    return crypto_sign_seed_keypair(seed)


def public_key(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte seed."""
    return _pair(seed)[0]


def sign(seed: bytes, message: bytes) -> bytes:
    return crypto_sign(message, _pair(seed)[1])[:SIGNATURE_BYTES]


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over `message`. False for malformed keys too."""
    # The library reads as many bytes as there should be, however many there are.
    if len(key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, key)
    except BadSignatureError:
        return False
    return True


def node_id(key: bytes) -> NodeId:
    """The id of the node whose first public key is `key`."""
    return sha256(b"weft-node" + key).digest()[:ID_BYTES]


def mesh_id(root_key: bytes) -> bytes:
    """The id of the mesh under the root public key `root_key`."""
    return sha256(b"weft-mesh" + root_key).digest()[:ID_BYTES]
