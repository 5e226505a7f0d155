"""Scenario files as people and chance write them: a scenario, or one line that says where and what
to write. Never anything else."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.core.errors import BadInput
from mesh.node.toml_lines import item_lines
from sim.core.scenario import Scenario, parse
from sim.core.tables import Place
from sim.reading import FILE_BYTES_MAX, checked, line_of, load

SCENARIOS = sorted((Path(__file__).parents[2] / "sim/scenarios").glob("*.toml"))

TEXT = """# a comment
duration_s = 60

[network]
latency_ms = 10
los = 0.5
link = [
  ["a", "b", 80], # [[event]]
]

[workload.mix]
creat = 1

[[event]]
at_s = 5
crash = "a"

[[event]]   # the second
at_s = 500
crash = "b"
[small]
sites = 2000
faults.cuts = 1
expect = { heal_s_max = 3 }
"""


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("duration_s",), 2),
        (("network",), 4),
        (("network", "los"), 6),
        (("network", "link"), 7),
        (("network", "missing"), 4),
        (("workload", "mix", "creat"), 12),
        (("event",), 14),
        (("event", 1), 14),
        (("event", 1, "at_s"), 15),
        (("event", 2, "at_s"), 19),
        (("event", 2, "for_s"), 18),
        (("sites",), None),
        (("small", "sites"), 22),
        (("small", "faults", "cuts"), 23),
        (("small", "expect", "heal_s_max"), 24),
    ],
)
def test_the_line_of_a_mistake_is_found(place: Place, line: int | None) -> None:
    assert line_of(TEXT, place) == line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("duration_s = 5\ndurration_s = 5", ", line 2: durration_s: is not known here: did you"),
        ('duration_s = "5"', ", line 1: duration_s: '5' is not a number: write it without quotes"),
        ("sites = 2\n\nsites = 3", ", line 3: is not TOML: this key is written twice"),
        ("sites = 2\nsites = 3\n\n[network]", ", line 2: is not TOML: this key is written twice ("),
        (
            "network.link = [\n  ['a', 'b', 5], # [\n  ['b',\n 'c', 5], ['c', 'c', 5]\n]",
            ", line 4: [network] link[3]: c twice",
        ),
        (
            "event = [{ at_s = 1, crash = 'a' },\n { at_s = 1, crash = 'q' }]",
            ", line 2: [[event]] 2 crash: no node 'q'",
        ),
        (
            "[[event]]\nat_s = 3\ncrash = 'a'\n[small]\nevent = [\n { at_s = 1, crash = 'q' }]",
            ", line 6: [[event]] 1 crash: no node 'q'",
        ),
        (
            "[[event]]\nat_s = 3\ncrash = 'c'\n[small]\nsites = 2",
            ", line 3: [[event]] 1 crash: no node 'c'",
        ),
        (
            "[event]\nat_s = 1\n[event]",
            ", line 3: is not TOML: [event] is there twice: write all into one, or [[event]] where",
        ),
        ("[network\nloss = 1", ", line 1: is not TOML: Expected ']'"),
        ("[small]\nsites = 0", ", line 2: sites: 0 is out of bounds: use 1 to 1000"),
        ("sites = 2\n[small]\nsites = 0", ", line 3: sites: 0 is out of bounds"),
        ("network.loss = 5", ", line 1: [network] loss: 5 is out of bounds"),
        ("sites = 3\n[[event]]\nat_s = 1\ncut = [['q']]", ", line 4: [[event]] 1 cut: no site 'q'"),
        (
            "[[site]]\nname = 'a'\n[[site]]\nname = 'a'",
            ", line 4: [[site]] 2 name: there is a site",
        ),
        ("x = " + "[" * 5000, ": lists in lists, too deep"),
        ("x = " + "9" * 5000, ": a number has thousands of digits"),
        ("sites = 0x" + "9" * 5000, ", line 1: sites: … is out of bounds"),
        ("", ": says nothing: `weft sim init FILE` writes an example"),
        ("# only words", ": says nothing"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_what_to_write(text: str, said: str) -> None:
    with pytest.raises(BadInput) as error:
        checked(text, "my.toml")
    assert str(error.value).startswith("my.toml" + said)


def test_what_is_no_scenario_is_refused_unread(tmp_path: Path) -> None:
    pipe, big, binary = tmp_path / "pipe", tmp_path / "big", tmp_path / "binary"
    os.mkfifo(pipe)
    with big.open("wb") as file:
        file.truncate(FILE_BYTES_MAX + 1)
    binary.write_bytes(b"sites = 3\n\x7fELF\xff")
    for path, said in (
        (pipe, "is no regular file"),
        (Path("/dev/zero"), "is no regular file"),
        (tmp_path, "is a directory"),
        (big, "more than 4 MiB"),
        (binary, "line 2: is no text in UTF-8 (byte 0xff)"),
        (tmp_path / "none", "no such file: `weft sim init FILE` writes an example"),
    ):
        with pytest.raises(BadInput, match=str(path)) as error:
            load(path)
        assert said in str(error.value)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_our_scenarios_are_read_whole_and_small(path: Path) -> None:
    assert isinstance(load(path), Scenario)
    assert isinstance(load(path, small=True), Scenario)


# ---- what chance writes ----

TEXTS = [TEXT, *(path.read_text() for path in SCENARIOS)]
LINES = sorted({line for text in TEXTS for line in text.splitlines() if line.strip()})
KEYS = sorted({line.partition("=")[0].strip() for line in LINES if "=" in line})
VALUES = [
    '"a"', '"b-1"', '["a", "b"]', '[["a"], ["b"]]', "-1", "0", "1e400", "nan", "-inf", "true",
    "1979-05-27", "[]", "{}", "[{}]", "{ a = 1 }", "0x" + "f" * 5000, '"""\n"""', "1_000",
    '"\\u0000"', '["a", "b", 5]', '"é"', "[[[]]]", "99999999999999999999",
]  # fmt: skip
HEADERS = ["[network]", "[[event]]", "[[site]]", "[workload]", "[faults]", "[expect]", "[small]"]


def _taken_or_told(text: str, *, small: bool = False) -> None:
    try:
        assert isinstance(checked(text, "f.toml", small=small), Scenario)
    except BadInput as error:
        said = str(error)
        assert said.startswith("f.toml") and "\n" not in said and len(said) < 600, said


@given(st.text(max_size=200) | st.text(alphabet='[]{}="\n.#a1_ ', max_size=60))
def test_any_text_is_taken_or_told(text: str) -> None:
    _taken_or_told(text)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(LINES)
        | st.sampled_from(HEADERS)
        | st.builds("{} = {}".format, st.sampled_from(KEYS), st.sampled_from(VALUES)),
        max_size=12,
    ),
    st.booleans(),
)
@example(["[[event]]", "at_s = 1", "join = 3"], False)
def test_any_lines_of_scenarios_are_taken_or_told(lines: list[str], small: bool) -> None:
    _taken_or_told("\n".join(lines), small=small)


@settings(max_examples=200)
@given(st.data())
def test_scenarios_with_one_value_changed_are_taken_or_told(data: st.DataObject) -> None:
    lines = data.draw(st.sampled_from(TEXTS)).splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    key, equals, _ = lines[at].partition("=")
    value = data.draw(st.sampled_from(VALUES))
    lines[at] = f"{key}{equals}{value}" if equals else data.draw(st.sampled_from(["", "[", "x"]))
    _taken_or_told("\n".join(lines))


_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_values = st.recursive(
    _leaves | st.sampled_from("abc"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*KEYS, "network", "site", "small"]), _values, max_size=6))
def test_any_tables_are_taken_or_told(raw: dict[str, Any]) -> None:
    try:
        parse(raw)
    except BadInput as error:
        assert "\n" not in str(error)


@given(st.binary(max_size=100))
def test_any_bytes_are_taken_or_told(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "chance.toml"
    path.write_bytes(data)
    try:
        load(path)
    except BadInput as error:
        assert "\n" not in str(error).replace(str(path), "")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a = 1\n[b]", []),
        ("a = []", []),
        ("a = [1, 2, [3], '4']", [1, 1, 1, 1]),
        ('a = [ # [1\n  1, # 2,\n\n 2,\n  { b = [1,\n 2] }, """x,\ny""", 5 ]', [2, 4, 5, 6, 7]),
        ("a = { b = [1, 2] }", []),
    ],
)
def test_the_lines_of_the_items_of_a_list(text: str, lines: list[int]) -> None:
    tomllib.loads(text)
    assert item_lines(text, 1) == lines
    assert item_lines(f"z = [9]\n{text}\ny = [9]\n", 2) == [line + 1 for line in lines]


def test_tomllib_says_where_as_it_did() -> None:
    """Its words are taken apart."""
    with pytest.raises(tomllib.TOMLDecodeError, match=r" \(at line 1, column 1\)$"):
        tomllib.loads("=")
    with pytest.raises(tomllib.TOMLDecodeError, match=r" \(at end of document\)$"):
        tomllib.loads("a = [")
