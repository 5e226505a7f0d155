"""The options that commands share, and arguments checked before anything is asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from mesh.cli.client import Client
from mesh.cli.output import Output

DEFAULT_SOCKET: Final = "/run/weft/weft.sock"

Command = TypeVar("Command", bound=Callable[..., Any])


def prints(command: Command) -> Command:
    """Adds `-o`; the command gets `out` first."""

    @click.option(
        "-o", "--output", "form", type=click.Choice(["table", "json"]), default="table",
        help="For people or for scripts.", show_default=True,
    )  # fmt: skip
    @functools.wraps(command)
    def wrapped(form: str, **kwargs: Any) -> Any:
        return command(out=Output(form), **kwargs)

    return wrapped  # type: ignore[return-value]


socket_option: Final = click.option(
    "--socket", envvar="WEFT_SOCKET", default=DEFAULT_SOCKET, show_default=True,
    type=click.Path(path_type=Path), help="The node's socket. [env: WEFT_SOCKET]",
)  # fmt: skip


def asks(command: Command) -> Command:
    """Adds `--socket` and `-o`; the command gets `api` and `out`."""

    @socket_option
    @prints
    @functools.wraps(command)
    def wrapped(socket: Path, **kwargs: Any) -> Any:
        return command(api=Client(socket), **kwargs)

    return wrapped  # type: ignore[return-value]


class _Name(click.ParamType[str]):
    """A name, or an id, which has the form of one."""

    name = "name"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from mesh.core.validate import name

        return name(_called(param), value)


class _Address(click.ParamType[str]):
    """An IP address in canonical form."""

    name = "ip"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from mesh.core.validate import ip

        return ip(_called(param), value)


def _called(param: click.Parameter | None) -> str:
    """What the person knows the argument by."""
    if isinstance(param, click.Option):
        return param.opts[0]
    return param.human_readable_name if param else "argument"


NAME: Final = _Name()
ADDRESS: Final = _Address()

vpc_option: Final = click.option(
    "--vpc", required=True, type=NAME, metavar="VPC", help="Name or id."
)
