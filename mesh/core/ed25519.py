"""Ed25519 (RFC 8032) with 32-byte seeds and public keys, and the ids made from keys."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.core.ops import NodeId

KEY_BYTES = 32
SIGNATURE_BYTES = 64
ID_BYTES = 16
_PARSED_KEYS_MAX = 4096
"""Parsed public keys kept: one a member of a large mesh."""


@lru_cache(maxsize=64)
def _private(seed: bytes) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(seed)


@lru_cache(maxsize=_PARSED_KEYS_MAX)
def _public(key: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(key)


def public_key(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte seed."""
    return _private(seed).public_key().public_bytes_raw()


def sign(seed: bytes, message: bytes) -> bytes:
    return _private(seed).sign(message)


def verify(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over `message`. False for malformed keys too."""
    try:
        _public(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def node_id(key: bytes) -> NodeId:
    """The id of the node whose first public key is `key`."""
    return sha256(b"weft-node" + key).digest()[:ID_BYTES]


def mesh_id(root_key: bytes) -> bytes:
    """The id of the mesh under the root public key `root_key`."""
    return sha256(b"weft-mesh" + root_key).digest()[:ID_BYTES]
