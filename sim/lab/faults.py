"""Partitions: which frames the wide area network of a lab passes on.

A cut is made in the middle, on the bridge, where neither end sees it: no link goes down and nothing
is answered, packets just stop arriving, both ways. XDP redirect at the gateways passes qdiscs and
egress hooks by, but every frame between two sites crosses the bridge's forward hook. One nftables
transaction replaces the former partition by the new one, so there is no moment in between.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from mesh.core.errors import NotReady
from sim.lab.netns import enter_command
from sim.lab.topology import Topology

TABLE: Final = "weft_lab"
NFT_TIMEOUT_S: Final = 10.0


def ruleset(groups: Sequence[Sequence[str]]) -> str:
    """The nft script that lets frames pass inside a group of bridge ports only.

    Args:
        groups: names of bridge ports, each in one group; none: everything passes.
    """
    # A table that is first added and then deleted need not exist before.
    lines = [f"add table bridge {TABLE}", f"delete table bridge {TABLE}"]
    if groups:
        lines.append(f"table bridge {TABLE} {{")
        for number, ports in enumerate(groups):
            elements = ", ".join(f'"{port}"' for port in sorted(ports))
            lines.append(f"  set group{number} {{ type ifname; elements = {{ {elements} }}; }}")
        lines.append("  chain forward {")
        lines.append("    type filter hook forward priority 0; policy accept;")
        for number in range(len(groups)):
            lines.append(f"    iifname @group{number} oifname != @group{number} counter drop")
        lines.append("  }")
        lines.append("}")
    return "\n".join(lines) + "\n"


def apply_partition(topology: Topology, groups: Sequence[Sequence[str]]) -> None:
    """Cut between these groups of sites and between no others; no groups: heal.

    Raises:
        NotReady: nft is missing or refused; the former partition is still in force.
    """
    if shutil.which("nft") is None:
        raise NotReady("nft is not installed; install nftables")
    ports = [
        [gateway.port for gateway in topology.gateways if gateway.site in group] for group in groups
    ]
    done = subprocess.run(
        enter_command(topology.wan_netns, ["nft", "-f", "-"]),
        input=ruleset(ports),
        capture_output=True,
        text=True,
        timeout=NFT_TIMEOUT_S,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise NotReady(f"nft refused the partition in {topology.wan_netns}: {reason}")
