"""A lab: real nodes, real libp2p and real XDP in network namespaces of this machine.

`Lab.up` makes one, `Lab.open` finds one again from any process, and every method says what it did
or raises a RequestError of one line. What a lab is made of is remembered in its state file before
it is used, so that `take_down` finds all of it however far `up` came.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from dataplane.backend import Unavailable
from dataplane.xdp import pins
from dataplane.xdp.backend import require_xdp
from mesh.cli.client import Client
from mesh.core.errors import BadInput, NotFound, NotReady, Refused
from sim.lab import faults, netns, objects, processes, state
from sim.lab.nodes import Node, found, join_all, wait_answer, weft_command
from sim.lab.probes import Flow, Pinger, PingResult, TransferResult, transfer
from sim.lab.signals import undisturbed
from sim.lab.state import State
from sim.lab.topology import (
    WAN_IF,
    Gateway,
    LabSpec,
    Pod,
    Topology,
    belongs_to,
    mesh_name,
    partition_groups,
    plan,
    plan_pod,
    with_pods,
)

PING_TIMEOUT_S: Final = 1.0
PING_INTERVAL_S: Final = 0.2
TRANSFER_BYTES: Final = 100_000_000

Progress = Callable[[str], None]


def _silent(line: str) -> None:
    """Progress that nobody wants to see."""


class GatewayHandle:
    """One gateway of a lab that is up: its node's API, and `weft` asked for that node."""

    def __init__(self, lab: Lab, gateway: Gateway) -> None:
        self._lab = lab
        self.gateway = gateway
        self.node = lab.node(gateway.name)

    @property
    def name(self) -> str:
        return self.gateway.name

    @property
    def site(self) -> str:
        return self.gateway.site

    @property
    def api(self) -> Client:
        """The local API of its node: `lab.gateway("a1").api.get("/v1/status")`."""
        return self.node.api

    def weft(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`weft ARGUMENTS` for this node, in its namespace, with its output captured."""
        return self._lab.run_in(self.name, weft_command(*arguments))

    @property
    def pid(self) -> int | None:
        """Of the running node; None when it does not run."""
        process = self._lab.state.processes.get(self.name)
        return process.pid if process is not None and processes.alive(process) else None


class Lab:
    """A lab that is there. Its state is read anew by whatever changes it, under its lock."""

    def __init__(self, current: State) -> None:
        self.state = current

    @classmethod
    def up(cls, spec: LabSpec, progress: Progress = _silent) -> Lab:
        """Make a lab and wait until its nodes are ready and its pods reach each other.

        Whatever ends it early, Ctrl-C too, takes everything down again.

        Raises:
            Refused: it is up already, or being changed.
            NotReady: not root, a tool is missing, or something did not come up.
        """
        return cls.up_as(plan(spec), progress)

    @classmethod
    def up_as(
        cls,
        topology: Topology,
        progress: Progress = _silent,
        later: Collection[str] = (),
    ) -> Lab:
        """The same from a plan. `later`: gateways that have no node yet, to be joined by `join`."""
        check_machine()
        with state.locked(topology.name):
            state.make_directory(topology)
            try:
                lab = cls(State(topology))
                state.save(lab.state)
                lab._make(progress, later)
            except BaseException:
                with undisturbed():
                    progress("not finished: taking everything down")
                    _remove_all(topology.name)
                raise
        return lab

    @classmethod
    def open(cls, name: str) -> Lab:
        """A lab that is up. Raises NotFound, NotReady (half made, or its state unreadable)."""
        current = state.load(name)
        if not current.ready:
            raise NotReady(f"lab {name} is only half made; take it down with `weft lab down`")
        return cls(current)

    @staticmethod
    def take_down(name: str, patience_s: float = 0.0) -> bool:
        """Remove a lab, whole or half made. False: there was nothing of it. `patience_s`: so long
        it waits for who is changing it.

        Raises:
            Refused: another command is changing it.
            NotReady: not root, or a process cannot be ended.
        """
        with state.locked(name, patience_s), undisturbed():
            return _remove_all(name)

    def down(self) -> None:
        """Remove this lab and everything in it."""
        self.take_down(self.name)

    @property
    def name(self) -> str:
        return self.state.topology.name

    @property
    def topology(self) -> Topology:
        return self.state.topology

    @property
    def directory(self) -> Path:
        return state.lab_directory(self.name)

    def node(self, gateway: str) -> Node:
        """Raises NotFound."""
        topology = self.topology
        return Node(topology.gateway(gateway), self.directory / gateway, topology.interest)

    def gateway(self, name: str) -> GatewayHandle:
        """Raises NotFound."""
        return GatewayHandle(self, self.topology.gateway(name))

    def gateways(self) -> list[GatewayHandle]:
        return [GatewayHandle(self, gateway) for gateway in self.topology.gateways]

    def pod(self, name: str) -> Pod:
        """Raises NotFound."""
        return self.topology.pod(name)

    def status(self) -> dict[str, Any]:
        """What is there, as `weft lab status -o json` prints it; a pid is null without a node."""
        pids = {gateway.name: gateway.pid for gateway in self.gateways()}
        return {
            "name": self.name,
            "sites": [
                {
                    "name": site,
                    "gateways": [
                        {
                            "name": gateway.name,
                            "netns": gateway.netns,
                            "socket": str(self.node(gateway.name).socket),
                            "underlay_ip": gateway.underlay_ip,
                            "pid": pids[gateway.name],
                            "wan_if": WAN_IF,
                        }
                        for gateway in self.topology.gateways
                        if gateway.site == site
                    ],
                    "pods": [
                        {
                            "name": pod.name,
                            "netns": pod.netns,
                            "vpc": pod.vpc,
                            "ip": pod.ip,
                            "mac": pod.mac,
                        }
                        for pod in self.topology.pods
                        if pod.site == site
                    ],
                }
                for site in self.topology.sites
            ],
            "partitions": [list(group) for group in self.state.partitions],
        }

    def partition(self, *groups: str) -> tuple[tuple[str, ...], ...]:
        """Cut between groups of sites, each written like `b,c`; sites not named are one more.

        Takes the place of a former partition at once.

        Raises:
            BadInput: the groups make no sense.
            NotReady: the cut could not be made; what was in force is.
        """
        with self._changing():
            parts = partition_groups(self.topology.sites, groups)
            faults.apply_partition(self.topology, parts)
            self._save(partitions=parts)
        return parts

    def heal(self) -> None:
        """End the partition. None there is no error."""
        with self._changing():
            faults.apply_partition(self.topology, ())
            self._save(partitions=())

    def kill(self, gateway: str) -> int:
        """kill -9 of a gateway's node; returns the pid that it had.

        Raises:
            NotFound: no such gateway.
            Refused: its node does not run.
        """
        with self._changing():
            self.topology.gateway(gateway)
            process = self.state.processes.get(gateway)
            if process is None or not processes.kill(process):
                raise Refused(f"the node of {gateway} does not run; start it first")
            return process.pid

    def start(self, gateway: str) -> int:
        """Start a gateway's node again, with the configuration and store it had; returns its pid.

        Waits until it answers. One that runs is left alone.

        Raises:
            NotFound: no such gateway.
            NotReady: it did not come up; the end of its log is in the message.
        """
        with self._changing():
            node = self.node(gateway)
            process = self.state.processes.get(gateway)
            if process is None or not processes.alive(process):
                process = self._start(node)
            wait_answer(node, process)
            return process.pid

    def join(self, gateway: str, inviter: str) -> int:
        """Make a node for a gateway that has none yet, and start it; returns its pid.

        Raises:
            NotFound: no such gateway.
            NotReady: it did not come up, or the inviter is not reached.
        """
        with self._changing():
            node = self.node(gateway)
            token = objects.invite(self.node(inviter))
            for joined in join_all([node], lambda: token):
                process = self._start(joined)
            wait_answer(node, process)
            return process.pid

    def pinger(self, pairs: Sequence[tuple[str, str]]) -> Pinger:
        """Echo requests from a pod to a pod or an address, for each pair. Raises NotFound."""
        return Pinger(
            [
                Flow(f"{source} → {target}", self.pod(source).netns, self._address(target))
                for source, target in pairs
            ]
        )

    def ping(
        self,
        source: str,
        target: str,
        *,
        count: int = 3,
        interval_s: float = PING_INTERVAL_S,
        timeout_s: float = PING_TIMEOUT_S,
    ) -> PingResult:
        """Send echo requests from a pod to a pod or an address.

        Raises:
            NotFound: no such pod.
            BadInput: the target is neither a pod nor an address.
        """
        with self.pinger([(source, target)]) as pinger:
            return pinger.run(rounds=count, interval_s=interval_s, timeout_s=timeout_s)[0]

    def _address(self, target: str) -> str:
        if target[:1].isdigit():
            try:
                return str(ipaddress.IPv4Address(target))
            except ValueError:
                raise BadInput(f"{target!r} is no IPv4 address; name a pod or write one") from None
        return self.pod(target).ip

    def transfer(
        self, source: str, target: str, total_bytes: int = TRANSFER_BYTES
    ) -> TransferResult:
        """Bulk TCP between two pods with a checksum. Raises NotFound; OSError: no connection."""
        to = self.pod(target)
        return transfer(self.pod(source).netns, to.netns, to.ip, total_bytes)

    def enter(self, name: str, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """The command line and environment that run `argv` at a pod or gateway. Raises NotFound.

        `weft` is found there even if this one was called by its path.
        """
        environment = dict(os.environ)
        here = str(Path(sys.executable).parent)
        environment["PATH"] = os.pathsep.join((here, environment.get("PATH", os.defpath)))
        with contextlib.suppress(NotFound):
            return netns.enter_command(self.pod(name).netns, argv), environment
        with contextlib.suppress(NotFound):
            node = self.node(name)
            environment |= node.environment
            return netns.enter_command(node.gateway.netns, argv), environment
        raise NotFound(f"lab {self.name} has no pod or gateway {name!r}; see `weft lab status`")

    def run_in(
        self, name: str, argv: Sequence[str], timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command at a pod or gateway and wait for it; its output is captured as text.

        Raises:
            NotFound: no such pod or gateway.
            subprocess.TimeoutExpired: it took longer and was killed.
        """
        command, environment = self.enter(name, argv)
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s
        )

    def add_pod(self, name: str, gateway: str, vpc: str, ip: str) -> Pod:
        """One more pod: its namespace, its link to the gateway, and its endpoint in the mesh.

        Raises:
            BadInput, NotFound: it cannot be in this lab.
            Refused: there is such a pod, or the mesh refuses the endpoint; nothing was added.
        """
        with self._changing():
            pod = plan_pod(self.topology, name=name, gateway=gateway, vpc=vpc, ip=ip)
            self._save(topology=with_pods(self.topology, (*self.topology.pods, pod)))
            try:
                netns.add_pod(self.topology, pod)
                objects.add_endpoint(self.node(gateway), pod)
            except BaseException:
                with undisturbed():
                    netns.remove_namespace(pod.netns)
                    self._save(topology=with_pods(self.topology, self.topology.pods[:-1]))
                raise
        return pod

    # Making it

    def _make(self, progress: Progress, later: Collection[str]) -> None:
        topology = self.topology
        progress(f"{len(topology.gateways)} gateways and {len(topology.pods)} pods: namespaces")
        netns.build(topology)
        first, *others = (
            self.node(gateway.name) for gateway in topology.gateways if gateway.name not in later
        )
        progress(f"{first.name} founds the mesh")
        found(first, mesh_name(self.name))
        wait_answer(first, self._start(first))
        for count, node in enumerate(join_all(others, lambda: objects.invite(first)), start=1):
            self._start(node)
            progress(f"{node.name} has joined ({count} of {len(others)})")
        nodes = [first, *others]
        for node in nodes:
            wait_answer(node, self.state.processes[node.name])
        watch = [(node, self.state.processes[node.name]) for node in nodes]
        progress(f"{len(topology.vpcs)} VPCs, {len(topology.subnets)} subnets in each")
        objects.make_vpcs(topology, watch)
        progress(f"{len(topology.pods)} endpoints")
        for pod in topology.pods:
            objects.add_endpoint(self.node(pod.gateway), pod)
        progress("waiting until every node has everything")
        objects.wait_converged(topology, watch)
        progress("waiting until every pod reaches every other of its VPC")
        objects.wait_reachable(topology, watch)
        self._save(ready=True)
        progress(f"lab {self.name} is up")

    def _start(self, node: Node) -> processes.ProcessId:
        process = node.start()
        self._save(processes={**self.state.processes, node.name: process})
        return process

    # Its state

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        with state.locked(self.name):
            self.state = Lab.open(self.name).state
            yield

    def _save(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        state.save(self.state)


def check_machine() -> None:
    """Raises NotReady with what this machine lacks for a lab."""
    if os.geteuid() != 0:
        raise NotReady("a lab needs root for its network namespaces; run this as root")
    for tool, package in (("nsenter", "util-linux"), ("nft", "nftables")):
        if shutil.which(tool) is None:
            raise NotReady(f"{tool} is not installed; install the package {package}")
    try:
        require_xdp()
    except Unavailable as error:
        raise NotReady(f"a lab needs XDP, and it cannot run here: {error}") from None


def leftovers(name: str) -> list[str]:
    """What this machine still has of a lab, in words; nothing after `down`."""
    namespaces = [f"namespace {namespace}" for namespace in _namespaces(name)]
    directory = str(state.lab_directory(name))
    nodes = [f"process {process.pid}" for process in processes.mentioning(f"{directory}/")]
    pinned = [f"pins {path}" for path in _pins(name)]
    files = [directory] if state.exists(name) else []
    return [*namespaces, *nodes, *pinned, *files]


def _namespaces(name: str) -> list[str]:
    return [namespace for namespace in netns.list_namespaces() if belongs_to(name, namespace)]


def _pins(name: str) -> list[Path]:
    """The directories of pinned maps, programs and links of the lab's nodes, of any version."""
    root = pins.BPFFS / "weft"
    return [path for path in sorted(root.glob("v*/*")) if belongs_to(name, path.name)]


def _remove_all(name: str) -> bool:
    """Everything that a lab of this name has or may have had. Raises NotReady."""
    there = bool(leftovers(name))
    recorded: Mapping[str, processes.ProcessId] = {}
    with contextlib.suppress(NotFound, NotReady):
        recorded = state.load(name).processes
    namespaces = _namespaces(name)
    # The nodes first: their stop is orderly while their links are still there.
    survivors = processes.end(recorded.values())
    survivors += processes.end(processes.in_namespaces(namespaces))
    if survivors:
        pids = ", ".join(str(process.pid) for process in survivors)
        raise NotReady(f"processes {pids} of lab {name} cannot be ended; take it down again later")
    for path in _pins(name):
        pins.remove(path)
    pins.prune()
    netns.remove_namespaces(namespaces)
    state.remove_directory(name)
    return there
