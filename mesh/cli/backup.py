"""snapshot, restore: a node in one file."""

from __future__ import annotations

from pathlib import Path

import click

from mesh.cli.client import LONG_TIMEOUT_S, Client
from mesh.cli.options import asks, prints
from mesh.cli.output import Output


@click.command("snapshot")
@click.argument("file", type=click.Path(path_type=Path))
@asks
def snapshot(api: Client, out: Output, file: Path) -> None:
    """Save this node in FILE: store, weft.toml and key. Keep it as safe as the key.

    The node goes on meanwhile. Local writes wait for about a second a million records.
    """
    body = {"file": str(file.absolute())}
    out.record(api.post("/v1/snapshot", body, timeout_s=LONG_TIMEOUT_S))


@click.command("restore")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--dir", "directory", required=True, type=click.Path(path_type=Path),
    help="Directory to make the node in.",
)  # fmt: skip
@prints
def restore(out: Output, file: Path, directory: Path) -> None:
    """Make the node that was saved in FILE again, to be run in place of the lost one.

    What it wrote after the snapshot comes back from the nodes that have it. The original must not
    run any more.
    """
    from mesh.node.backup import restore as restore_node

    made = restore_node(file, directory)
    out.record({"node": made.node_name, "site": made.site, "config": str(made.config)})
