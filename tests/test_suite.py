"""What failed is run once more, and passes only if it was chance."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite import AGAIN_MAX

REPOSITORY = Path(__file__).parents[1]
STEADY = "def test_steady(): pass\n"
BROKEN = "def test_broken(): assert False\n"
UNSTEADY = """
from pathlib import Path
def test_unsteady():
    seen = Path(__file__).with_name("seen")
    known = seen.exists()
    seen.touch()
    assert known
"""
MANY = "".join(
    UNSTEADY.replace("unsteady", f"unsteady_{n}").replace('"seen"', f'"seen{n}"')
    for n in range(AGAIN_MAX + 1)
)


@pytest.mark.parametrize(
    "text, code, named",
    [
        (STEADY, 0, False),
        (STEADY + UNSTEADY, 0, True),
        (STEADY + BROKEN, 1, False),
        (BROKEN + UNSTEADY, 1, False),
        (MANY, 1, False),
        ("import nothing_of_that_name", 2, False),
    ],
    ids=["steady", "unsteady", "broken", "both", "many", "unreadable"],
)
def test_exit_codes(tmp_path: Path, text: str, code: int, named: bool) -> None:
    (tmp_path / "test_it.py").write_text(text)
    command = [sys.executable, "-m", "tests.suite", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("UNSTEADY" in done.stdout) == named
