"""conflicts: what two writers did without knowing of each other."""

from __future__ import annotations

from typing import Final

import click

from mesh.cli.app import Group
from mesh.cli.client import Client
from mesh.cli.options import NAME, asks
from mesh.cli.output import Output

COLUMNS: Final = ("key", "claimants", "winner", "rule", "since")


@click.group("conflicts", cls=Group)
def conflicts() -> None:
    """List and resolve conflicting claims."""


@conflicts.command("ls")
@asks
def ls(api: Client, out: Output) -> None:
    """List conflicts, and who wins each by which rule."""
    out.rows(api.get("/v1/conflicts"), COLUMNS)


@conflicts.command("resolve")
@click.argument("key")
@click.option("--keep", required=True, type=NAME, metavar="NODE", help="Name or id of a node.")
@asks
def resolve(api: Client, out: Output, key: str, keep: str) -> None:
    """Keep one node's claim to KEY and evict the others."""
    out.record(api.post("/v1/conflicts/resolve", {"key": key, "keep": keep}))
