"""Telling two processes of one node apart: a copied disk or machine that was started as well.

Each process draws an id when it starts, and says it in HELLO. Where a link to one of them stands
and answers, another one that comes is refused, and shown a proof that it is not alone: the first is
asked to sign the id of the second with the key that both have. Nobody else can make that proof, and
one that was made for an earlier process of the node is none for this one, so no member can silence
a node by pretending. Who is shown it writes no more; who has refused it names both.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import trio

from mesh.core import ed25519
from mesh.core.ops import NodeId
from mesh.node.p2p.session import Identity

INSTANCE_BYTES = 16
TWIN_S = 600.0
"""For how long a second process is told of after its last call: it calls again more often."""
_DOMAIN = b"weft-twin-1"


@dataclass(frozen=True, slots=True)
class Twins:
    """Two processes of one node: where the one with a link is, and where the other called from."""

    linked: str
    refused: str


class Instance:
    """This process as one of a node's."""

    def __init__(self, identity: Callable[[], Identity], met: Callable[[NodeId], None]) -> None:
        """`met` is told which peer has proved that there is another process of this node."""
        self.id = secrets.token_bytes(INSTANCE_BYTES)
        self._identity = identity
        self._met = met
        self._seen: dict[NodeId, tuple[Twins, float]] = {}
        """other nodes with two processes, and when by trio's clock; members, so they are few"""

    def vouch(self, other: object) -> bytes:
        """The proof for the process with the id `other` that it is not alone; empty: it is."""
        if not isinstance(other, bytes) or len(other) != INSTANCE_BYTES or other == self.id:
            return b""
        return self._identity().sign(_DOMAIN + other)

    @staticmethod
    def proves(key: bytes, other: bytes, proof: bytes) -> bool:
        """Whether it was made with the node's key for the process with the id `other`."""
        return ed25519.verify(key, _DOMAIN + other, proof)

    def shown(self, peer: NodeId, proof: object) -> None:
        """A peer refuses this process, and says why."""
        if isinstance(proof, bytes) and self.proves(self._identity().key, self.id, proof):
            self._met(peer)

    def note(self, node: NodeId, twins: Twins) -> None:
        """A second process of `node` was refused here."""
        self._seen[node] = twins, trio.current_time()

    def twins(self) -> dict[NodeId, Twins]:
        """Other nodes of which two processes have called of late."""
        late_s = trio.current_time() - TWIN_S
        self._seen = {node: seen for node, seen in self._seen.items() if seen[1] > late_s}
        return {node: twins for node, (twins, _) in sorted(self._seen.items())}
