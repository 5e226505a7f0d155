"""The loader's process, as the node sees it: started early, asked once.

It is started while the node still has the privileges that loading takes (`privilege.py`), and waits
to be told a directory. It ends with the node's end of its input, asked or not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dataplane
from dataplane.backend import Hook, Unavailable

LOADER_TIMEOUT_S = 120
"""A compile takes a second of CPU; on a busy machine with many nodes starting, far longer."""

_waiting: list[subprocess.Popen[str]] = []


def prepare() -> None:
    """Start the loader that the next `load` of this process asks."""
    _waiting.append(_start())


def dismiss() -> None:
    """End the loader that was prepared, if it was not asked."""
    while _waiting:
        _waiting.pop().communicate("")


def load(directory: Path, hook: Hook = "xdp") -> None:
    """Have the programs loaded and pinned; Unavailable with the loader's last words."""
    process = _waiting.pop() if _waiting else _start()
    try:
        out, words = process.communicate(f"{hook} {directory}\n", timeout=LOADER_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise Unavailable(f"the loader did not end within {LOADER_TIMEOUT_S} s") from error
    if process.returncode != 0:
        lines = words.strip().splitlines() or [f"exit status {process.returncode}"]
        raise Unavailable(f"the XDP programs cannot be loaded: {lines[-1]}")
    json.loads(out)


def _start() -> subprocess.Popen[str]:
    root = str(Path(dataplane.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return subprocess.Popen(
        [sys.executable, "-m", "dataplane.xdp.loader"],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
