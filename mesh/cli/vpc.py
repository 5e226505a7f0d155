"""vpc: tenants' isolated networks."""

from __future__ import annotations

from typing import Final

import click

from mesh.cli.app import Group
from mesh.cli.client import Client, segments
from mesh.cli.options import NAME, asks
from mesh.cli.output import Output
from mesh.core.errors import BadInput

COLUMNS: Final = ("name", "id", "vni", "cidrs", "tenant", "by", "state")


@click.group("vpc", cls=Group)
def vpc() -> None:
    """Add, show, change and remove VPCs."""


@vpc.command("add")
@click.argument("name", type=NAME)
@click.option("--vni", required=True, type=int, help="1 to 16777215, mesh-wide.")
@click.option("--cidr", "cidrs", required=True, multiple=True, help="May be given several times.")
@click.option("--tenant", type=NAME, help="Whose it is.")
@asks
def add(
    api: Client, out: Output, name: str, vni: int, cidrs: tuple[str, ...], tenant: str | None
) -> None:
    """Add a VPC."""
    body = {"name": name, "vni": vni, "cidrs": list(cidrs), "tenant": tenant}
    out.record(api.post("/v1/vpcs", body))


@vpc.command("ls")
@asks
def ls(api: Client, out: Output) -> None:
    """List all VPCs."""
    out.rows(api.get("/v1/vpcs"), COLUMNS)


@vpc.command("get")
@click.argument("vpc", type=NAME)
@asks
def get(api: Client, out: Output, vpc: str) -> None:
    """Show the VPC of that name or id."""
    out.record(api.get(segments("vpcs", vpc)))


@vpc.command("set")
@click.argument("vpc", type=NAME)
@click.option("--name", type=NAME, help="A new name.")
@click.option("--vni", type=int, help="Another VNI.")
@click.option("--cidr", "cidrs", multiple=True, help="All CIDRs anew.")
@click.option("--tenant", type=NAME, help="Whose it is.")
@asks
def set_(
    api: Client,
    out: Output,
    vpc: str,
    name: str | None,
    vni: int | None,
    cidrs: tuple[str, ...],
    tenant: str | None,
) -> None:
    """Change what is given of a VPC."""
    body = {"name": name, "vni": vni, "cidrs": list(cidrs) or None, "tenant": tenant}
    if not any(value is not None for value in body.values()):
        raise BadInput("nothing to change: give --name, --vni, --cidr or --tenant")
    out.record(api.patch(segments("vpcs", vpc), body))


@vpc.command("rm")
@click.argument("vpc", type=NAME)
@click.option("--force", is_flag=True, help="Also when it has endpoints.")
@asks
def rm(api: Client, out: Output, vpc: str, force: bool) -> None:
    """Remove a VPC for good."""
    out.record(api.delete(segments("vpcs", vpc), {"force": "true" if force else None}))
