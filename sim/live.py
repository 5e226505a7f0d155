"""A scenario made of the mesh that a node sees: its members, the round trips it has measured, and
how many endpoints each VPC has at each site.

What a node cannot know (links between others, loss, what users will do) is guessed, and every guess
is said in a comment beside it.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from mesh.cli.client import LONG_TIMEOUT_S, Client
from mesh.core.errors import Refused
from sim.core.scenario import (
    ENDPOINTS_IN_ALL_MAX,
    ENDPOINTS_MAX,
    EXTRA,
    GATEWAYS_MAX,
    NODES_MAX,
    STRETCHED,
    VPCS_MAX,
)

LATENCY_MS: Final = 20.0
"""One way, where nothing was measured."""
HOUR_S: Final = 3600.0
RATE_MIN: Final = 0.2
RATE_MAX: Final = 100.0
MANY_NODES: Final = 60
"""Beyond, only some nodes keep views, so that a run stays one of minutes."""
VIEWS: Final = 20

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node answered."""

    status: Json
    members: list[Json]
    vpcs: list[Json]
    subnets: list[Json]
    endpoints: list[Json]
    elsewhere: list[str]
    """VPCs whose endpoints are not kept there"""


def ask(api: Client) -> Seen:
    """Raises RequestError."""
    return Seen(
        api.get("/v1/status"),
        api.get("/v1/members"),
        api.get("/v1/vpcs"),
        api.get("/v1/subnets"),
        api.get("/v1/endpoints", timeout_s=LONG_TIMEOUT_S),
        api.get("/v1/held")["elsewhere"],
    )


def scenario_text(seen: Seen, now: datetime | None = None) -> str:
    """The scenario, as TOML with comments. Raises Refused: the mesh is too large to simulate."""
    active = [member for member in seen.members if member["state"] == "active"]
    gateways = Counter(str(member["site"]) for member in active)
    for site, count in gateways.items():
        if count > GATEWAYS_MAX:
            raise Refused(f"site {site} has {count} gateways: a scenario takes {GATEWAYS_MAX}")
    if len(active) > NODES_MAX:
        raise Refused(f"the mesh has {len(active)} nodes: a scenario takes {NODES_MAX}")
    vpcs = _vpcs(seen, list(gateways))
    lines = [
        *_head(seen, active, now or datetime.now(UTC)),
        *_sites(seen, gateways),
        *_network(seen, active),
        *vpcs,
        *_rest(seen, list(gateways), "[[vpc]]" in vpcs),
    ]
    return "\n".join(lines) + "\n"


def _head(seen: Seen, active: Sequence[Json], now: datetime) -> list[str]:
    status = seen.status
    gone = len(seen.members) - len(active)
    chains = sum(shard["chains"] for shard in status["shards"].values())
    records = sum(shard["records"] for shard in status["shards"].values())
    lines = [
        f"# The mesh {status['mesh']} as node {status['node']} of site {status['site']} saw it on"
        f" {now:%Y-%m-%d %H:%M} UTC.",
        "#",
        "# Measured there: the members, the round trips of that node's links, and the endpoints of",
        f"# each VPC at each site. It holds {len(status['shards'])} shards: {chains} chains,"
        f" {records} records.",
        "# Not known there, and guessed: links between other sites, loss, bandwidth, users.",
        "# `weft sim init FILE` writes an example with a comment on everything.",
    ]
    if gone:
        lines.append(f"# Left out: {gone} members that were retired or forgotten.")
    lines += ["", "duration_s = 300", "quiet_s = 120"]
    if len(active) > MANY_NODES:
        lines += ["# Only so many of the nodes keep a view and rows:", f"views = {VIEWS}"]
    else:
        held = "" if seen.elsewhere else "# "
        lines += [
            "# Nodes keep the VPCs that their sites have to do with:",
            f'{held}interest = "hosted"',
        ]
    return lines


def _sites(seen: Seen, gateways: Mapping[str, int]) -> list[str]:
    lines = ["", "# ---- members ----"]
    for site, count in gateways.items():
        here = "          # this node's" if site == seen.status["site"] else ""
        lines += ["", "[[site]]", f'name = "{site}"{here}', f"gateways = {count}"]
    return lines


def _network(seen: Seen, active: Sequence[Json]) -> list[str]:
    """One way is half of a round trip; of several gateways of a site the median counts."""
    here = str(seen.status["site"])
    sites = {str(member["site"]) for member in active}
    measured: dict[str, list[float]] = {}
    unknown: set[str] = set()
    relayed: set[str] = set()
    for member in active:
        site = str(member["site"])
        if site == here or here not in sites:
            continue
        if member["rtt"] is None:
            unknown.add(site)
        else:
            measured.setdefault(site, []).append(member["rtt"] / 2)
            if member["path"] not in (None, "self", "direct"):
                relayed.add(site)
    unknown -= measured.keys()
    one_way = {site: statistics.median(times) for site, times in measured.items()}
    guess = statistics.median(one_way.values()) if one_way else LATENCY_MS
    why = "the median of those measured" if one_way else "nothing was measured"
    lines = [
        "",
        "# ---- the network ----",
        "",
        "[network]",
        f"# One way, between sites that `link` does not name: a guess, {why}.",
        "# For more links, run from-live at other sites and add theirs.",
        f"latency_ms = {guess:.2f}",
        "# Not known: 0.001 is common, 0.01 is bad.",
        "loss = 0.0",
        "# Not known; default: as fast as one likes.",
        "# bandwidth_mbps = 100",
    ]
    if one_way:
        lines += ["# Measured from here: half of the round trip, ms.", "link = ["]
        for site, ms in one_way.items():
            note = "   # over a relay" if site in relayed else ""
            lines.append(f'  ["{here}", "{site}", {ms:.2f}],{note}')
        lines.append("]")
    if unknown:
        lines.append(f"# Not linked to this node, so not measured: {', '.join(sorted(unknown))}.")
    return lines


def _vpcs(seen: Seen, sites: Sequence[str]) -> list[str]:
    counts: dict[str, Counter[str]] = {}
    known = set(sites)
    for endpoint in seen.endpoints:
        if endpoint["site"] in known:
            counts.setdefault(str(endpoint["vpc"]), Counter())[str(endpoint["site"])] += 1
    in_all = sum(sum(count.values()) for count in counts.values())
    scale = min(1.0, ENDPOINTS_IN_ALL_MAX / in_all) if in_all else 1.0
    lines = ["", "# ---- VPCs, and how many endpoints each has at which sites ----"]
    if scale < 1:
        lines.append(f"# {in_all} are more than a run takes: numbers are {scale:.3f} of these.")
    names = _names(seen)
    if len(names) > VPCS_MAX:
        lines.append(f"# Left out: {len(names) - VPCS_MAX} more VPCs.")
    for text, name in list(names.items())[:VPCS_MAX]:
        if text in seen.elsewhere:
            lines.append(f"# VPC {text}: its endpoints are not kept at this node, so not counted.")
            continue
        lines += _vpc(seen, text, name, counts.get(text, Counter()), scale, sites)
    return lines


def _names(seen: Seen) -> dict[str, str]:
    """VPC as endpoints name it (by id, where several have one name) -> its name in a scenario."""
    named = Counter(str(vpc["name"]) for vpc in seen.vpcs)
    texts = [vpc["name"] if named[vpc["name"]] == 1 else vpc["id"] for vpc in seen.vpcs]
    return {text: f"vpc-{text}"[:63] if text.startswith(EXTRA) else text for text in texts}


def _vpc(
    seen: Seen, text: str, name: str, count: Counter[str], scale: float, sites: Sequence[str]
) -> list[str]:
    if not count:
        own = (subnet["sites"] for subnet in seen.subnets if subnet["vpc"] == text)
        there = [site for of_subnet in own for site in of_subnet if site in sites]
        count = Counter(dict.fromkeys(there or sites[:1], 0))
    most = dict(count.most_common(STRETCHED - 1))
    numbers = {site: min(ENDPOINTS_MAX, round(n * scale)) for site, n in most.items()}
    lines = ["", "[[vpc]]", f'name = "{name}"', f"endpoints = {{ {_pairs(numbers)} }}"]
    capped = {site: n for site, n in most.items() if numbers[site] == ENDPOINTS_MAX < n}
    if capped:
        lines.append(f"# There are {_pairs(capped)}; a run takes {ENDPOINTS_MAX} at a site.")
    if len(most) < len(count):
        lines.append(f"# And at {len(count) - len(most)} more sites: a run takes {STRETCHED - 1}.")
    return lines


def _pairs(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{site} = {n}" for site, n in numbers.items())


def _rest(seen: Seen, sites: Sequence[str], laid_out: bool) -> list[str]:
    recent = sum(endpoint["age_s"] < HOUR_S for endpoint in seen.endpoints)
    rate = min(max(recent / HOUR_S, RATE_MIN), RATE_MAX)
    lines = [
        "",
        "# ---- what users do ----",
        "",
        "[workload]",
        f"# Requests a second in the whole mesh: {recent} claims were made in the last hour;",
        "# what else users do is not known.",
        f"rate_per_s = {rate:.2f}",
        "# A guess: the fewer, the more requests meet.",
        "addresses = 50",
        "# A guess, how often each is asked for.",
        "mix = { create = 4, delete = 3, recreate = 1, move = 1 }",
    ]
    if not laid_out:
        lines += ["# No VPC of which the endpoints are known: made up.", "vpcs = 1"]
    here = seen.status["site"]
    if len(sites) > 1 and here in sites:
        lines += [
            "",
            "# ---- what happens: this site is cut off for a minute; or what else you fear ----",
            "",
            "[[event]]",
            "at_s = 60",
            f'cut = [["{here}"]]',
            "for_s = 60",
        ]
    return lines
