"""A pytest plugin: leaves out the tests that put something else in the place of a function or of a
constant. Compiled code goes by what it was compiled with."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if "monkeypatch" not in getattr(item, "fixturenames", ())]
