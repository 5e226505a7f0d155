"""endpoint: pods and VMs, each claimed by the gateway that has it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mesh.cli.app import Group
from mesh.cli.client import Client, segments
from mesh.cli.options import ADDRESS, NAME, asks, vpc_option
from mesh.cli.output import Output

COLUMNS: Final = (
    "vpc", "ip", "mac", "name", "site", "node", "host", "mobility", "dot", "age_s", "state",
)  # fmt: skip

Command = TypeVar("Command", bound=Callable[..., Any])


def _described(command: Command) -> Command:
    """The options that say what an endpoint is."""
    for option in (
        click.option("--attach", metavar="IFNAME", help="Interface here that leads to it."),
        click.option("--host", type=ADDRESS, help="Machine behind this gateway that has it."),
        click.option("--name", type=NAME, help="A name for people."),
        click.option("--mac", help="[default: derived from VPC and IP]"),
    ):
        command = option(command)
    return command


@click.group("endpoint", cls=Group)
def endpoint() -> None:
    """Add, show, move and remove endpoints."""


@endpoint.command("add")
@vpc_option
@click.option("--ip", required=True, type=ADDRESS)
@_described
@asks
def add(api: Client, out: Output, **fields: Any) -> None:
    """Claim an endpoint for this gateway."""
    out.record(api.post("/v1/endpoints", fields))


@endpoint.command("ls")
@click.option("--vpc", type=NAME, help="Only this VPC's.")
@click.option("--site", type=NAME, help="Only those at this site.")
@asks
def ls(api: Client, out: Output, vpc: str | None, site: str | None) -> None:
    """List endpoints; claims that lost a conflict or are outranked, too."""
    out.rows(api.get("/v1/endpoints", {"vpc": vpc, "site": site}), COLUMNS)
    elsewhere = api.get("/v1/held")["elsewhere"]
    if vpc is not None:
        elsewhere = {api.get(segments("vpcs", vpc))["name"], vpc} & set(elsewhere)
    if elsewhere:
        names = ", ".join(sorted(elsewhere))
        click.echo(f"weft: VPCs not held at this node, and not listed: {names}", err=True)


@endpoint.command("get")
@click.argument("ip", type=ADDRESS)
@vpc_option
@asks
def get(api: Client, out: Output, ip: str, vpc: str) -> None:
    """Show the endpoint that has an address."""
    out.record(api.get(segments("vpcs", vpc, "endpoints", ip)))


@endpoint.command("rm")
@click.argument("ip", type=ADDRESS)
@vpc_option
@asks
def rm(api: Client, out: Output, ip: str, vpc: str) -> None:
    """Remove an endpoint; one of another site needs the authority of the VPC's owner."""
    out.record(api.delete(segments("vpcs", vpc, "endpoints", ip)))


@endpoint.command("move")
@click.argument("ip", type=ADDRESS)
@vpc_option
@_described
@asks
def move(api: Client, out: Output, ip: str, vpc: str, **fields: Any) -> None:
    """Claim here an endpoint that lives at another site."""
    out.record(api.post(segments("vpcs", vpc, "endpoints", ip, "move"), fields))


@endpoint.command("import")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True))
@click.option("--partial", is_flag=True, help="Take the good lines.")
@asks
def import_(api: Client, out: Output, file: Path, partial: bool) -> None:
    """Claim many endpoints: JSON lines, each with vpc, ip and what `add` takes. `-`: stdin.

    Nothing is written unless all lines are good.
    """
    from mesh.cli.importing import import_file

    import_file(api, out, file, partial=partial)
