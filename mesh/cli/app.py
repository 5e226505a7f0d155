"""All commands by name, loaded when used, and what every one of them does about errors.

Exit codes: 0 done or healthy, 1 the answer is "no", 2 wrong usage or bad input, 3 the node cannot
be reached or failed. An error is one line on stderr. Commands of plug-ins come from the entry-point
group `weft.commands`; one of them is imported only when it is called.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from mesh.core.errors import BadInput, Mistakes, NotReady, RequestError

EXIT_NO: Final = 1
EXIT_USAGE: Final = 2
EXIT_FAILED: Final = 3

PLUGIN_GROUP: Final = "weft.commands"

_MODULES: Final = {
    "init": ("mesh.cli.lifecycle", "Found a mesh: its first node."),
    "invite": ("mesh.cli.lifecycle", "Make a one-use token with which a node can join."),
    "join": ("mesh.cli.lifecycle", "Make this machine a node of the mesh that a token is for."),
    "run": ("mesh.cli.lifecycle", "Run the node, in the foreground."),
    "reload": ("mesh.cli.lifecycle", "Take up what was changed in weft.toml."),
    "snapshot": ("mesh.cli.backup", "Save this node in a file."),
    "restore": ("mesh.cli.backup", "Make a node again from a file."),
    "rotate": ("mesh.cli.lifecycle", "Give this node a new key."),
    "retire": ("mesh.cli.lifecycle", "Take a node out of the mesh for good."),
    "forget": ("mesh.cli.lifecycle", "Drop everything that a retired node wrote."),
    "leave": ("mesh.cli.lifecycle", "Take this node out of the mesh for good."),
    "admin": ("mesh.cli.admin", "Say who may admit and retire nodes, with the root key."),
    "status": ("mesh.cli.status", "Show whether the node is ready, and what is wrong."),
    "diagnose": ("mesh.cli.diagnose", "Check what the node needs, with the fix for what is wrong."),
    "members": ("mesh.cli.status", "List the nodes of the mesh."),
    "vpc": ("mesh.cli.vpc", "Add, show, change and remove VPCs."),
    "subnet": ("mesh.cli.subnet", "Add, show and remove subnets of VPCs."),
    "endpoint": ("mesh.cli.endpoint", "Add, show, move and remove endpoints."),
    "peering": ("mesh.cli.peering", "Let two VPCs talk to each other."),
    "conflicts": ("mesh.cli.conflicts", "List and resolve conflicting claims."),
    "state": ("mesh.cli.state", "Look at the replicated state itself."),
    "watch": ("mesh.cli.watch", "Print changes as they happen, one JSON document a line."),
    "route": ("mesh.cli.route", "Explain where traffic for an address goes, and why."),
    "dataplane": ("mesh.cli.dataplane", "Show, count and audit what forwards packets."),
}


class ExitNo(Exception):
    """The answer, which is printed already, is "no": exit 1 without another line."""


class Group(click.Group):
    """A group of commands that, called without one, says which there are."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"no_args_is_help": False, **kwargs})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        rest = super().parse_args(ctx, args)
        if not args and not ctx.resilient_parsing:
            ctx.fail(f"give one of {', '.join(self.list_commands(ctx))}")
        return rest

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            known = ", ".join(self.list_commands(ctx))
            ctx.fail(f"{_shown(args[0])}: no such command: give one of {known}")
        return super().resolve_command(ctx, args)


class _Root(Group):
    """The `weft` command: finds its commands by name without importing the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_MODULES, *(name for name in sorted(_plugins()) if name not in _MODULES)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _MODULES:
            module, _ = _MODULES[cmd_name]
            command = getattr(importlib.import_module(module), cmd_name)
        elif cmd_name in (plugins := _plugins()):
            try:
                command = plugins[cmd_name].load()
            except (ImportError, AttributeError) as error:
                raise NotReady(f"{cmd_name}: its plug-in does not load: {error}") from error
        else:
            return None
        assert isinstance(command, click.Command)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, help_) for name, (_, help_) in _MODULES.items()]
        for name, plugin in sorted(_plugins().items()):
            if name not in _MODULES:
                rows.append((name, _plugin_help(plugin.module)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _plugins() -> dict[str, Any]:
    from importlib.metadata import entry_points

    return {plugin.name: plugin for plugin in entry_points(group=PLUGIN_GROUP)}


def _plugin_help(module: str) -> str:
    """The first line of a module's docstring, without importing the module."""
    import ast
    from importlib.util import find_spec

    try:
        spec = find_spec(module)
        source = spec.loader.get_source(module) if spec and spec.loader else None  # type: ignore[attr-defined]
        if source is None:
            return "(does not load)"
        docstring = ast.get_docstring(ast.parse(source)) or ""
    except (ImportError, AttributeError, SyntaxError):
        return "(does not load)"
    return docstring.split("\n")[0]


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        from crdt import compiled

        click.echo(f"weft {version('weft')}{', compiled' if compiled() else ''}")
        ctx.exit()


@click.group("weft", cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Show the version.",
)  # fmt: skip
def root() -> None:
    """A controller-free metadata mesh and data plane for VPCs that span edge sites."""


def run(args: Sequence[str]) -> int:
    """Run the command and return its exit code; no exception comes out."""
    try:
        # Not `root.main`, which ends the process by itself when a pipe is closed.
        with root.make_context("weft", list(args)) as ctx:
            root.invoke(ctx)
        sys.stdout.flush()
        return 0
    except click.exceptions.Exit as early:
        return early.exit_code
    except ExitNo:
        return EXIT_NO
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "weft"
        what = error.format_message().rstrip(".")
        return _fail(f"{what}: see `{where} --help`", EXIT_USAGE)
    except Mistakes as error:
        return max(_fail(line, EXIT_USAGE) for line in error.lines)
    except BadInput as error:
        return _fail(str(error), EXIT_USAGE)
    except NotReady as error:
        return _fail(str(error), EXIT_FAILED)
    except RequestError as error:
        return _fail(str(error), EXIT_NO)
    except click.ClickException as error:
        return _fail(error.format_message(), EXIT_USAGE)
    except (KeyboardInterrupt, click.Abort):
        return 128 + signal.SIGINT
    except BrokenPipeError:
        return _reader_has_left()
    except OSError as error:
        return _fail(f"{error.filename or 'weft'}: {error.strerror or error}", EXIT_FAILED)
    except Exception as error:
        if os.environ.get("WEFT_DEBUG"):
            raise
        return _fail(
            f"failed inside: {type(error).__name__}: {error}; WEFT_DEBUG=1 shows where", EXIT_FAILED
        )


def _reader_has_left() -> int:
    """What is left in the buffer must not fail at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 0


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    print(f"weft: {_shown(line)}", file=sys.stderr)
    return code


def _shown(text: str) -> str:
    """Text that cannot move a terminal's cursor, whoever wrote it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
