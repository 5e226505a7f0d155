"""Real nodes with their API, each in a thread of its own: real files, links on loopback, the data
plane in memory. What asks them is a real client of the socket, or the real command."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from mesh.node.api import serve
from mesh.node.config import read_config, render_config
from mesh.node.node import Node
from mesh.node.setup import NewNode, found, join
from tests.ports import free_port

DEADLINE_S = 60.0


@dataclass
class Running:
    """A node that runs in another thread. `on_loop` runs a function in it."""

    node: Node
    socket: Path
    config: Path
    token: trio.lowlevel.TrioToken

    def on_loop(self, call: Callable[[], Any]) -> Any:
        return trio.from_thread.run_sync(call, trio_token=self.token)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON document; `body` may be bytes."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("node", timeout=DEADLINE_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(self.socket))
        try:
            with contextlib.suppress(BrokenPipeError):  # refused before it was read
                connection.request(method, path, raw)
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        is_json = response.headers["content-type"].startswith("application/json")
        return response.status, json.loads(text) if is_json else text


def new_node(home: Path, name: str, site: str, underlay: str) -> NewNode:
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    return NewNode(home / name, site, name, underlay, listen, "weft.sock")


def in_memory(config: Path) -> Path:
    """Choose the data plane that needs no rights."""
    changed = replace(read_config(config), dataplane_mode="memory")
    config.write_text(render_config(changed))
    return config


def founded(home: Path, name: str = "a1", site: str = "a") -> Path:
    """The configuration of the first node of a mesh."""
    return in_memory(found(new_node(home, name, site, "127.0.0.1"), "edge").config)


def joined(home: Path, inviter: Running, name: str, site: str, underlay: str) -> Path:
    """The configuration of one more node."""
    _, answer = inviter.ask("POST", "/v1/invitations", {"ttl_s": 60})
    new = new_node(home, name, site, underlay)
    return in_memory(trio.run(join, new, answer["token"]).config)


@contextmanager
def running(config: Path) -> Iterator[Running]:
    """The node of a directory, until the block ends; then it has stopped in order."""
    ready = threading.Event()
    state: dict[str, Any] = {}

    async def main() -> None:
        node = Node(read_config(config))
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run, serve)
            state.update(node=node, scope=nursery.cancel_scope)
            state["token"] = trio.lowlevel.current_trio_token()
            while not node.replica.writable or node.id not in node.view.gateways:
                await trio.sleep(0.01)
            ready.set()

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as error:
            state["error"] = error
        finally:
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(DEADLINE_S), "the node did not get ready"
        if "error" in state:
            raise state["error"]
        node: Node = state["node"]
        yield Running(node, node.config.socket_path, config, state["token"])
    finally:
        if "token" in state:
            state["token"].run_sync_soon(state["scope"].cancel)
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
    assert "error" not in state, repr(state["error"])


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that comes by itself."""
    done = threading.Event()
    for _ in range(int(DEADLINE_S / 0.02)):
        if holds():
            return
        done.wait(0.02)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


def cut(one: Running, other: Running) -> None:
    """End the link; neither dials the other until `heal`."""
    for node, peer in ((one, other), (other, one)):
        node.node.neighbours.dial_members = lambda: None  # type: ignore[method-assign]
        node.on_loop(partial(node.node.transport.set_targets, {}))
        node.on_loop(partial(node.node.transport.drop, peer.node.id, "cut", 1.0))
    for node in (one, other):
        until(lambda n=node: not n.on_loop(n.node.transport.peers), "the cut")  # type: ignore[misc]


def heal(*nodes: Running) -> None:
    for node in nodes:
        del node.node.neighbours.dial_members
        node.on_loop(node.node.neighbours.dial_members)
