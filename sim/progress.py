"""How far a long command is, on a terminal: nothing is shown elsewhere."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

LOOK_S: Final = 0.25

Show = Callable[[float, str], None]
"""(how much is done, words about it)"""


def _silent(done: float, words: str) -> None:
    """Nobody looks."""


@contextmanager
def bar(what: str, total: float) -> Iterator[Show]:
    """A bar with words beside it and the time that is left; it goes when it is done."""
    if not sys.stderr.isatty() or not total:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[words]}"),
        TextColumn("left"),
        Left(elapsed_when_finished=True),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=total, words="")
        yield lambda done, words: shown.update(task, completed=done, words=words)


@contextmanager
def watched(what: str, total: float, look: Callable[[], tuple[float, str]]) -> Iterator[None]:
    """A bar that asks how far it is, for work that cannot tell."""
    with bar(what, total) as show:
        if show is _silent:
            yield
            return
        over = threading.Event()

        def watch() -> None:
            while not over.wait(LOOK_S):
                show(*look())

        watcher: Any = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
