"""route: where traffic for an address goes, and why."""

from __future__ import annotations

from typing import Any

import click

from mesh.cli.app import Group
from mesh.cli.client import Client
from mesh.cli.options import ADDRESS, asks, vpc_option
from mesh.cli.output import Output


@click.group("route", cls=Group)
def route() -> None:
    """Explain where traffic for an address goes, and why."""


@route.command("explain")
@click.argument("ip", type=ADDRESS)
@vpc_option
@asks
def explain(api: Client, out: Output, ip: str, vpc: str) -> None:
    """Show claims, winner and rule, subnet, gateways and the installed row for an address."""
    answer: dict[str, Any] = api.get("/v1/route", {"vpc": vpc, "ip": ip})
    if out.json:
        out.document(answer)
        return
    subnet, group, row = answer["subnet"], answer["next_hop"], answer["row"]
    out.record(
        {
            "vpc": f"{answer['vpc']} (VNI {answer['vni']})",
            "ip": answer["ip"],
            "subnet": f"{subnet['name']} {subnet['cidr']}" if subnet else None,
            "next_hop": group["name"] if group else None,
            "row": row,
            "verdict": answer["verdict"],
        }
    )
    columns = ("node", "site", "host", "mobility", "state", "rule", "dot")
    for title, rows, shown in (
        ("claims", answer["claims"], columns),
        ("gateways", group["gateways"] if group else [], ("node", "site", "underlay", "up")),
    ):
        if rows:
            click.echo(f"\n{title}")
            out.table(rows, shown)
