"""What must hold of the shards of VPCs that are not for every site: nobody is given one that its
site may not have, nor holds what others wrote in it. Both by the node's own view at the time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mesh.core import wire
from mesh.core.effects import Effect, Persist, Send
from mesh.core.errors import PeerError
from mesh.core.ops import MESH_SHARD
from sim.core.checkers import Violations, chain_text
from sim.core.clock import SECOND_NS
from sim.core.node import Process

SETTLED_NS = SECOND_NS // 10
"""What was said before a node heard who may have what leaves with its next batch."""


class EntitlementChecks:
    """Of one run."""

    def __init__(self, violations: Violations) -> None:
        self._violations = violations
        self._versions: dict[int, tuple[int, int]] = {}
        """node -> the version of its reading, and since when"""

    def drained(self, process: Process, effects: Sequence[Effect], now_ns: int) -> None:
        interests, node = process.interests, process.identity.index
        if interests is None:
            return
        known = self._versions.get(node)
        if known is None or known[0] != interests.version:
            known = self._versions[node] = interests.version, now_ns
        settled = now_ns - known[1] > SETTLED_NS
        for effect in effects:
            if isinstance(effect, Persist):
                self._hold(process, effect)
            elif isinstance(effect, Send) and settled:
                self._give(process, effect)

    def _hold(self, process: Process, effect: Persist) -> None:
        id, me = effect.chain, process.identity.node
        if id.shard == MESH_SHARD or id.node == me or not process.replica.lattice.branches(id):
            return
        assert process.interests is not None
        if process.replica.lacks:
            return  # who may have what may be among that: it drops nothing before it is told
        if not process.interests.entitled(me, id.shard):
            self._violations.add(
                "nothing of a VPC that is not for the site",
                f"{process.identity.name}: {chain_text(id)}",
            )

    def _give(self, process: Process, effect: Send) -> None:
        assert process.interests is not None
        for shard in _shards_in(process, effect.frame):
            if not process.interests.entitled(effect.peer, shard):
                self._violations.add(
                    "a VPC's shard is given only to whom it is for",
                    f"{process.identity.name} to {effect.peer.hex()[:8]}: {shard[:8]}",
                )


def _shards_in(process: Process, data: bytes) -> Iterator[str]:
    """The shards of which a frame says what is in them."""
    try:
        frame = process.codec.decode(data)
    except PeerError:
        return
    match frame:
        case wire.Deltas() | wire.Answer():
            yield from sorted({delta.header.chain.shard for delta in frame.deltas})
        case wire.Part():
            yield frame.delta.header.chain.shard
        case wire.Heads() if frame.shard:
            yield frame.shard
        case wire.Sync():
            yield from frame.shards
