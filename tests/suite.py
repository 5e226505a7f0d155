"""All tests, and once more by itself what failed where little did: `python -m tests.suite [ARGS]`.

Tests here use the real kernel, sockets and processes. One that fails among thousands and then
passes alone is unsteady: there is something to be found in it or in what it tests, but not by whom
the change at hand belongs to. It is named at the end, with the command that runs it again, and the
run passes. What fails twice fails, and so does everything when more than a few failed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Final

import pytest

from tests.compiled.tree import make_beside

AGAIN_MAX: Final = 3
"""More than that is no chance."""


class _Failures:
    """A pytest plugin: the tests that failed, in order."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names[report.nodeid] = None


def run(arguments: Sequence[str]) -> int:
    """Returns pytest's exit code."""
    failures = _Failures()
    everything = all(argument.startswith("-") for argument in arguments)
    with make_beside() if everything else nullcontext():  # tests near the end need it
        code = int(pytest.main(list(arguments), plugins=[failures]))
    names = list(failures.names)
    if code != pytest.ExitCode.TESTS_FAILED or not 0 < len(names) <= AGAIN_MAX:
        return code
    print(f"\n{len(names)} failed: once more by itself", flush=True)
    options = [argument for argument in arguments if re.match("--.+=", argument)]
    again = [sys.executable, "-m", "pytest", *options]
    if subprocess.run([*again, *names]).returncode != 0:
        return code
    for name in names:
        print(f"UNSTEADY: failed among all, passed by itself: pytest '{name}'", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
