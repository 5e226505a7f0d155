"""watch: changes of the view as they happen."""

from __future__ import annotations

import json

import click

from mesh.cli.client import LONG_TIMEOUT_S, Client, segments
from mesh.cli.options import NAME, asks
from mesh.cli.output import Output


@click.command("watch")
@click.option("--shard", type=NAME, help="Only this: mesh, or a VPC's endpoints.")
@asks
def watch(api: Client, out: Output, shard: str | None) -> None:
    """Print changes of the view as they happen, one JSON document a line, until interrupted.

    Each is {"key", "value"} with the value as it is now, null when it is gone: what changed twice
    between two looks is shown once. Keys are written as `weft state dump --records` writes them.
    """
    del out  # always JSON lines
    begun = api.post("/v1/watches", {"shard": shard})
    try:
        while True:
            path = segments("watches", begun["watch"])
            for row in api.get(path, timeout_s=LONG_TIMEOUT_S):
                click.echo(json.dumps(row))
    finally:
        api.delete(segments("watches", begun["watch"]))
