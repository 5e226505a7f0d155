"""subnet: CIDRs inside a VPC, at home at one site or stretched over several."""

from __future__ import annotations

from typing import Final

import click

from mesh.cli.app import Group
from mesh.cli.client import Client, segments
from mesh.cli.options import NAME, asks, vpc_option
from mesh.cli.output import Output

COLUMNS: Final = ("name", "vpc", "id", "cidr", "sites", "restrict", "gateway", "state")


@click.group("subnet", cls=Group)
def subnet() -> None:
    """Add, show and remove subnets of VPCs."""


@subnet.command("add")
@click.argument("name", type=NAME)
@vpc_option
@click.option("--cidr", required=True, help="Within a CIDR of the VPC.")
@click.option(
    "--site", "sites", multiple=True, type=NAME, help="Home; several: stretched. [default: this]"
)
@click.option("--restrict", is_flag=True, help="Only these sites may have endpoints in it.")
@asks
def add(
    api: Client,
    out: Output,
    name: str,
    vpc: str,
    cidr: str,
    sites: tuple[str, ...],
    restrict: bool,
) -> None:
    """Add a subnet to a VPC."""
    body = {"name": name, "vpc": vpc, "cidr": cidr, "sites": list(sites), "restrict": restrict}
    out.record(api.post("/v1/subnets", body))


@subnet.command("ls")
@click.option("--vpc", type=NAME, help="Only this VPC's.")
@asks
def ls(api: Client, out: Output, vpc: str | None) -> None:
    """List subnets."""
    out.rows(api.get("/v1/subnets", {"vpc": vpc}), COLUMNS)


@subnet.command("get")
@click.argument("subnet", type=NAME)
@vpc_option
@asks
def get(api: Client, out: Output, subnet: str, vpc: str) -> None:
    """Show a subnet of a VPC."""
    out.record(api.get(segments("vpcs", vpc, "subnets", subnet)))


@subnet.command("rm")
@click.argument("subnet", type=NAME)
@vpc_option
@asks
def rm(api: Client, out: Output, subnet: str, vpc: str) -> None:
    """Remove a subnet of a VPC for good."""
    out.record(api.delete(segments("vpcs", vpc, "subnets", subnet)))
