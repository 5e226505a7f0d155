"""Ports for nodes that have to be told one before they run, and keep it over restarts."""

from __future__ import annotations

import os
import socket

_PORTS = range(10_000, 32_768)
"""Below those that the kernel gives to outgoing connections: one of these could have a port for a
moment that a node was told to listen on."""
_tried = os.getpid() * 101
"""Processes of other tests begin elsewhere."""


def free_port() -> int:
    """A port that nobody listens on; another one at each call."""
    global _tried
    while True:
        _tried += 1
        port = _PORTS[_tried % len(_PORTS)]
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
