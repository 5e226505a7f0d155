"""Has a process import the compiled modules beside this file, and all others as ever.

Python imports a module of this name when it starts. A copy of it is at the top of every tree that
`tree.py` makes: a process is compiled where that tree is first in its PYTHONPATH, and so is every
process that it starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # every process pays


class Compiled:
    """Finds modules of packages here; the packages themselves are those of the sources."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        *packages, _ = name.split(".")
        if not packages or not os.path.isdir(place := os.path.join(HERE, *packages)):  # noqa: PTH112, PTH118
            return None
        found = PathFinder.find_spec(name, [place], target)
        return found if found is not None and found.loader is not None else None


sys.meta_path.insert(0, Compiled)
