"""What a watch shows is timed once for each write, and where it came from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from sim.lab.hearing import Ears


def shown(key: str, dot: str | None) -> list[dict[str, Any]]:
    return [{"key": f"endpoint/{key}", "value": None if dot is None else {"dot": dot}}]


def test_shards_have_dots_of_their_own() -> None:
    ears = Ears(lambda: 0)
    ears._take("a1", shown("v1/10.0.0.1", "a1/1/7"), 1.0)
    ears._take("b1", shown("v1/10.0.0.1", "a1/1/7"), 1.5)
    ears._take("a1", shown("v2/10.0.0.1", "a1/1/7"), 9.0)
    ears._take("b1", shown("v2/10.0.0.1", "a1/1/7"), 9.5)
    assert ears.push_s() == pytest.approx([0.5, 0.5])


def test_what_was_outranked_is_not_timed_when_it_is_shown_again() -> None:
    ears = Ears(lambda: 0)
    ears._take("a1", shown("v1/10.0.0.1", "a1/1/7"), 1.0)
    ears._take("b1", shown("v1/10.0.0.1", "b1/1/3"), 1.0)
    ears._take("b1", shown("v1/10.0.0.1", "a1/1/7"), 8.0)
    assert ears.push_s() == []
