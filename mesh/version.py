"""The version of this program, as `--version`, `members` and the roster show it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("weft")
except PackageNotFoundError:  # run from a source tree that was never installed
    VERSION = "0.0.0"
