"""`weft reload` and SIGHUP: taking up what was changed in `weft.toml` while the node runs.

What can be changed is told by the field's row in `mesh.node.config_fields`. A file with a mistake,
or a value that cannot be had on this machine, changes nothing at all. Fields that need more than a
reload are named, and go on as they were; the others of the same file are taken up all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import trio

from mesh.node.config import Config, read_config
from mesh.node.config_fields import FIELDS, Field
from mesh.node.log import event
from mesh.node.public import PublicPort, bind

_logger = logging.getLogger("weft.node")


@dataclass(frozen=True, slots=True)
class Reloaded:
    """The fields that differed from what the node ran with, by what became of them."""

    applied: tuple[Field, ...] = ()
    refused: tuple[Field, ...] = ()
    """they need a restart, or never change"""


def set_log_level(level: str) -> None:
    """Log events of this level and above; `level` is one of `LOG_LEVELS`."""
    logging.getLogger("weft").setLevel(level.upper())


class Reloading:
    """One per node; holds the configuration in use."""

    def __init__(
        self, config: Config, public: PublicPort, use_mesh: Callable[[Config], None]
    ) -> None:
        """`use_mesh(config)` takes up what `[mesh]` says."""
        self.config = config
        self._public = public
        self._use_mesh = use_mesh
        self._lock = trio.Lock()

    async def reload(self) -> Reloaded:
        """Read the file again and take up what can be. Raises ConfigError: nothing was changed."""
        async with self._lock:
            wanted = await trio.to_thread.run_sync(read_config, self.config.path)
            before, after = self.config.values(), wanted.values()
            changed = [f for f in FIELDS if before[f.attribute] != after[f.attribute]]
            applied = tuple(f for f in changed if f.change == "live")
            refused = tuple(f for f in changed if f.change != "live")
            self._apply({f.attribute: after[f.attribute] for f in applied})
        for field in refused:
            event(
                _logger, "config.not_applied", level=logging.WARNING, field=field.title,
                needs=field.change, reason=field.why,
            )  # fmt: skip
        event(_logger, "config.reloaded", fields=", ".join(f.title for f in applied) or "none")
        return Reloaded(applied, refused)

    def _apply(self, changes: dict[str, Any]) -> None:
        """All or, when one raises ConfigError, none of them."""
        config = replace(self.config, **changes)
        ready: list[Callable[[], None]] = []
        if "metrics_listen" in changes:
            listener = bind(config)
            ready.append(lambda: self._public.use(listener))
        if "log_level" in changes:
            ready.append(lambda: set_log_level(config.log_level))
        if changes.keys() & {"bootstrap", "relay", "interest", "mdns"}:
            ready.append(lambda: self._use_mesh(config))
        for step in ready:
            step()
        self.config = config
