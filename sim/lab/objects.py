"""What a lab puts into its mesh, by the API of its nodes, and when it counts as there.

VPCs and subnets are written at the first node, every endpoint at the gateway that it is attached
to: the node that claims an address is the one that sees the pod.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from mesh.core.errors import NotReady
from sim.lab.nodes import Node, wait_until
from sim.lab.probes import Flow, Pinger
from sim.lab.processes import ProcessId
from sim.lab.topology import VPC_CIDR, Pod, Topology

INVITATION_S: Final = 900
CONVERGE_TIMEOUT_S: Final = 60.0
REACH_TIMEOUT_S: Final = 60.0
REACH_ROUND_S: Final = 0.5
REACH_FLOWS: Final = 2000  # at a time: more would overrun the queues of the links
SHOWN_FLOWS: Final = 5

Watch = Sequence[tuple[Node, ProcessId]]


def invite(node: Node) -> str:
    """A token with which one more node may join."""
    return str(node.api.post("/v1/invitations", {"ttl_s": INVITATION_S})["token"])


def make_vpcs(topology: Topology, watch: Watch) -> None:
    """Write the VPCs and subnets at the first node and wait until every node has them."""
    first, _ = watch[0]
    for vpc in topology.vpcs:
        body = {"name": vpc.name, "vni": vpc.vni, "cidrs": [VPC_CIDR], "tenant": vpc.tenant}
        first.api.post("/v1/vpcs", body)
        for subnet in topology.subnets:
            body = {"name": subnet.name, "vpc": vpc.name, "cidr": subnet.cidr}
            first.api.post("/v1/subnets", body | {"sites": list(subnet.sites)})
    wanted = len(topology.vpcs), len(topology.vpcs) * len(topology.subnets)

    def known() -> bool:
        for node, _ in watch:
            vpcs, subnets = (len(node.api.get(f"/v1/{kind}")) for kind in ("vpcs", "subnets"))
            if (vpcs, subnets) != wanted:
                raise NotReady(f"{node.name} has {vpcs} VPCs and {subnets} subnets")
        return True

    wait_until("every node knows the VPCs and subnets", known, CONVERGE_TIMEOUT_S, watch)


def add_endpoint(node: Node, pod: Pod) -> None:
    """Claim a pod's address at its gateway, and attach its interface. Raises RequestError."""
    body = {"vpc": pod.vpc, "ip": pod.ip, "mac": pod.mac, "name": pod.name, "attach": pod.ifname}
    node.api.post("/v1/endpoints", body)


def digests(node: Node) -> dict[str, str]:
    """The digest of every shard that a node holds."""
    shards: dict[str, Any] = node.api.get("/v1/status")["shards"]
    return {shard: entry["digest"] for shard, entry in sorted(shards.items())}


def wait_converged(topology: Topology, watch: Watch) -> None:
    """Wait until all nodes are ready, hold the same, and have it in their data planes."""

    def converged() -> bool:
        held: dict[str, str] = {}
        for node, _ in watch:
            answer = node.api.get("/v1/status")
            dataplane = answer["dataplane"]
            if not (answer["ready"] and dataplane["synced"]):
                raise NotReady(f"{node.name} is not ready: {answer['problems']}")
            if dataplane["endpoints"] != len(topology.pods):
                raise NotReady(f"{node.name} has {dataplane['endpoints']} endpoints")
            held[answer["digest"]] = node.name
        if len(held) > 1:
            raise NotReady(f"{' and '.join(held.values())} differ")
        return True

    wait_until("all nodes are ready and agree", converged, CONVERGE_TIMEOUT_S, watch)


def same_vpc_flows(topology: Topology) -> list[Flow]:
    """From every pod to every other of its VPC."""
    return [
        Flow(f"{source.name} → {target.name}", source.netns, target.ip)
        for source in topology.pods
        for target in topology.pods
        if source.vpc == target.vpc and source.name != target.name
    ]


def wait_reachable(topology: Topology, watch: Watch) -> None:
    """Wait until every pod gets an answer of every other pod of its VPC. Raises NotReady."""
    missing = same_vpc_flows(topology)

    def all_answer() -> bool:
        nonlocal missing
        silent: list[Flow] = []
        for first in range(0, len(missing), REACH_FLOWS):
            flows = missing[first : first + REACH_FLOWS]
            with Pinger(flows) as pinger:
                results = pinger.run(rounds=1, interval_s=0.0, timeout_s=REACH_ROUND_S)
            silent += [f for f, result in zip(flows, results, strict=True) if not result.received]
        missing = silent
        if missing:
            shown = ", ".join(flow.name for flow in missing[:SHOWN_FLOWS])
            raise NotReady(f"{len(missing)} do not, such as {shown}")
        return True

    wait_until("every pod reaches every other of its VPC", all_answer, REACH_TIMEOUT_S, watch)
