"""dataplane: what forwards packets, as compiled and as installed."""

from __future__ import annotations

import json
from typing import Any

import click

from mesh.cli.app import ExitNo, Group
from mesh.cli.client import LONG_TIMEOUT_S, Client, segments
from mesh.cli.options import asks
from mesh.cli.output import Output

_DROP_COLUMNS = ("reason", "vpc", "src", "dst", "peer", "interface", "count", "at")


@click.group("dataplane", cls=Group)
def dataplane() -> None:
    """Show, count and audit what forwards packets."""


@dataplane.command("show")
@asks
def show(api: Client, out: Output) -> None:
    """Show every installed row, table by table."""
    answer: dict[str, Any] = api.get("/v1/dataplane", timeout_s=LONG_TIMEOUT_S)
    if out.json:
        out.document(answer)
        return
    out.record({"mode": answer["mode"], "reason": answer["reason"]})
    for name, rows in answer["tables"].items():
        usage = answer["usage"].get(name)
        click.echo(f"\n{name}" + (f" ({usage['used']} of {usage['max']})" if usage else ""))
        if rows:
            out.table(rows, tuple(rows[0]))


@dataplane.command("stats")
@asks
def stats(api: Client, out: Output) -> None:
    """Show counters: drops by reason; packets by VPC, peer site, port and gateway."""
    answer: dict[str, Any] = api.get("/v1/dataplane/stats")
    if out.json:
        out.document(answer)
        return
    drops = [{"reason": reason, "packets": count} for reason, count in answer["drops"].items()]
    out.table(drops, ("reason", "packets"))
    kinds = {"vpcs": "vpc", "sites": "site", "ports": "port", "gateways": "gateway"}
    for name, key in kinds.items():
        rows = [{key: label, **counts} for label, counts in answer[name].items()]
        if rows:
            click.echo()
            out.table(rows, tuple(rows[0]))


@dataplane.command("drops")
@click.option(
    "--follow", is_flag=True, help="Print drops as they happen, one JSON document a line."
)
@asks
def drops(api: Client, out: Output, follow: bool) -> None:
    """Show dropped packets: why, whose, from where to where, how many and when the last was.

    A sample: of each reason some are looked at, which stand for those between them in COUNT. What
    there is of each reason in all, and of each VPC and site, is in `weft dataplane stats`.
    """
    answer: dict[str, Any] = api.get("/v1/dataplane/drops")
    if not follow:
        out.rows(answer["drops"], _DROP_COLUMNS)
        return
    while True:
        path = segments("dataplane", "drops", str(answer["next"]))
        answer = api.get(path, timeout_s=LONG_TIMEOUT_S)
        if answer["missed"]:
            click.echo(f"{answer['missed']} drops were not shown", err=True)
        for row in answer["drops"]:
            click.echo(json.dumps(row))


@dataplane.command("audit")
@click.option(
    "--repair", is_flag=True, help="Write what is missing or wrong, remove what is stale."
)
@asks
def audit(api: Client, out: Output, repair: bool) -> None:
    """Compare the compiled rows with the installed ones; exit 1 if any differ."""
    answer: dict[str, Any] = api.post(
        "/v1/dataplane/audit", {"repair": repair}, timeout_s=LONG_TIMEOUT_S
    )
    if out.json:
        out.document(answer)
    else:
        rows = [
            {"difference": kind, "row": row}
            for kind in ("missing", "stale", "wrong")
            for row in answer[kind]
        ]
        out.table(rows, ("difference", "row"))
        left_out = sum(answer["counts"].values()) - len(rows)
        if left_out:
            click.echo(f"and {left_out} more", err=True)
    if not answer["clean"]:
        raise ExitNo
