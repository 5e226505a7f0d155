"""Where fields stand: the search agrees with `tomllib` on what there is, whatever stands around."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mesh.node.toml_lines import lines_of


def test_each_table_and_field_has_the_line_of_its_first_name() -> None:
    text = '''\
# [mesh] name = 1
[mesh] # [x]
name = "a = b # [c]" # d = 1
'id' = [ # e = 2
  "x]", 'y[',   # ]
]

long = """
[node]
f = 1 \\""" ""
"""
lit = \'\'\'
g = '' 2
\'\'\'
a.b.c = {x = 1, y = [{z = "}"}]}
a.d = 1

[[list]]
  "q.x" = 3
[ t . "u" ]
k=1
'''
    tomllib.loads(text)
    assert lines_of(text) == {
        ("mesh",): 2, ("mesh", "name"): 3, ("mesh", "id"): 4, ("mesh", "long"): 8,
        ("mesh", "lit"): 12, ("mesh", "a"): 15, ("list",): 18, ("list", "q.x"): 19,
        ("t",): 20, ("t", "u"): 20,
    }  # fmt: skip


def test_a_header_at_the_end_and_other_line_ends() -> None:
    assert lines_of("a = 1\r\n\r\n[b]") == {("a",): 1, ("b",): 3}
    assert lines_of("") == {}


KEYS = st.sampled_from(["a", "b", "c-1", '"d e"', "'f.g'", "h . i", '"="', "'#'", '"[x]"'])
VALUES = st.sampled_from(
    [
        "1", "true", "1979-05-27T07:32:00Z", '"x # y = [z]"', "'\\'", '"\\""', "[]",
        "[\n1,\n2 # ]\n]", "{p = 1, q = '}'}", '"""\nk = 1\n[t]\n"""', '"""a""b"c"""',
        "\'\'\'\n[u]\nk = '2'\'\'\'", '""""q"""', '[ "]", [ {r = "\\\\"} ] ]', '"\\"\\\\"',
        '""""""', '"""x\\\\"""',
    ]
)  # fmt: skip
NOISE = st.sampled_from(["", "# k = 1", '   # [t] """', "\t"])


@given(st.lists(st.tuples(NOISE, st.none() | KEYS, KEYS, VALUES, NOISE), max_size=8))
def test_whatever_tomllib_takes_is_found_where_it_was_written(rows: list[Any]) -> None:
    text = ""
    wanted: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for before, header, key, value, after in rows:
        text += before + "\n"
        if header is not None:
            table = _path(f"[{header}]")
            _mark(wanted, table, text)
            text += f" [{header}] {'' if after.strip() == '' else after}\n"
        _mark(wanted, (*table, *_path(f"{key} = 0")), text)
        text += f"{key} = {value} {'' if after.strip() == '' else after}\n"
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # a key or a table twice
        return
    assert lines_of(text) == wanted


def _path(statement: str) -> tuple[str, ...]:
    names: list[str] = []
    table: Any = tomllib.loads(statement)
    while table:
        (name,) = table
        names.append(name)
        table = table[name]
    return tuple(names)


def _mark(wanted: dict[tuple[str, ...], int], path: tuple[str, ...], text: str) -> None:
    for length in (1, 2):
        if length <= len(path):
            wanted.setdefault(path[:length], text.count("\n") + 1)
