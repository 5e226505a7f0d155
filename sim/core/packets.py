"""Packets through the modelled data planes: where one ends up that leaves a pod."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.core.network import Network
from sim.core.node import Machine

HOPS_MAX = 8
"""No path has more than two gateways; the bound is for a broken table."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod's interface at a machine."""

    name: str
    machine: int
    ifname: str
    vpc: str
    ip: str


@dataclass(frozen=True, slots=True)
class Trace:
    """`arrived`: (machine, ifname) where the packet was delivered, or None; `words`: each step."""

    arrived: tuple[int, str] | None
    words: tuple[str, ...]


def trace(machines: Sequence[Machine], network: Network, pod: Pod, destination: str) -> Trace:
    """Follow a packet from a pod to an address of its VPC. Takes no virtual time."""
    at = pod.machine
    index_of = {machine.identity.node: machine.identity.index for machine in machines}
    verdict = machines[at].dataplane.forward(pod.ifname, pod.ip, destination)
    words = [f"{machines[at].identity.name}: {verdict.words}"]
    for _ in range(HOPS_MAX):
        if verdict.action == "deliver":
            return Trace((at, verdict.ifname), tuple(words))
        if verdict.action == "drop":
            return Trace(None, tuple(words))
        to = index_of[verdict.gateway]
        if not network.passes(at, to):
            return Trace(None, (*words, f"lost on the way to {machines[to].identity.name}"))
        outer, at = machines[at].identity.underlay, to
        verdict = machines[at].dataplane.receive(outer, verdict.vni, pod.ip, destination)
        words.append(f"{machines[at].identity.name}: {verdict.words}")
    return Trace(None, (*words, "goes round"))
