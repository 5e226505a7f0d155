"""The roster's statements as JSON: for whoever checks or signs them elsewhere."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from mesh.core.errors import BadInput, PeerError
from mesh.node.context import NodeContext

Json: TypeAlias = dict[str, Any]


class RosterService:
    """See the package."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    async def statements(self) -> Json:
        """All of them, in base64, in an order in which an empty roster can take them."""
        roster = self._node.replica.roster
        return {
            "mesh": roster.mesh_id.hex(),
            "digest": roster.digest().hex(),
            "statements": [base64.b64encode(blob).decode() for blob in roster.statements()],
        }

    async def add(self, statements: Sequence[str]) -> Json:
        """Take in statements that were signed elsewhere; returns once they are stored here and on
        their way to peers. `added` counts those that this node did not have."""
        try:
            blobs = [base64.b64decode(text, validate=True) for text in statements]
        except (binascii.Error, ValueError):
            raise BadInput("statements: not base64: give them as GET shows them") from None
        replica = self._node.replica
        known = replica.roster.hashes()
        try:
            replica.add_statements(blobs, time.monotonic_ns())
        except PeerError as error:
            raise BadInput(f"statements: {error}: nothing was taken") from None
        added = len(replica.roster.hashes() - known)
        await self._node.durable()
        return {"added": added, "digest": replica.roster.digest().hex()}
