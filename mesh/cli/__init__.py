"""The `weft` command.

`app.py` names every command and loads its module when it is used; `client.py` asks the node;
`output.py` prints. One module per group of commands. Nothing that `weft status` imports takes long:
libp2p, trio, starlette and nacl are for the commands that run or found a node.
"""

from __future__ import annotations


def main() -> None:
    """The entry point: runs the command and ends the process with its exit code."""
    import sys

    from mesh.cli.app import run

    sys.exit(run(sys.argv[1:]))
