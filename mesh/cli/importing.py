"""`weft endpoint import`: all lines are checked by the node first, then written, in slices."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click

from mesh.cli.app import ExitNo
from mesh.cli.client import LONG_TIMEOUT_S, Client
from mesh.cli.output import Output, printable, progress
from mesh.core.errors import BadInput, NotFound

SLICE: Final = 1000  # what the node takes at once
SLICE_BYTES_MAX: Final = 3 * 1024 * 1024  # of JSON; the node takes 4 MiB
LINE_BYTES_MAX: Final = 16 * 1024
ERRORS_SHOWN_MAX: Final = 20
FIELDS: Final = ("vpc", "ip", "mac", "name", "host", "labels")

Numbered = tuple[int, dict[str, Any]]
"""A line's number and what it says."""
Bad = tuple[int, str]


def import_file(api: Client, out: Output, path: Path, *, partial: bool) -> None:
    """Read, check, write, and print `{"lines", "taken", "bad", "errors": [{"line", "error"}]}`.

    Raises BadInput (exit 2) when nothing was written for bad lines, ExitNo when some were left out.
    """
    good, bad = _read(path)
    total = len(good) + len(bad)
    good = _without_twins(good, bad)
    with progress("check", len(good)) as advance:
        for piece in _slices(good):
            bad += _send(api, piece, check=True)[1]
            advance(len(piece))
    taken = 0
    if partial or not bad:
        bad_lines = {line for line, _ in bad}
        good = [numbered for numbered in good if numbered[0] not in bad_lines]
        with progress("write", len(good)) as advance:
            for piece in _slices(good):
                count, refused = _send(api, piece, check=False, partial=partial)
                taken += count
                bad += refused
                advance(len(piece))
                if refused and not partial:
                    break  # the state has changed since the check
    _report(out, total, taken, sorted(bad))


def _report(out: Output, total: int, taken: int, bad: list[Bad]) -> None:
    for line, error in bad[:ERRORS_SHOWN_MAX]:
        click.echo(f"line {line}: {printable(error)}", err=True)
    if len(bad) > ERRORS_SHOWN_MAX:
        click.echo(f"and {len(bad) - ERRORS_SHOWN_MAX} more bad lines", err=True)
    errors = [{"line": line, "error": error} for line, error in bad]
    answer = {"lines": total, "taken": taken, "bad": len(bad), "errors": errors}
    if out.json:
        out.document(answer)
    else:
        out.record(answer, ("lines", "taken", "bad"))
    if bad and not taken:
        raise BadInput(f"nothing was written: {len(bad)} bad lines: correct them, or use --partial")
    if bad:
        raise ExitNo


def _read(path: Path) -> tuple[list[Numbered], list[Bad]]:
    """The lines that are objects with known fields, and what is wrong with the others."""
    good: list[Numbered] = []
    bad: list[Bad] = []
    number = 0
    try:
        with click.open_file(str(path), "rb") as file:
            while line := file.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise BadInput(
                        f"{path}: line {number} is longer than {LINE_BYTES_MAX} bytes: write one"
                        " endpoint a line"
                    )
                if not line.strip():
                    continue
                try:
                    good.append((number, _parse(line)))
                except BadInput as error:
                    bad.append((number, str(error)))
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file: give one with JSON lines") from None
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror}): give a file") from None
    return good, bad


def _parse(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise BadInput('not JSON: write {"vpc": …, "ip": …}') from None
    if not isinstance(value, dict) or not {"vpc", "ip"} <= value.keys():
        raise BadInput('not an endpoint: write {"vpc": …, "ip": …}')
    for field in value:
        if field not in FIELDS:
            raise BadInput(f"{field!r} is no field: there are {', '.join(FIELDS)}")
    return value


def _without_twins(good: Sequence[Numbered], bad: list[Bad]) -> list[Numbered]:
    """Lines that say again what an earlier one says are dropped, those that differ are bad."""
    first: dict[tuple[str, str], Numbered] = {}
    kept: list[Numbered] = []
    for number, value in good:
        twin = first.setdefault((str(value["vpc"]), str(value["ip"])), (number, value))
        if twin[0] == number:
            kept.append((number, value))
        elif twin[1] != value:
            bad.append((number, f"{value['ip']} is in line {twin[0]}, too, and differs: keep one"))
    return kept


def _slices(lines: Sequence[Numbered]) -> Iterator[list[Numbered]]:
    piece: list[Numbered] = []
    size_bytes = 0
    for numbered in lines:
        line_bytes = len(json.dumps(numbered[1]))
        if piece and (len(piece) == SLICE or size_bytes + line_bytes > SLICE_BYTES_MAX):
            yield piece
            piece, size_bytes = [], 0
        piece.append(numbered)
        size_bytes += line_bytes
    if piece:
        yield piece


def _send(
    api: Client, piece: list[Numbered], *, check: bool, partial: bool = False
) -> tuple[int, list[Bad]]:
    """How many were taken, and the lines that were refused."""
    body = {"endpoints": [value for _, value in piece], "check": check, "partial": partial}
    try:
        answer = api.post("/v1/endpoints/import", body, timeout_s=LONG_TIMEOUT_S)
    except (BadInput, NotFound) as error:
        # A value of a wrong type: the node names one line's index and looks at no other.
        if len(piece) == 1:
            return 0, [(piece[0][0], str(error).removeprefix("endpoints[0]").removeprefix("."))]
        middle = len(piece) // 2
        halves = [
            _send(api, half, check=check, partial=partial)
            for half in (piece[:middle], piece[middle:])
        ]
        return sum(count for count, _ in halves), [bad for _, some in halves for bad in some]
    return answer["taken"], [(piece[e["index"]][0], e["error"]) for e in answer["errors"]]
