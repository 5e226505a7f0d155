"""`python -m tests.compiled ARGS…`: `python ARGS…` with the pure modules compiled.

Without a C compiler it goes on with the sources, and says so.
"""

from __future__ import annotations

import os
import sys

from tests.compiled.tree import environment_if_any

if __name__ == "__main__":
    command = [sys.executable, *sys.argv[1:]]
    os.execve(command[0], command, environment_if_any())
