"""The links of a lab that plays a scenario: as the scenario has them, with what is wrong now.

The frames go through a process of `sim.lab.wan` in place of the bridge.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import IPRoute

from mesh.core.errors import NotReady
from sim.core.cast import identities_of, latencies_of
from sim.core.clock import MS_NS
from sim.core.scenario import Scenario
from sim.lab import netns
from sim.lab.script import Script
from sim.lab.topology import Topology

END_S: Final = 5.0
SLOW_DELAY_MS_MAX: Final = 30_000.0
"""Slower is nothing that TCP bears."""


@dataclass(frozen=True, slots=True)
class LinkFault:
    """Of all links from one site to another: `pairs` has both orders where both are meant."""

    words: str
    pairs: frozenset[tuple[str, str]]
    factor: float | None
    """how many times as long everything takes; None: nothing arrives"""


class Wan:
    """The process between the ports. Not for several threads at a time."""

    def __init__(self, topology: Topology) -> None:
        """Take the ports off the bridge and put the process in between. Raises NotReady."""
        self._topology = topology
        netns.in_namespace(topology.wan_netns, self._off_bridge)
        ports = [f"{gateway.port}={gateway.mac}" for gateway in topology.gateways]
        command = [sys.executable, "-m", "sim.lab.wan", *ports]
        self._process = subprocess.Popen(
            netns.enter_command(topology.wan_netns, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._lock = threading.Lock()
        try:
            self._answer()
        except BaseException:
            self.end()
            raise

    def _off_bridge(self) -> None:
        with IPRoute() as netlink:
            for gateway in self._topology.gateways:
                (index,) = netlink.link_lookup(ifname=gateway.port)
                netlink.link("set", index=index, master=0)

    def set(self, links: list[dict[str, object]]) -> dict[str, int]:
        """How links are from now on; returns what each gateway has sent until now, in bytes."""
        return self._ask({"links": links})

    def sent_bytes(self) -> dict[str, int]:
        return self._ask({})

    def end(self) -> None:
        """Nothing is carried any more."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, what: Mapping[str, object]) -> dict[str, int]:
        with self._lock:
            try:
                assert self._process.stdin is not None
                self._process.stdin.write(json.dumps(what) + "\n")
                self._process.stdin.flush()
            except (BrokenPipeError, ValueError):
                raise self._gone() from None
            by_port = self._answer()
        return {g.name: by_port[g.port] for g in self._topology.gateways}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _gone(self) -> NotReady:
        return NotReady("the process that carries the lab's frames has ended: see what it said")


class Weather:
    """What is wrong with the links, and the process told of it."""

    def __init__(self, script: Script, topology: Topology, wan: Wan) -> None:
        self._wan = wan
        self._scenario = script.scenario
        self._faults: list[LinkFault] = []
        self._base = _base_links(script.scenario, script.gateways)
        self._site_of = _sites_of(script.scenario)
        self._gateways = script.gateways
        self._ports = {gateway.name: gateway.port for gateway in topology.gateways}
        self._tell()

    @property
    def whole(self) -> bool:
        """Whether nothing is cut; as in the simulator, slow links are whole."""
        return all(fault.factor is not None for fault in self._faults)

    def begin(self, fault: LinkFault) -> None:
        self._faults.append(fault)
        self._tell()

    def end(self, fault: LinkFault) -> None:
        """Once; one that has ended already is no error."""
        if fault in self._faults:
            self._faults.remove(fault)
            self._tell()

    def heal(self) -> None:
        """End all."""
        self._faults.clear()
        self._tell()

    def _tell(self) -> None:
        weather = self._scenario.weather
        links: list[dict[str, object]] = []
        for (a, b), latency_ns in self._base.items():
            delay_ms, cut = latency_ns / MS_NS, False
            for fault in self._faults:
                if (self._site_of[a], self._site_of[b]) in fault.pairs:
                    cut = cut or fault.factor is None
                    delay_ms *= fault.factor or 1.0
            links.append(
                {
                    "from": self._ports[self._gateways[a]],
                    "to": self._ports[self._gateways[b]],
                    "delay_ms": min(delay_ms, SLOW_DELAY_MS_MAX),
                    "jitter_ms": weather.jitter_ns / MS_NS,
                    "loss": weather.loss,
                    "bits_per_s": weather.bits_per_s,
                    "cut": cut,
                }
            )
        self._wan.set(links)


def _sites_of(scenario: Scenario) -> dict[str, str]:
    """name of a node -> its site"""
    named = {name: name.rpartition("-")[0] for name in scenario.node_names}
    return {**named, **dict(scenario.joining)}


def _base_links(scenario: Scenario, gateways: Iterable[str]) -> dict[tuple[str, str], int]:
    """(node, node) -> latency one way in ns, as in the simulator."""
    identities = identities_of(scenario)
    index = {identity.name: identity.index for identity in identities}
    latency_ns = latencies_of(scenario, identities)
    names = list(gateways)
    return {(a, b): latency_ns(index[a], index[b]) for a in names for b in names if a != b}
