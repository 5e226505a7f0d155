"""The opt-in TCP address for Prometheus and `/v1/status`: opened, moved and closed as we run.

Nobody is asked who they are there, so nothing is served but what those two pages say.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from mesh.node.config import Config, ConfigError


def bind(config: Config) -> trio.SocketListener | None:
    """A listener at `[metrics] listen`; None when there is no such field.

    Raises ConfigError when the address cannot be had.
    """
    if config.metrics_listen is None:
        return None
    host, port = config.metrics_listen.rsplit(":", 1)
    host = host.strip("[]")
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, int(port)))
        listening.listen()
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{config.where('metrics', 'listen')}: {config.metrics_listen}: cannot be listened on"
            f" ({error.strerror or error}): choose another address or port"
        ) from None
    return trio.SocketListener(trio.socket.from_stdlib_socket(listening))


class PublicPort:
    """Whichever listener is in use. Survives every error of a connection."""

    def __init__(self) -> None:
        self._listener: trio.SocketListener | None = None
        self._changed = trio.Event()

    def use(self, listener: trio.SocketListener | None) -> None:
        """Serve this one from now on; the former is closed, and its connections are cut."""
        if self._listener is not None:
            self._listener.socket.close()
        self._listener = listener
        self._changed.set()

    async def run(self, serve: Callable[[trio.SocketStream], Awaitable[None]]) -> None:
        """Serve until cancelled; then nothing listens any more."""
        try:
            while True:
                self._changed = trio.Event()
                async with trio.open_nursery() as nursery:
                    if self._listener is not None:
                        nursery.start_soon(trio.serve_listeners, serve, [self._listener])
                    await self._changed.wait()
                    nursery.cancel_scope.cancel()
        finally:
            self.use(None)
