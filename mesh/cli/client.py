"""Asking the node: HTTP and JSON over its Unix socket."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from mesh.core.errors import BadInput, Mistakes, NotFound, NotReady, Refused, RequestError

TIMEOUT_S: Final = 10.0  # the node promises 1 s; a loaded machine gets some more
LONG_TIMEOUT_S: Final = 120.0  # for what works through everything: import, audit, dump, diff

_ERRORS: Final[Mapping[str, type[RequestError]]] = {
    "bad-input": BadInput,
    "refused": Refused,
    "not-found": NotFound,
    "not-ready": NotReady,
}


class NoNode(NotReady):
    """Nobody listens on the socket."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """The local API of the node behind one socket. Each call is one connection."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = socket_path

    def get(
        self,
        path: str,
        query: Mapping[str, str | None] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
    ) -> Any:
        return self._call("GET", path, query, None, timeout_s)

    def post(self, path: str, body: Mapping[str, object], *, timeout_s: float = TIMEOUT_S) -> Any:
        """Fields that are None are left out of the body."""
        return self._call("POST", path, None, body, timeout_s)

    def patch(self, path: str, body: Mapping[str, object]) -> Any:
        return self._call("PATCH", path, None, body, TIMEOUT_S)

    def delete(self, path: str, query: Mapping[str, str | None] | None = None) -> Any:
        return self._call("DELETE", path, query, None, TIMEOUT_S)

    def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | None] | None,
        body: Mapping[str, object] | None,
        timeout_s: float,
    ) -> Any:
        """The JSON document answered.

        Raises:
            BadInput, Refused, NotFound: what the node says of the request.
            NotReady: it cannot be reached, or says that it cannot now.
        """
        given = {key: value for key, value in (query or {}).items() if value is not None}
        target = f"{path}?{urlencode(given)}" if given else path
        headers = {}
        content = None
        if body is not None:
            fields = {key: value for key, value in body.items() if value is not None}
            content = json.dumps(fields).encode()
            headers["content-type"] = "application/json"
        connection = _Connection(self.socket_path, timeout_s)
        try:
            # A body that is refused unread breaks the pipe; why is in the answer.
            with contextlib.suppress(BrokenPipeError):
                connection.request(method, target, content, headers)
            response = connection.getresponse()
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error, timeout_s) from None
        finally:
            connection.close()
        return self._document(response.status, text)

    def _unreachable(self, error: Exception, timeout_s: float) -> NotReady:
        path = self.socket_path
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return NoNode(
                f"{path}: no node answers there: start one with `weft run`, or name its socket"
                " with --socket or WEFT_SOCKET"
            )
        if isinstance(error, PermissionError):
            return NotReady(f"{path}: not allowed: run this as the user that runs the node")
        if isinstance(error, TimeoutError):
            return NotReady(f"{path}: the node did not answer within {timeout_s:g} s: see its log")
        what = str(error) or type(error).__name__
        return NotReady(
            f"{path}: no answer of a node ({what}): check the socket and the node's log"
        )

    def _document(self, status: int, text: bytes) -> Any:
        try:
            document = json.loads(text)
        except ValueError:
            raise NotReady(
                f"{self.socket_path}: HTTP {status} without JSON: is this socket a node's?"
            ) from None
        if status < 400:
            return document
        said = document if isinstance(document, dict) else {}
        if said.get("mistakes"):
            raise Mistakes(*map(str, said["mistakes"]))
        kind = _ERRORS.get(str(said.get("code")), NotReady)
        raise kind(str(said.get("error") or f"{self.socket_path}: HTTP {status}"))


def segments(*parts: str) -> str:
    """Parts of a path under /v1, quoted."""
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)
