"""The story as it is told on machines without root or BPF."""

from __future__ import annotations

import pytest

from mesh.core.view import View
from sim import story


def test_every_step_is_as_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        story.main("this is a test")
    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert "not on the real kernel: this is a test" in said
    assert "15 of 15 steps as told" in said
    assert "✗" not in said


def test_a_step_that_is_not_as_told_exits_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(View, "conflicts", lambda self: [])
    with pytest.raises(SystemExit) as ended:
        story.main("this is a test")
    assert ended.value.code == 1
    assert "not as told: the conflict is listed" in capsys.readouterr().out
