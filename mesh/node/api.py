"""The local API: HTTP and JSON on a Unix socket that only its owner may use.

Errors are `{"error": one line, "code": …}` with status 400 (bad-input), 404 (not-found), 409
(refused) or 503 (not-ready). No exception of a call ends the node. Bodies are bounded, and their
size is looked at before they are read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import stat
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio
from hypercorn.config import Config as ServerConfig
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as HttpRoute

from mesh.core.errors import BadInput, Mistakes, NotFound, NotReady, Refused, RequestError
from mesh.node.context import NodeContext
from mesh.node.log import LimitedLog
from mesh.node.metrics import Latencies, render
from mesh.node.public import bind
from mesh.node.routes import ROUTES, Route, openapi
from mesh.node.schema import check, parse_query
from mesh.node.service import Service

if TYPE_CHECKING:
    from trio_typing import TaskStatus

SOCKET_MODE: Final = 0o600
SOCKET_DIRECTORY_MODE: Final = 0o755
CONNECTIONS_MAX: Final = 256  # of one user's own tools; each is a descriptor that links need, too
IDLE_S: Final = 10  # without a request: a busy machine may keep the node from reading one that came
PUBLIC_CONNECTIONS_MAX: Final = 16  # a few scrapers; strangers must not crowd our own tools
PUBLIC_READ_TIMEOUT_S: Final = 10  # for the next byte of a client that nobody vouches for
ENCODED_AT_ONCE_MAX: Final = 256  # values: 0.1 ms, where a thread costs more to be asked
READ_TIMEOUT_S: Final = 120  # for the next byte of a client, which may be waiting for its answer

PUBLIC_ROUTES: Final = tuple(r for r in ROUTES if (r.method, r.path) == ("GET", "/v1/status"))
"""What `[metrics] listen` serves beside /metrics: it changes nothing and names no key."""

_logger = logging.getLogger("weft.api")

_STATUS: Final = {
    BadInput: (400, "bad-input"),
    NotFound: (404, "not-found"),
    Refused: (409, "refused"),
    NotReady: (503, "not-ready"),
}


async def serve(
    node: NodeContext, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve the API of `node` until cancelled; started when requests are taken.

    Raises NotReady when another process has the socket, or it cannot be made, and ConfigError when
    the address for metrics cannot be had.
    """
    service, latencies = Service(node), Latencies()
    whole = make_app(service, ROUTES, latencies)
    connections = _Connections(whole, CONNECTIONS_MAX, READ_TIMEOUT_S)
    pages = make_app(service, PUBLIC_ROUTES, latencies)
    public = _Connections(pages, PUBLIC_CONNECTIONS_MAX, PUBLIC_READ_TIMEOUT_S)
    with _bound(node.config.socket_path) as listener:
        node.public.use(bind(node.config))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.public.run, public.serve)
            await nursery.start(trio.serve_listeners, connections.serve, [listener])
            task_status.started()


class _Connection(TCPServer):
    """As shipped (0.18), one whose client has left goes on idling."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _Connections:
    """Hypercorn's connections, each guarded: as shipped (0.18), a request that breaks HTTP raises
    through its server and would end the node."""

    def __init__(self, app: Starlette, open_max: int, read_timeout_s: int) -> None:
        self._config = ServerConfig()
        self._config.errorlog = None  # its lines are sentences; what matters is logged here
        self._config.accesslog = None
        self._config.include_server_header = False
        self._config.keep_alive_timeout = IDLE_S
        self._config.read_timeout = read_timeout_s
        self._app = wrap_app(app, self._config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
        self._log = LimitedLog(_logger, trio.current_time)
        self._open = 0
        self._open_max = open_max

    async def serve(self, stream: trio.SocketStream) -> None:
        if self._open >= self._open_max:
            self._log.event("api.too_many_connections", open=self._open)
            await stream.aclose()
            return
        self._open += 1
        try:
            context = WorkerContext(None)
            state = ConnectionState({})
            await _Connection(self._app, self._config, context, state, stream)  # type: ignore[arg-type]
        except* Exception as group:
            self._log.event("api.connection_failed", reason=_first(group))
        finally:
            self._open -= 1
            await trio.aclose_forcefully(stream)


def _first(group: BaseExceptionGroup[BaseException]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"


def make_app(service: Service, table: Iterable[Route], latencies: Latencies) -> Starlette:
    """The ASGI application over one node's services, with the calls of `table`."""
    log = LimitedLog(_logger, trio.current_time)
    document = openapi()

    async def show_openapi(_request: Request) -> Response:
        return JSONResponse(document)

    async def show_metrics(_request: Request) -> Response:
        return PlainTextResponse(await render(service, latencies))

    routes = [
        HttpRoute("/metrics", _guarded(show_metrics, log), methods=["GET"]),
    ]
    if table is ROUTES:
        routes.append(HttpRoute("/v1/openapi.json", _guarded(show_openapi, log), methods=["GET"]))
    by_path: dict[str, dict[str, Route]] = {}
    for route in table:
        by_path.setdefault(route.path, {})[route.method] = route
    for path, methods in by_path.items():
        handler = _guarded(_handler(service, methods, latencies), log)
        routes.append(HttpRoute(path, handler, methods=list(methods)))
    return Starlette(
        routes=routes,
        exception_handlers={HTTPException: _no_such_call},  # type: ignore[dict-item]
    )


Handler = Callable[[Request], Awaitable[Response]]


def _handler(service: Service, methods: dict[str, Route], latencies: Latencies) -> Handler:
    async def handle(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        route = methods[method]
        started_s = time.perf_counter()
        try:
            arguments = dict(request.path_params)
            arguments.update(parse_query(route.query, request.query_params.multi_items()))
            if route.body is not None:
                arguments.update(await _read_body(request, route))
            answer = await route.call(service)(**arguments)
            if _parts(answer, ENCODED_AT_ONCE_MAX) < ENCODED_AT_ONCE_MAX:
                text = _encode(answer)
            else:  # such as a dump: beside the loop, which has links to keep alive
                text = await trio.to_thread.run_sync(_encode, answer)
            return Response(text, media_type="application/json")
        finally:
            latencies.add(f"{method} {route.path}", time.perf_counter() - started_s)

    return handle


def _parts(answer: object, count_max: int) -> int:
    """How many values a JSON answer is made of, counted no further than `count_max`."""
    count, left = 0, [answer]
    while left and count < count_max:
        value = left.pop()
        count += 1
        if isinstance(value, Mapping):
            left.extend(value.values())
        elif isinstance(value, list | tuple):
            left.extend(value[:count_max])
    return count


def _encode(answer: object) -> bytes:
    return (json.dumps(answer, ensure_ascii=False) + "\n").encode()


async def _read_body(request: Request, route: Route) -> dict[str, Any]:
    """The checked object of a request's body. Raises BadInput."""
    too_large = BadInput(f"body: larger than {route.body_bytes_max} bytes: send less at once")
    declared = request.headers.get("content-length", "0")
    if not declared.isdecimal() or int(declared) > route.body_bytes_max:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > route.body_bytes_max:
            raise too_large
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise BadInput("body: not JSON: send one object as the API document shows it") from None
    assert route.body is not None
    check(route.body, value, "body")
    assert isinstance(value, dict)
    return value


def _guarded(handler: Handler, log: LimitedLog) -> Handler:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except RequestError as error:
            return _error(error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            log.event("api.failed", level=logging.ERROR, path=request.url.path, reason=what)
            _logger.debug("api.failed", exc_info=error)
            return _error(NotReady(f"failed inside: {what}: see the node's log"))

    return guarded


def _error(error: RequestError) -> Response:
    status, code = next(
        (answer for kind, answer in _STATUS.items() if isinstance(error, kind)), (503, "not-ready")
    )
    line = " ".join(str(error).split())
    document: dict[str, object] = {"error": line, "code": code}
    if isinstance(error, Mistakes):
        document["mistakes"] = list(error.lines)
    return JSONResponse(document, status)


async def _no_such_call(request: Request, error: HTTPException) -> Response:
    """Errors of routing, in the form of all others."""
    call = f"{request.method} {request.url.path}"[:200]
    if error.status_code == 405:
        return _error(BadInput(f"{call!r}: not by this method: see /v1/openapi.json"))
    return _error(NotFound(f"{call!r}: no such call: see /v1/openapi.json"))


@contextlib.contextmanager
def _bound(path: Path) -> Iterator[trio.SocketListener]:
    """A listener at `path`, mode 0600 from its first moment; both are gone at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            path.parent.mkdir(mode=SOCKET_DIRECTORY_MODE, parents=True, exist_ok=True)
            _remove_stale(path)
            umask = os.umask(0o777 & ~SOCKET_MODE)
            try:
                listening.bind(str(path))
            finally:
                os.umask(umask)
            listening.listen()
        except OSError as error:
            raise NotReady(
                f"{path}: the API's socket cannot be made ({error.strerror or error}): set [api]"
                " socket to a path that this user may write"
            ) from None
        made = path.stat().st_ino
        try:
            yield trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_ino == made:
                    path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove a socket that a killed node left. Raises NotReady when somebody answers there."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise NotReady(
                f"{path}: is there and no socket: remove it, or set another [api] socket"
            )
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise NotReady(f"{path}: another process answers there: stop it, or set another [api] socket")
