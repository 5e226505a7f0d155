"""peering: two VPCs may talk, when both sides say so."""

from __future__ import annotations

from typing import Final

import click

from mesh.cli.app import Group
from mesh.cli.client import Client, segments
from mesh.cli.options import NAME, asks
from mesh.cli.output import Output

COLUMNS: Final = ("a", "b", "state")


@click.group("peering", cls=Group)
def peering() -> None:
    """Let two VPCs talk to each other."""


@peering.command("add")
@click.argument("vpc_a", type=NAME, metavar="VPC-A")
@click.argument("vpc_b", type=NAME, metavar="VPC-B")
@asks
def add(api: Client, out: Output, vpc_a: str, vpc_b: str) -> None:
    """Say for VPC-A that VPC-B may talk to it; active once VPC-B's side says the same."""
    out.record(api.post("/v1/peerings", {"a": vpc_a, "b": vpc_b}))


@peering.command("ls")
@asks
def ls(api: Client, out: Output) -> None:
    """List peerings, half ones too."""
    out.rows(api.get("/v1/peerings"), COLUMNS)


@peering.command("rm")
@click.argument("vpc_a", type=NAME, metavar="VPC-A")
@click.argument("vpc_b", type=NAME, metavar="VPC-B")
@asks
def rm(api: Client, out: Output, vpc_a: str, vpc_b: str) -> None:
    """Take VPC-A's half back: the two no longer talk."""
    out.record(api.delete(segments("peerings", vpc_a, vpc_b)))
