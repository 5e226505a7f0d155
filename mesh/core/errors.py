"""What can go wrong with a request of our own user, as distinct from a peer's misbehaviour.

All of these leave the object that raised them as it was. Peer misbehaviour is `PeerError`; it costs
the peer and nobody else.
"""

from __future__ import annotations


class RequestError(Exception):
    """A local request that is not carried out: one line that says what is wrong and what to do."""


class BadInput(RequestError):
    """The request itself is malformed (command line: exit 2, API: 400)."""


class Mistakes(BadInput):
    """Several things are wrong with one request: `lines` has a line for each."""

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


class Refused(RequestError):
    """Well formed, but the state says no: conflicts, authority, bounds (exit 1, API: 409)."""


class NotFound(RequestError):
    """The object named does not exist, or its name is ambiguous (exit 1, API: 404)."""


class NotReady(RequestError):
    """The node cannot take the request now; trying again later may help (exit 3, API: 503)."""


class PeerError(Exception):
    """A frame of a peer broke the protocol. The receiver's state is as before the frame."""
