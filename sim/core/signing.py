"""Signatures in a run: the real ones, or a stand-in where nobody forges.

A keyed hash whose key only the run knows is as good as Ed25519 among nodes that sign nothing but
what they have written, and takes a hundredth of the time. Runs with a hostile peer, and those whose
scenario asks for it, use the real ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from hashlib import blake2b
from typing import Final, Protocol

from crdt.header import Sign
from mesh.core import ed25519

VERIFIED_MAX: Final = 1 << 16
public_key = lru_cache(maxsize=4096)(ed25519.public_key)
"""Runs of one process have the same nodes."""


class Signatures(Protocol):
    """The `sign` and `verify` of all nodes of a run."""

    def know(self, seed: bytes) -> None:
        """A node has a new key."""

    def signer(self, seed: bytes) -> Sign: ...

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool: ...


@lru_cache(maxsize=VERIFIED_MAX)
def verify_shared(key: bytes, message: bytes, signature: bytes) -> bool:
    """Real Ed25519; nodes of one process share what was found."""
    return ed25519.verify(key, message, signature)


class Ed25519:
    """The real ones."""

    def know(self, seed: bytes) -> None:
        pass

    def signer(self, seed: bytes) -> Sign:
        return partial(ed25519.sign, seed)

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        return verify_shared(key, message, signature)


class KeyedHashes:
    """BLAKE2b under the node's seed. `seeds`: the first of every node of the run."""

    def __init__(self, seeds: Iterable[bytes]) -> None:
        self._seeds = {public_key(seed): seed for seed in seeds}

    def know(self, seed: bytes) -> None:
        self._seeds[public_key(seed)] = seed

    def signer(self, seed: bytes) -> Sign:
        return partial(_keyed_hash, seed)

    def verify(self, key: bytes, message: bytes, signature: bytes) -> bool:
        seed = self._seeds.get(key)
        return seed is not None and _keyed_hash(seed, message) == signature


def _keyed_hash(seed: bytes, message: bytes) -> bytes:
    return blake2b(message, key=seed).digest()
