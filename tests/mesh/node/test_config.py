"""weft.toml: what is accepted, and that every refusal names file, line, field and fix."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.node.config import (
    CONFIG_BYTES_MAX,
    LINE_CHARS_MAX,
    MISTAKES_MAX,
    Config,
    ConfigError,
    check_underlay,
    parse_config,
    read_config,
    render_config,
    write_config,
)
from mesh.node.config_fields import FIELDS, TABLES, default_listen, documented

MINIMAL = """\
[mesh]
name = "edge"
id = "000102030405060708090a0b0c0d0e0f"

[node]
name = "a-1"
site = "a"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "weft.toml"
    path.write_text(text)
    return path


def test_a_minimal_file_gets_the_defaults(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, MINIMAL))
    assert config == Config(
        path=tmp_path / "weft.toml",
        mesh_name="edge",
        mesh_id=bytes(range(16)),
        node_name="a-1",
        site="a",
        underlay=None,
        listen=("/ip4/0.0.0.0/tcp/7400", "/ip6/::/tcp/7400"),
        dataplane_mode="auto",
        wan_if=None,
        socket_path=Path("/run/weft/weft.sock"),
    )
    assert config.node_key_path == tmp_path / "node.key"
    assert config.root_key_path == tmp_path / "root.key"
    assert config.store_path.parent == tmp_path


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, MINIMAL + '[api]\nsocket = "run/api.sock"\n'))
    assert config.socket_path == tmp_path / "run/api.sock"


@pytest.mark.parametrize(
    ("underlay", "listen"),
    [
        (None, ("/ip4/0.0.0.0/tcp/7400", "/ip6/::/tcp/7400")),
        ("192.0.2.1", ("/ip4/192.0.2.1/tcp/7400",)),
        ("2001:db8::1", ("/ip6/2001:db8::1/tcp/7400",)),
    ],
)
def test_without_listen_the_underlay_address_is_used(
    underlay: str | None, listen: tuple[str, ...]
) -> None:
    assert default_listen(underlay) == listen


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('name = "edge"', 'name = "Edge"', "[mesh] name"),
        ('name = "edge"', 'name = ""', "[mesh] name"),
        ('name = "edge"', f'name = "{"x" * 64}"', "[mesh] name"),
        ('name = "edge"', "name = 7", "[mesh] name"),
        ('name = "edge"\n', "", "[mesh] name"),
        ('id = "00', 'id = "0', "[mesh] id"),
        ('id = "00', 'id = "ZZ', "[mesh] id"),
        ('site = "a"', 'site = "-a"', "[node] site"),
        ('site = "a"', 'site = "a"\nunderlay = "10.0.0.999"', "[node] underlay"),
        ('site = "a"', 'site = "a"\nunderlay = "224.0.0.1"', "[node] underlay"),
        ('site = "a"', 'site = "a"\nunderlay = "0.0.0.0"', "[node] underlay"),
        ('site = "a"', 'site = "a"\nunderlay = "fe80::1"', "[node] underlay"),
        ('site = "a"', 'site = "a"\nlisten = "/ip4/0.0.0.0/tcp/7400"', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = []', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = [7400]', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = ["/ip4/0.0.0.0/udp/7400"]', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = ["/ip4/0.0.0.0/tcp/65536"]', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = ["/ip6/0.0.0.0/tcp/7400"]', "[node] listen"),
        ('site = "a"', 'site = "a"\nsight = "b"', "[node] sight"),
        ('site = "a"', 'site = "a"\n[dataplane]\nmode = "fast"', "[dataplane] mode"),
        (
            'site = "a"',
            'site = "a"\n[dataplane]\nencapsulation = "gre"',
            "give one of geneve, vxlan",
        ),
        ('site = "a"', 'site = "a"\n[dataplane]\nhook = "nft"', "write one of xdp, tc"),
        ('site = "a"', 'site = "a"\n[dataplane]\nwan_if = "sixteen-chars-xx"', "wan_if"),
        ('site = "a"', 'site = "a"\n[dataplane]\nwan_if = "a/b"', "[dataplane] wan_if"),
        ('site = "a"', 'site = "a"\n[api]\nsocket = ""', "[api] socket"),
        ('site = "a"', f'site = "a"\n[api]\nsocket = "/{"x" * 107}"', "[api] socket"),
        ('site = "a"', 'site = "a"\nunderlay = ["10.0.0.1"]', "[node] underlay"),
        ('id = "00', 'bootstrap = ["gw.example"]\nid = "00', "[mesh] bootstrap"),
        ('id = "00', 'bootstrap = ["/dns4/gw/tcp/0"]\nid = "00', "[mesh] bootstrap"),
        ('id = "00', 'bootstrap = ["/dns4/g w/tcp/7"]\nid = "00', "[mesh] bootstrap"),
        ('id = "00', 'bootstrap = ["/ip6/::1/udp/7"]\nid = "00', "[mesh] bootstrap"),
        (
            'site = "a"',
            'site = "a"\nlisten = ["/ip4/1.1.1.1/tcp/1", "/ip4/1.1.1.1/tcp/1"]',
            "twice",
        ),
        ('site = "a"', 'site = "a"\n[dataplane]\nmode = "xdp"', "needs [node] underlay"),
        ('site = "a"', 'site = "a"\n[dataplane]\nendpoints_max = 1', "[dataplane] endpoints_max"),
        ('site = "a"', 'site = "a"\n[dataplane]\nendpoints_max = true', "is true or false"),
        ('site = "a"', 'site = "a"\n[dataplane]\nendpoints_max = 4096.0', "with a point"),
        ('site = "a"', 'site = "a"\n[log]\nlevel = "loud"', "[log] level"),
        ('site = "a"', 'site = "a"\n[log]\nlevel = 2026-01-01', "a date or time"),
        ('site = "a"', 'site = "a"\n[chart]\nport = 1', "[chart]: no such table"),
        ('site = "a"', 'site = "a"\n"\\u001b[2J" = 1', "'\\x1b[2J'"),
        ("[node]\n", "[[node]]\n", "node: is a field, and should be a table"),
        ("[mesh]", 'stray = "x"\n[mesh]', "stray"),
        ("[mesh]", "[mesh", "not TOML"),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, old: str, new: str, field: str) -> None:
    assert old in MINIMAL
    path = written(tmp_path, MINIMAL.replace(old, new))
    with pytest.raises(ConfigError) as refusal:
        read_config(path)
    assert well_told(path, refusal.value.lines)
    assert field in str(refusal.value)


def well_told(path: Path, lines: Sequence[str]) -> bool:
    """Whether each mistake is one line of file and line, what, what is wrong, and the fix."""
    place = rf"{re.escape(str(path))}:[0-9]+: \S"
    more = rf"{re.escape(str(path))}: and [0-9]+ more"
    return bool(lines) and all(
        ((re.match(place, line) and line.count(": ") >= 2) or re.match(more, line))
        and line.isprintable()
        and len(line) < 600
        for line in lines
    )


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """\
[mesh]
nmae = "edge"
id = [
  "x",
]

[node]
name = "a-1" # site = "b"
mode = "xdp"
listen = [
  "/ip4/0.0.0.0/tcp/1",
  "/ip4/0.0.0.0/udp/1",
]

[datplane]
wan_if = "eth0"
""",
    )
    with pytest.raises(ConfigError) as refusal:
        read_config(path)
    told = [line.removeprefix(f"{path}:") for line in refusal.value.lines]
    assert told == [
        "1: [mesh] name: is missing: add it",
        "2: [mesh] nmae: no such field: did you mean name?",
        "3: [mesh] id: ['x']: is a list: write a text in quotes",
        "7: [node] site: is missing: add it",
        "9: [node] mode: no such field: there is [dataplane] mode: move it there",
        "10: [node] listen: '/ip4/0.0.0.0/udp/1': not a TCP multiaddr: write one like"
        " /ip4/0.0.0.0/tcp/7400",
        "15: [datplane]: no such table: did you mean dataplane?",
    ]


def test_many_mistakes_are_bounded(tmp_path: Path) -> None:
    path = written(tmp_path, MINIMAL + "".join(f"x{i} = 1\n" for i in range(1000)))
    with pytest.raises(ConfigError) as refusal:
        read_config(path)
    assert len(refusal.value.lines) == MISTAKES_MAX + 1
    assert "and 980 more" in refusal.value.lines[-1]


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[\n" * 20_000,
        "x = " + "{a=[" * 250,
        ".".join("a" * 500) + " = 1\n",
        "[" + ".".join("a" * 500) + "]\n" * 3,
        'x = "' + "\\u0041" * 150 + '"',
        "x = " + "9" * LINE_CHARS_MAX,
        "x = [\n" + "1,\n" * 20_000 + "]",
        "x = " + "9" * 600,
        '"' + "k" * 1000 + '" = 1',
        "\n".join(f"[t{i}]" for i in range(8_000)),
        'x = """' + '""\n' * 15_000,
        "\x00",
        "a = 1\na = 2",
        "a = 1979-13-45",
    ],
)
def test_hostile_files_are_refused_in_no_time(tmp_path: Path, text: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refusal:
        read_config(path)
    assert well_told(path, refusal.value.lines)


TOKENS = st.sampled_from(
    ["[", "]", "=", '"', "'", '"""', "\n", "#", ".", ",", "{", "}", "\\", "1", "-", "true", "9e9",
     "[node]", "[log]", "name", "listen", "level", "endpoints_max", " = 7", "\t", "\x7f", "é", "𝔘"]
)  # fmt: skip
EDITS = st.lists(
    st.tuples(st.integers(0, 2000), st.integers(0, 12), TOKENS), min_size=1, max_size=6
)


@given(EDITS)
def test_a_mutated_file_is_read_or_refused_with_the_line(edits: list[tuple[int, int, str]]) -> None:
    path = Path("/etc/weft/weft.toml")
    text = render_config(parse_config(path, MINIMAL))
    for at, length, token in edits:
        at %= len(text)
        text = text[:at] + token + text[at + length :]
    try:
        parse_config(path, text)
    except ConfigError as error:
        assert well_told(path, error.lines)
        count = text.count("\n") + 1
        places = re.findall(rf"^{path}:([0-9]+):", "\n".join(error.lines), re.MULTILINE)
        assert all(1 <= int(line) <= count for line in places)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "big.toml").write_text("#" * (CONFIG_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_config(tmp_path / "big.toml")
    (tmp_path / "latin.toml").write_bytes(b'a = 1\nname = "\xe4"')
    with pytest.raises(ConfigError, match=r"latin\.toml:2: not TOML"):
        read_config(tmp_path / "latin.toml")


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
CONFIGS = st.builds(
    Config,
    path=st.just(Path("/etc/weft/weft.toml")),
    mesh_name=NAMES,
    mesh_id=st.binary(min_size=16, max_size=16),
    node_name=NAMES,
    site=NAMES,
    underlay=st.sampled_from([None, "192.0.2.9", "2001:db8::9"]),
    listen=st.sampled_from([("/ip4/0.0.0.0/tcp/1",), ("/ip4/10.0.0.1/tcp/9", "/ip6/::1/tcp/9")]),
    dataplane_mode=st.sampled_from(["auto", "xdp", "memory"]),
    wan_if=st.none() | st.just("eth0"),
    encapsulation=st.sampled_from(["geneve", "vxlan"]),
    hook=st.sampled_from(["xdp", "tc"]),
    socket_path=st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
    )
    .filter(lambda name: name not in (".", ".."))
    .map(lambda name: Path("/run") / name),
    bootstrap=st.sampled_from(
        [(), ("/dns4/gw.example/tcp/7400", "/ip6/2001:db8::1/tcp/9/p2p/12D3KooWx")]
    ),
    relay=st.booleans(),
    endpoints_max=st.integers(1024, 1 << 24),
    subnets_max=st.integers(64, 1 << 20),
    gateways_max=st.integers(64, 1 << 16),
    ports_max=st.integers(64, 1 << 16),
    log_level=st.sampled_from(["debug", "error"]),
)


@given(CONFIGS)
def test_what_is_written_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: Config
) -> None:
    path = tmp_path_factory.mktemp("config") / "weft.toml"
    config = replace(config, path=path)
    if config.underlay is None and config.dataplane_mode == "xdp":
        config = replace(config, dataplane_mode="auto")
    write_config(config)
    assert path.read_text() == render_config(config)
    assert read_config(path) == config


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, MINIMAL))
    with pytest.raises(ConfigError, match="is there already"):
        write_config(config)
    assert config.path.read_text() == MINIMAL


def test_the_underlay_address_must_be_this_machines(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, MINIMAL))
    check_underlay(config)
    check_underlay(replace(config, underlay="127.0.0.1"))
    check_underlay(replace(config, underlay="::1"))
    with pytest.raises(ConfigError, match="2001:db8::77: no interface"):
        check_underlay(replace(config, underlay="2001:db8::77"))
    with pytest.raises(ConfigError, match=r"weft.toml: \[node\] underlay: 203.0.113.77"):
        check_underlay(replace(config, underlay="203.0.113.77"))
    path = written(tmp_path, MINIMAL + 'underlay = "203.0.113.77"\n')
    with pytest.raises(ConfigError, match=r"weft.toml:8: \[node\] underlay: 203.0.113.77: no"):
        check_underlay(read_config(path))


# ---- one table of fields ----


def test_the_page_says_what_the_table_says() -> None:
    page = (Path(__file__).parents[3] / "mesh" / "README.md").read_text()
    assert documented() in page, f"mesh/README.md needs this table:\n{documented()}"


def test_every_field_is_a_value_and_is_explained_in_the_file_that_is_written() -> None:
    path = Path("/etc/weft/weft.toml")
    config = parse_config(path, MINIMAL)
    others = {"path", "mesh_id", "socket_path"}
    assert {f.name for f in fields(Config)} - others == {f.attribute for f in FIELDS} - {
        "mesh_id", "socket",
    }  # fmt: skip
    text = render_config(config)
    assert max(map(len, text.splitlines())) <= 100
    words = " ".join(text.replace("\n# ", " ").split())
    for field in FIELDS:
        assert field.says in words and f"{field.name} =" in text
        assert field.change == "live" or field.why or field.table == "log"
        if field.default is not None:
            assert f"Default: {field.shown}." in words
        if field.unit:
            assert f"Unit: {field.unit}." in words


def test_a_default_that_is_shown_is_the_one_that_is_taken() -> None:
    config = parse_config(Path("/etc/weft/weft.toml"), MINIMAL)
    for field in FIELDS:
        if field.shown.startswith('"') or field.shown.isdecimal():
            shown: Any = tomllib.loads(f"x = {field.shown}")["x"]
            assert config.values()[field.attribute] == shown


def test_every_field_out_of_place_is_sent_where_it_belongs() -> None:
    for field in FIELDS:
        for table in TABLES:
            if all((f.table, f.name) != (table, field.name) for f in FIELDS):
                text = f"[{table}]\n{field.name} = 1\n"
                with pytest.raises(ConfigError, match=r"there is \[\w+\] \w+: move it there"):
                    parse_config(Path("/weft.toml"), text)
