"""How somebody who is not a member yet asks to become one: one request, one answer.

`/weft/join/1`: the client sends one frame, the inviter answers with one frame, whose first byte
says whether it is the answer (0), a refusal (1) or "not now" (2), both with a line of text. What
the request and the answer mean is the roster's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from mesh.core.errors import BadInput, NotReady, PeerError, Refused, RequestError
from mesh.node.p2p.dialler import Way, race
from mesh.node.p2p.framing import READ_BYTES, FrameReader, pack
from mesh.node.p2p.session import Identity, Session, Stream, open_session
from mesh.node.p2p.tcp import Address, Conduit, Net, TcpNet

JOIN_PROTOCOL = "/weft/join/1"
REQUEST_BYTES_MAX = 64 << 10
ANSWER_BYTES_MAX = 1 << 20
"""The answer carries the roster."""

JOIN_S = 10
"""How long a connection of somebody who is not a member may last."""

_REASON_CHARS_MAX = 512
_DONE, _REFUSED, _NOT_NOW = 0, 1, 2

JoinHandler = Callable[[bytes, bytes], Awaitable[bytes]]
"""`await handler(public_key, request) -> answer`; RequestError: the client is told its text."""


async def serve_join(session: Session, stream: Stream, handler: JoinHandler) -> str | None:
    """Answer one request; returns why it was refused, None if it was not.

    Raises PeerError. Anything but a RequestError out of `handler` is our fault: the client is told
    to try again later, and the error is raised on.
    """
    request = await _one_frame(stream, REQUEST_BYTES_MAX)
    failure: Exception | None = None
    refusal: str | None = None
    try:
        answer = await handler(session.key, request)
        if len(answer) > ANSWER_BYTES_MAX:
            raise ValueError(f"join answer of {len(answer)} bytes")
        message = bytes([_DONE]) + answer
    except RequestError as error:
        refusal = str(error)
        status = _NOT_NOW if isinstance(error, NotReady) else _REFUSED
        message = bytes([status]) + refusal[:_REASON_CHARS_MAX].encode()
    except Exception as error:
        failure = error
        message = bytes([_NOT_NOW]) + b"the inviting node failed to handle the request"
    await stream.write(pack(message), JOIN_S)
    await stream.finish()
    # Leaving now could reset the connection under the answer; the client leaves when it has it.
    await stream.read(READ_BYTES)
    if failure is not None:
        raise failure
    return refusal


async def request_join(
    seed: bytes,
    addrs: Sequence[str],
    inviter_key: bytes,
    request: bytes,
    timeout_s: float,
    net: Net | None = None,
) -> bytes:
    """Ask the node with public key `inviter_key`, reachable at one of `addrs`, to let us in.

    Args:
        seed: our own Ed25519 private key, 32 bytes; the inviter learns the public half.
        addrs: multiaddrs, tried in turn and a little overlapping.
        timeout_s: for all of it.

    Raises BadInput for an address or request that cannot be, Refused with the inviter's reason, and
    NotReady when nobody with that key answers. Nothing is listened on.
    """
    if not addrs:
        raise BadInput("the invitation names no address")
    if not 0 < len(request) <= REQUEST_BYTES_MAX:
        raise BadInput(f"a join request has 1 to {REQUEST_BYTES_MAX} bytes")
    addresses = [Address.parse(text) for text in addrs]
    identity = Identity(seed)
    failures: list[str] = []
    reach = net or TcpNet()
    ways = [Way(str(address), partial(reach.connect, address)) for address in addresses]
    answer: bytes | Refused | NotReady | None = None
    with trio.move_on_after(timeout_s):
        async with race(ways, failures, trio.CancelScope()) as conduits:
            async for conduit in conduits:
                try:
                    answer = await _ask(conduit, identity, inviter_key, request)
                    break
                except PeerError as error:
                    failures.append(f"{conduit.remote}: {error}")
                except (Refused, NotReady) as error:
                    answer = error  # raised here it would be wrapped in a group
                    break
    if isinstance(answer, bytes):
        return answer
    if answer is not None:
        raise answer
    raise NotReady(
        f"no answer from the inviting node within {timeout_s:g} s ("
        + ("; ".join(failures) or "timed out")
        + "); is it running and reachable from here?"
    )


async def _ask(conduit: Conduit, identity: Identity, inviter_key: bytes, request: bytes) -> bytes:
    answer: bytes | None = None
    authenticated = False

    def admit(key: bytes) -> bool:
        nonlocal authenticated
        authenticated = key == inviter_key
        return authenticated

    try:
        async with open_session(
            conduit, identity, admit, initiator=True, setup_s=JOIN_S, expected_key=inviter_key
        ) as session:
            stream = await session.open_stream(JOIN_PROTOCOL)
            await stream.write(pack(request), JOIN_S)
            answer = await _one_frame(stream, ANSWER_BYTES_MAX + 1)
    except PeerError as error:
        if not authenticated:
            raise
        # It is the right node, and it closed the connection on us.
        raise Refused(_NOT_LET_IN) from error
    if answer is None:
        raise Refused(_NOT_LET_IN)
    status, body = answer[0], answer[1:]
    if status == _DONE:
        return body
    reason = "".join(c for c in body.decode(errors="replace") if c.isprintable())
    reason = reason[:_REASON_CHARS_MAX] or "no reason given"
    raise NotReady(reason) if status == _NOT_NOW else Refused(reason)


_NOT_LET_IN = (
    "the inviting node closed the connection: it takes no joins now; "
    "is the invitation still open there?"
)


async def _one_frame(stream: Stream, bytes_max: int) -> bytes:
    with contextlib.suppress(EOFError):
        return await FrameReader(stream.read, bytes_max).frame()
    raise PeerError("closed by the peer")
