"""One request to the local API of a node: HTTP and JSON over its Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final

from mesh.core.errors import BadInput, NotFound, NotReady, Refused

REQUEST_TIMEOUT_S: Final = 10.0
ERRORS: Final = {400: BadInput, 404: NotFound, 409: Refused}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=REQUEST_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def call(path: Path, method: str, target: str, body: object = None) -> Any:
    """The JSON document that a node answers.

    Raises:
        BadInput, NotFound, Refused: what the node says of the request.
        NotReady: it does not answer, or says that it cannot now.
    """
    connection = _UnixConnection(path)
    headers = {} if body is None else {"content-type": "application/json"}
    try:
        connection.request(method, target, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        text = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotReady(f"{path}: the node does not answer ({error})") from None
    finally:
        connection.close()
    document = json.loads(text) if text else None
    if response.status >= 400:
        said = document.get("error") if isinstance(document, dict) else None
        raise ERRORS.get(response.status, NotReady)(said or f"HTTP {response.status}")
    return document
