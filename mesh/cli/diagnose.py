"""diagnose: what is right and wrong with a node and its machine, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from mesh.cli.app import ExitNo
from mesh.cli.client import LONG_TIMEOUT_S, Client, NoNode
from mesh.cli.options import asks
from mesh.cli.output import Output

COLUMNS: Final = ("ok", "check", "what", "fix")
_MARKS: Final = {True: "✓", False: "✗", None: "-"}


@click.command("diagnose")
@click.option(
    "--config", type=click.Path(path_type=Path),
    help="The node's weft.toml, for when the node does not run.",
)  # fmt: skip
@asks
def diagnose(api: Client, out: Output, config: Path | None) -> None:
    """Check what the node needs, and say what to do where something is wrong (✗: exit 1).

    Works with the node running, and without it for what can be said then.
    """
    try:
        answer: dict[str, Any] = api.get("/v1/diagnose", timeout_s=LONG_TIMEOUT_S)
    except NoNode:
        from mesh.node.diagnosis import without_node

        answer = without_node(config)
        click.echo(
            f"{api.socket_path}: no node answers there: only the machine is looked at", err=True
        )
    if out.json:
        out.document(answer)
    else:
        rows = [
            {"ok": _MARKS[c["ok"]], "check": c["name"], "what": c["what"], "fix": c["fix"]}
            for c in answer["checks"]
        ]
        out.table(rows, COLUMNS)
    if not answer["ok"]:
        raise ExitNo
