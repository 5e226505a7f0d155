"""The benchmark's own honesty: `ok` is the median against the target, and the JSON says all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.bench import __main__ as bench
from tests.bench import anti_entropy
from tests.bench.harness import Metric, measure
from tests.bench.mesh_world import BATCH, MeshWorld, claims


@pytest.mark.parametrize(
    ("target", "runs", "ok"),
    [
        (">= 10", (1, 9.9, 10, 11, 12), True),
        (">= 10", (10, 99, 9, 9.9, 9), False),
        ("<= 280", (280, 9999, 280, 1, 2), True),
        ("<= 280", (281, 1, 281, 281, 2), False),
        (None, (1, 2, 3, 4, 5), None),
    ],
)
def test_ok_is_the_median_against_the_target(
    target: str | None, runs: tuple[float, ...], ok: bool | None
) -> None:
    assert Metric("m", "s", target, runs).ok is ok


def test_a_target_that_cannot_be_judged_is_an_error() -> None:
    with pytest.raises(ValueError, match="neither"):
        _ = Metric("m", "s", "== 3", (3.0,)).ok


def test_a_part_is_written_with_all_runs_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values = iter([5.0, 1.0, 3.0, 2.0, 4.0])
    monkeypatch.setitem(
        bench.PARTS, "toy", lambda: [measure("m", "ms", "<= 2", lambda: next(values))]
    )
    assert bench.main(["toy"], tmp_path / "bench") == 0
    written = json.loads((tmp_path / "bench" / "toy.json").read_text())
    assert set(written) == {"part", "commit", "machine", "core", "metrics"}
    assert written["part"] == "toy" and written["core"] in ("interpreted", "compiled")
    runs = [5.0, 1.0, 3.0, 2.0, 4.0]
    (metric,) = written["metrics"]
    assert metric == {
        "name": "m", "value": 3.0, "unit": "ms", "target": "<= 2", "ok": False, "runs": runs
    }  # fmt: skip
    out, err = capsys.readouterr()
    assert "NO" in out and "1 - 5" in out and "5 of 5" in err and written["core"] in out


@pytest.mark.parametrize("args", [[], ["nothing"], ["core", "core"], ["node", "nothing"]])
def test_an_unknown_part_is_refused_with_the_list(
    args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(args) == 2
    said = capsys.readouterr().err
    assert "core" in said or "latency" in said


def test_what_is_measured_reaches_the_view_the_rows_and_the_other_node() -> None:
    """Rates of records that are refused on the way, or of none, would be no numbers."""
    world = MeshWorld()
    a = world.receiver()
    rows = a.rows()
    frames = list(world.frames(world.new_chain(0), claims(0, 2 * BATCH), BATCH))
    for frame in frames:
        a.take(frame)
    states = [endpoint.state for endpoint in a.view.endpoints()]
    assert states == ["active"] * (2 * BATCH)
    packed = rows.take()
    assert len(packed) == 2 * BATCH and {(len(k), len(v)) for k, v in packed} == {(20, 20)}
    size_bytes, trips = anti_entropy.heal(world, [], frames, 0)
    assert size_bytes > 2 * BATCH and trips >= 1
