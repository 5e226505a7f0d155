"""Configuration taken up anew, as JSON."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

from mesh.node.context import NodeContext

Json: TypeAlias = dict[str, Any]

_RESULTS: Final = {"live": "applied", "restart": "needs a restart", "never": "cannot change"}


class UpkeepService:
    """See the package."""

    def __init__(self, node: NodeContext) -> None:
        self._node = node

    async def reload(self) -> Json:
        """`applied`: whether all that differs was taken up."""
        reloaded = await self._node.reloading.reload()
        return {
            "applied": not reloaded.refused,
            "fields": [
                {"field": field.title, "result": _RESULTS[field.change], "why": field.why}
                for field in (*reloaded.applied, *reloaded.refused)
            ],
        }
