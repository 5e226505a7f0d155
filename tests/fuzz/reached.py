"""Which lines of the product an input reaches, and whether it came there by a way that is new."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[2]
PACKAGES = tuple(f"{ROOT / name}/" for name in ("crdt", "mesh", "dataplane"))

Step: TypeAlias = tuple[CodeType, int, int]
"""From one line of a function to the next; from 0 where it begins."""


class Reached:
    """All steps of all that was run under `watching`."""

    def __init__(self) -> None:
        self.steps: set[Step] = set()

    @contextmanager
    def watching(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if not code.co_filename.startswith(PACKAGES):
            return None
        last, add = 0, self.steps.add

        def line(frame: FrameType, event: str, arg: object) -> Callable[..., Any]:
            nonlocal last
            if event == "line":
                add((code, last, frame.f_lineno))
                last = frame.f_lineno
            return line

        return line

    def lines(self) -> tuple[set[str], set[str]]:
        """Those reached, and all that the functions have which were entered, as `file:line`."""
        found = {_place(code, line) for code, _, line in self.steps}
        codes = {code for code, _, _ in self.steps}
        every = {
            _place(code, line)
            for code in codes
            for _, _, line in code.co_lines()
            if line is not None and line != code.co_firstlineno
        }
        return found, every | found


def _place(code: CodeType, line: int) -> str:
    return f"{Path(code.co_filename).relative_to(ROOT)}:{line}"
