"""status, members: how the node and its mesh are doing."""

from __future__ import annotations

import math
import time
from typing import Any, Final

import click

from mesh.cli.app import ExitNo
from mesh.cli.client import Client
from mesh.cli.options import asks
from mesh.cli.output import Output
from mesh.core.errors import BadInput, NotReady

_POLL_INTERVAL_S: Final = 0.1
_WAIT_MAX_S: Final = 86_400

MEMBER_COLUMNS: Final = ("node", "site", "state", "rtt", "path", "version", "last_sync", "clock")


@click.command("status")
@click.option(
    "--wait", "wait_s", type=click.FloatRange(0, _WAIT_MAX_S), metavar="SECONDS",
    help="Wait until the node is ready and has no problem.",
)  # fmt: skip
@asks
def status(api: Client, out: Output, wait_s: float | None) -> None:
    """Show whether the node is ready, and what is wrong.

    Exit 0 when it is ready and has no problem, 1 otherwise.
    """
    if wait_s is not None and not math.isfinite(wait_s):
        raise BadInput(f"--wait: {wait_s}: give a number of seconds")
    answer = _healthy_status(api, wait_s or 0)
    if out.json:
        out.document(answer)
    else:
        _show(out, answer)
    if not _healthy(answer):
        raise ExitNo


def _healthy_status(api: Client, wait_s: float) -> dict[str, Any]:
    """The status when it is healthy, else the last one before the time is over."""
    deadline_s = time.monotonic() + wait_s
    while True:
        over = time.monotonic() >= deadline_s
        try:
            answer: dict[str, Any] = api.get("/v1/status")
            if over or _healthy(answer):
                return answer
        except NotReady:
            if over:
                raise
        time.sleep(min(_POLL_INTERVAL_S, max(0.0, deadline_s - time.monotonic())))


def _healthy(answer: dict[str, Any]) -> bool:
    return bool(answer["ready"]) and not answer["problems"]


def _show(out: Output, answer: dict[str, Any]) -> None:
    peers, dataplane = answer["peers"], answer["dataplane"]
    out.record(
        {
            "mesh": answer["mesh"],
            "site": answer["site"],
            "node": answer["node"],
            "version": answer["version"],
            "ready": answer["ready"],
            "peers": f"{peers['connected']} of {peers['known']} connected",
            "digest": answer["digest"],
            "oldest_sync_s": answer["oldest_sync_s"],
            "dataplane": f"{dataplane['mode']} ({dataplane['reason']})",
            "endpoints": dataplane["endpoints"],
            "subnets": dataplane["subnets"],
            "map": f"{dataplane['map_used']} of {dataplane['map_max']}",
            "synced": dataplane["synced"],
            "conflicts": answer["conflicts"],
        }
    )
    click.echo()
    shards = [{"shard": name, **shard} for name, shard in answer["shards"].items()]
    out.table(shards, ("shard", "chains", "records", "unknown", "digest"))
    if answer["problems"]:
        click.echo()
        out.table(answer["problems"], ("what", "fix"))


@click.command("members")
@asks
def members(api: Client, out: Output) -> None:
    """List the nodes of the mesh, and this node's link to each.

    RTT is in ms, LAST-SYNC in s ago, also after the link has ended. CLOCK is how far the node's
    clock is ahead of this one's: a clock that is years off changes nothing but ties.
    """
    out.rows(api.get("/v1/members"), MEMBER_COLUMNS)
