"""The nodes of a lab: founded, joined and started with the real `weft` command, asked by their API.

One node is one directory under the lab's own: weft.toml, keys and store as `weft init` and `weft
join` make them, the socket of the local API, and what the processes printed.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from mesh.cli.client import Client
from mesh.core.errors import NotReady, RequestError
from mesh.node.config import read_config, render_config
from sim.lab import processes
from sim.lab.processes import ProcessId
from sim.lab.topology import WAN_IF, Gateway

JOIN_TIMEOUT_S: Final = 60.0  # importing libp2p takes a second of one core in each process
ANSWER_TIMEOUT_S: Final = 60.0
JOINS_AT_ONCE: Final = 4  # each takes about 90 MB and a core while it starts
POLL_INTERVAL_S: Final = 0.05


def weft_command(*arguments: str) -> list[str]:
    """The command line of this very installation's `weft`."""
    return [sys.executable, "-m", "mesh.cli", *arguments]


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A gateway and the directory of its node."""

    gateway: Gateway
    directory: Path
    interest: str = "hosted"

    @property
    def name(self) -> str:
        return self.gateway.name

    @property
    def socket(self) -> Path:
        return self.directory / "weft.sock"

    @property
    def config(self) -> Path:
        return self.directory / "weft.toml"

    @property
    def log(self) -> Path:
        """What `weft run` has printed since the lab was made."""
        return self.directory / "node.log"

    @property
    def setup_log(self) -> Path:
        return self.directory / "setup.log"

    @property
    def environment(self) -> dict[str, str]:
        return {"WEFT_SOCKET": str(self.socket)}

    @property
    def api(self) -> Client:
        """The node's local API. Its calls raise RequestError: NotReady when it does not answer."""
        return Client(self.socket)

    def start(self) -> ProcessId:
        """Start `weft run` in the gateway's namespace; it is not waited for."""
        return processes.spawn(
            self.gateway.netns,
            weft_command("run", "--config", str(self.config)),
            log=self.log,
            environment=self.environment,
        )


def found(node: Node, mesh: str) -> None:
    """`weft init`: the first node of a mesh. Raises NotReady."""
    _finish(node, _setup(node, "init", "--mesh", mesh))


def join_all(nodes: Sequence[Node], invite: Callable[[], str]) -> Iterable[Node]:
    """`weft join` with a token of its own for each, a few at a time; yields who has joined.

    Raises:
        NotReady: one was refused or took too long.
    """
    for first in range(0, len(nodes), JOINS_AT_ONCE):
        batch = nodes[first : first + JOINS_AT_ONCE]
        started = [(node, _setup(node, "join", invite())) for node in batch]
        for node, process in started:
            _finish(node, process)
            yield node


def _setup(node: Node, *arguments: str) -> ProcessId:
    gateway = node.gateway
    options = {
        "--dir": str(node.directory),
        "--site": gateway.site,
        "--node": gateway.name,
        "--underlay": gateway.underlay_ip,
        "--socket": str(node.socket),
    }
    words = [word for option in options.items() for word in option]
    command = weft_command(*arguments, *words)
    return processes.spawn(gateway.netns, command, log=node.setup_log)


def _finish(node: Node, process: ProcessId) -> None:
    code = processes.wait_exit_code(process, JOIN_TIMEOUT_S)
    if code != 0:
        what = f"took more than {JOIN_TIMEOUT_S:.0f} s" if code is None else f"ended with {code}"
        raise NotReady(f"{node.name}: its setup {what}: {processes.log_tail(node.setup_log)}")
    # A lab is for what really runs: a node that cannot load XDP has to say so and fail.
    config = dataclasses.replace(
        read_config(node.config), dataplane_mode="xdp", wan_if=WAN_IF, interest=node.interest
    )
    node.config.write_text(render_config(config))


def wait_until(
    what: str, check: Callable[[], bool], timeout_s: float, watch: Iterable[tuple[Node, ProcessId]]
) -> None:
    """Ask again and again until `check` holds, while the nodes that are watched live.

    Raises:
        NotReady: it did not come true in time, or a node has ended; with the end of its log.
    """
    watched = list(watch)
    deadline_s = time.monotonic() + timeout_s
    reason = ""
    while True:
        try:
            if check():
                return
        except RequestError as error:
            reason = f": {error}"
        for node, process in watched:
            if not processes.alive(process):
                tail = processes.log_tail(node.log)
                raise NotReady(f"the node of {node.name} has ended: {tail}")
        if time.monotonic() > deadline_s:
            raise NotReady(f"{what}: not after {timeout_s:.0f} s{reason}")
        time.sleep(POLL_INTERVAL_S)


def wait_answer(node: Node, process: ProcessId) -> None:
    """Wait until a node that was just started takes requests. Raises NotReady."""

    def answers() -> bool:
        return bool(node.api.get("/v1/status"))

    wait_until(f"{node.name} answers", answers, ANSWER_TIMEOUT_S, [(node, process)])
