"""What people who are not members may cost a node: few places, and not too often.

Rules of this file
- Nobody is let in unless joining is open; then a stranger reaches `/weft/join/1` and nothing else.
- A place is taken in the handshake and given back when the connection ends, whatever it came to.
"""

from __future__ import annotations

import logging

import trio

from mesh.core.errors import PeerError
from mesh.node.log import LimitedLog
from mesh.node.p2p.join import JOIN_PROTOCOL, JOIN_S, JoinHandler, serve_join
from mesh.node.p2p.link import AGREE_S, PROTOCOLS
from mesh.node.p2p.pulse import Pulse
from mesh.node.p2p.session import Session, Stream
from mesh.node.p2p.tcp import Conduit

STRANGERS_MAX = 4
JOIN_BURST = 8
JOINS_PER_S = 1.0
"""Places, and how often one is given: a handshake is some 10 ms of CPU."""


class Strangers:
    """The places of one node for those who ask to become members."""

    def __init__(self, handler: JoinHandler | None, pulse: Pulse, log: LimitedLog) -> None:
        """`handler` answers them; None: nobody is ever let in."""
        self._handler = handler
        self._pulse = pulse
        self._log = log
        self._open = False
        self.count = 0
        """places taken"""
        self.tokens = float(JOIN_BURST)
        """places that may be given at once"""
        self._tokens_at_s = 0.0

    def open(self, allowed: bool) -> None:
        self._open = allowed and self._handler is not None

    def protocols(self) -> frozenset[str]:
        """What is spoken here with those who are no members, and with members that ask for it."""
        return frozenset({JOIN_PROTOCOL}) if self._open else frozenset()

    async def first_stream(self, session: Session) -> Stream:
        """The first stream of a member that has called: a link's, or that of a request to join.
        Raises PeerError."""
        with trio.move_on_after(AGREE_S):
            return await session.accept_stream(PROTOCOLS | self.protocols())
        raise PeerError("no stream was opened")

    def admit(self) -> bool:
        """Take a place, if there is one and it is not too soon."""
        now_s = trio.current_time()
        earned = (now_s - self._tokens_at_s) * JOINS_PER_S
        self.tokens = min(float(JOIN_BURST), self.tokens + earned)
        self._tokens_at_s = now_s
        if not self._open or self.tokens < 1 or self.count >= STRANGERS_MAX:
            return False
        self.tokens -= 1
        self.count += 1
        return True

    def leave(self) -> None:
        """Give a place back."""
        self.count -= 1

    async def serve(self, session: Session, conduit: Conduit) -> None:
        """A stranger's connection, from its handshake on. Raises PeerError."""
        with trio.move_on_after(JOIN_S):
            stream = await session.accept_stream(frozenset({JOIN_PROTOCOL}))
            await self.answer(session, stream, conduit)

    async def answer(self, session: Session, stream: Stream, conduit: Conduit) -> None:
        """Answer the request on `stream`. Raises PeerError."""
        assert self._handler is not None
        # Silence is not a sign of anything while the other end waits for our answer.
        self._pulse.forget(conduit)
        with trio.move_on_after(JOIN_S):
            refusal = await serve_join(session, stream, self._handler)
            self._log.event(
                "p2p.join_refused" if refusal else "p2p.join_served",
                level=logging.INFO,
                key=session.key,
                addr=conduit.remote,
                reason=refusal,
            )
