"""The page of a run: whole, self-contained, escaped, readable as XML, and the same every time."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.core.checkers import Violation
from sim.core.episodes import Episode
from sim.core.recording import Recording, Series
from sim.core.scenario import parse
from sim.core.simulation import run
from sim.report import page, plots, words
from sim.report.page import Run, render
from sim.seeding import chance_of

SECTIONS = [
    "run", "timeline", "agreement", "convergence", "bytes", "conflicts", "violations", "result",
]  # fmt: skip
FILE = "a scenario.toml"
REPLAY = "weft sim run 'a scenario.toml' --seed 3"


def table(**more: Any) -> dict[str, Any]:
    """Three sites, one of them cut off for a while, one that crashes."""
    return {
        "duration_s": 20,
        "sites": 3,
        "network": {"latency_ms": 20},
        "workload": {"vpcs": 1, "rate_per_s": 10, "addresses": 9, "mix": {"create": 1, "claim": 4}},
        "event": [
            {"at_s": 4, "cut": [["a"]], "for_s": 6},
            {"at_s": 13, "crash": "b", "for_s": 2},
        ],
        **more,
    }


def of(raw: Mapping[str, Any], *, seed: int = 3) -> Run:
    scenario, recording = parse(raw), Recording()
    result = run(scenario, seed, chance_of(seed), recording)
    return Run(FILE, "duration_s = 20\n", REPLAY, scenario, result, recording)


@pytest.fixture(scope="module")
def ran() -> Run:
    return of(table())


class Page(HTMLParser):
    """What a browser would make of it: elements, ids, attributes, text by section."""

    VOID = frozenset({"meta", "link", "br", "hr", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: dict[str, str] = {}
        self._section = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value or "")
                if tag == "section":
                    self._section = value or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text[self._section] = self.text.get(self._section, "") + data


def svgs(text: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_every_section_is_there_and_every_plot_is_well_formed(ran: Run) -> None:
    text = render(ran)
    found = Page(text)
    assert found.open == []
    assert [id for id in found.ids if id in SECTIONS] == SECTIONS
    plots = svgs(text)
    assert len(plots) == found.tags.count("svg") == 6
    for plot in plots:
        assert plot.attrib["role"] == "img"
        assert len(plot.attrib["aria-label"]) > 20
        assert plot.findall(".//text"), "text stays text"
    assert len(text) < 1_000_000


def test_the_page_needs_nothing_but_itself(ran: Run) -> None:
    text = render(ran)
    found = Page(text)
    assert not re.findall(r"[a-z]+://", text)
    assert "@import" not in text
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(found.tags)
    ids = set(found.ids)
    assert len(ids) == len(found.ids), "ids are unique over all plots"
    for tag, name, value in found.attributes:
        if name in ("src", "srcset", "data"):
            raise AssertionError((tag, name, value))
        if name in ("href", "xlink:href"):
            assert value[0] == "#", (tag, value)
            assert value[1:] in ids, (tag, value)
        for reference in re.findall(r"url\(([^)]*)\)", value):
            assert reference[0] == "#", (tag, reference)
            assert reference[1:] in ids, (tag, reference)


def test_the_page_says_what_ran_and_what_came_out(ran: Run) -> None:
    found = Page(render(ran)).text
    assert REPLAY in found["run"]
    assert "3 sites, 3 gateways: a, b, c" in found["run"]
    assert "Everything held" in found[""]
    assert f"{words.duration(ran.recording.clock.leapt_ns / 1e9)} in which nothing" in found["run"]
    assert "a | b, c" in found["timeline"]
    assert "b-1" in found["timeline"]
    assert "None: every check held" in found["violations"]
    assert f"took {words.duration(ran.result.heal_s)}" in found["agreement"]
    assert f"p99 {words.duration(ran.result.push_p99_s)}" in found["convergence"]
    written = re.search(r"\{.*\}", found["result"], re.DOTALL)
    assert written is not None
    assert json.loads(written[0]) == ran.result.json()


def test_a_violation_is_shown_with_its_replay(ran: Run) -> None:
    violation = Violation(12.5, "heads do not go back", "node 2: <b>worse</b> & worse")
    result = replace(ran.result, violations=(violation,))
    text = render(replace(ran, result=result))
    found = Page(text).text
    assert "12.500" in found["violations"]
    assert "heads do not go back" in found["violations"]
    assert "node 2: <b>worse</b> & worse" in found["violations"]
    assert REPLAY in found["violations"]
    assert "1 violation." in found[""]
    assert "violation" in found["timeline"]
    assert "Everything held" not in text


HOSTILE = "</title></pre><script>alert('1')</script>&\"'<svg onload=x>$\\frac{"


def test_hostile_names_stay_text(ran: Run) -> None:
    recording = of(table()).recording
    recording.episodes.logged[0].what = HOSTILE
    recording.episodes.logged[0].note = HOSTILE
    recording.episodes.logged[1].kind = HOSTILE
    recording.names = (HOSTILE, *recording.names[1:])
    recording.sites = (HOSTILE, *recording.sites[1:])
    result = replace(ran.result, violations=(Violation(1.0, HOSTILE, HOSTILE),))
    text = render(Run(HOSTILE, HOSTILE, HOSTILE, ran.scenario, result, recording))
    found = Page(text)
    assert found.open == []
    assert "script" not in found.tags
    assert len(svgs(text)) == found.tags.count("svg") == 6
    assert not [name for _, name, _ in found.attributes if name.startswith("on")]
    assert found.text["run"].count(HOSTILE) == 3
    assert HOSTILE in found.text["timeline"]


def test_a_run_of_nothing_has_a_page() -> None:
    raw = table(sites=1, event=[], workload={"vpcs": 1, "endpoints": 0, "rate_per_s": 0})
    found = Page(render(of(raw))).text
    assert "there was no cut and no crash" in found["timeline"]
    assert "No conflict came up" in found["conflicts"]


def test_many_sites_are_drawn_together_and_the_page_says_so(
    ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = of(table()).recording
    sites = tuple(f"site-{i}" for i in range(1000))
    recording.sites = recording.names = sites
    for series in recording.traffic.by_node:
        series.extend([1000] * 997)
    for i in range(300):
        recording.episodes.happened("restart", f"site-{i}")
    text = render(replace(ran, recording=recording))
    found = Page(text).text
    assert len(text) < 2_000_000
    assert "Sites are not named" in found["bytes"]
    assert "262 rows with less time are not drawn" in found["timeline"]
    assert f"The first {page.FAULT_ROWS_MAX} of 302 faults" in found["timeline"]


def test_kinds_of_faults_are_told_apart() -> None:
    kinds = ("cut", "slow", "stall", "full", "clone", "hostile", "torn", "flood", "flap", "down")
    moments = ("join", "retire", "forget", "restart", "clock step")
    episodes = [Episode(kind, "a", 0, 5) for kind in kinds]
    episodes += [Episode(kind, "a", 5, 5) for kind in moments]
    looks = plots._looks(episodes, 10)
    assert tuple(looks) == kinds + moments
    assert len(set(looks.values())) == len(looks)
    assert all(bool(look.marker) == (kind in moments) for kind, look in looks.items())


def test_the_same_run_gives_the_same_bytes(ran: Run) -> None:
    assert render(ran) == render(of(table()))
    assert render(ran) != render(of(table(), seed=4))


RENDER = """
import sys
from tests.sim.report.test_page import of, render, table
sys.stdout.write(render(of(table())))
"""


def test_the_bytes_do_not_hang_on_the_process(ran: Run, tmp_path: Path) -> None:
    """Nor on the hash seed, the time, the time zone, or a matplotlibrc of one's own."""
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nsvg.fonttype: path\n")
    env = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "TZ": "Asia/Tokyo",
        "SOURCE_DATE_EPOCH": "1",
        "MATPLOTLIBRC": str(tmp_path),
    }
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", RENDER], env=env, cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == render(ran)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (None, "–"),
        (0.0322, "32.2 ms"),
        (1.0, "1 s"),
        (119.0, "119 s"),
        (180.0, "3 min"),
        (7200.0, "2 h"),
        (172800.0, "2 days"),
    ],
)
def test_durations_have_units_that_fit(seconds: float | None, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(
    ("count_bytes", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (3_440_000, "3.44 MB"), (2.5e12, "2.5e+03 GB")],
)
def test_sizes_have_units_that_fit(count_bytes: float, said: str) -> None:
    assert words.size(count_bytes) == said


def test_long_words_keep_both_ends() -> None:
    assert words.shortened("abc", 3) == "abc"
    assert words.shortened("abcdefghij", 7) == "abcd…ij"


def test_the_figures_that_people_look_for_are_on_top(ran: Run) -> None:
    top = render(ran).partition("<nav>")[0]
    result = ran.result
    for shown in (
        words.duration(result.heal_s),
        f"{words.duration(result.push_p50_s)}, {words.duration(result.push_p99_s)}",
        words.size(result.bytes_per_site),
        "0, 0",
    ):
        assert f"<b>{shown}</b>" in top


def test_the_slowest_updates_go_by_the_names_of_their_vpcs(ran: Run) -> None:
    assert set(ran.recording.vpcs.values()) == {"vpc-0"}
    assert "<td>vpc-0</td>" in render(ran)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), min_size=1, max_size=30),
    st.integers(0, 50),
    st.integers(1, 20),
)
def test_the_parts_of_a_dense_line_have_its_least_most_and_average(
    steps: list[tuple[int, int]], after: int, count: int
) -> None:
    series, at_ns, by_ns = Series(), 0, list[int]()
    for lasts_ns, number in steps:
        series.add(at_ns, (number,))
        by_ns += [number] * lasts_ns
        at_ns += lasts_ns
    by_ns += [by_ns[-1]] * (after + count)
    end_ns = len(by_ns)
    spans = plots.spans_of(series, 0, end_ns, count)
    assert len(spans) == count
    for (from_ns, least, most, average), part in zip(spans, range(count), strict=True):
        mine = by_ns[from_ns : (part + 1) * end_ns // count]
        assert from_ns == part * end_ns // count
        assert (least, most) == (min(mine), max(mine))
        assert average == pytest.approx(sum(mine) / len(mine))


def test_a_line_with_too_many_steps_is_drawn_as_least_most_and_average(
    ran: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "least and most" not in render(ran)
    monkeypatch.setattr(plots, "CHANGES_MAX", 1)
    assert "least and most of each" in render(ran)
