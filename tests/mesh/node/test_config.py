"""weft.toml: what is accepted, and that every refusal names file, field and fix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.node.config import (
    CONFIG_BYTES_MAX,
    Config,
    ConfigError,
    check_underlay,
    default_listen,
    read_config,
    render_config,
    write_config,
)

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
        listen=("/ip4/0.0.0.0/tcp/7400",),
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
        (None, "/ip4/0.0.0.0/tcp/7400"),
        ("192.0.2.1", "/ip4/192.0.2.1/tcp/7400"),
    ],
)
def test_without_listen_the_underlay_address_is_used(underlay: str | None, listen: str) -> None:
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
        ('site = "a"', 'site = "a"\nunderlay = "2001:db8::1"', "[node] underlay"),
        ('site = "a"', 'site = "a"\nlisten = "/ip4/0.0.0.0/tcp/7400"', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = []', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = [7400]', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = ["/ip4/0.0.0.0/udp/7400"]', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = ["/ip4/0.0.0.0/tcp/65536"]', "[node] listen"),
        ('site = "a"', 'site = "a"\nlisten = ["/ip6/0.0.0.0/tcp/7400"]', "[node] listen"),
        ('site = "a"', 'site = "a"\nsight = "b"', "[node] sight"),
        ('site = "a"', 'site = "a"\n[dataplane]\nmode = "fast"', "[dataplane] mode"),
        ('site = "a"', 'site = "a"\n[dataplane]\nwan_if = "sixteen-chars-xx"', "wan_if"),
        ('site = "a"', 'site = "a"\n[dataplane]\nwan_if = "a/b"', "[dataplane] wan_if"),
        ('site = "a"', 'site = "a"\n[api]\nsocket = ""', "[api] socket"),
        ('site = "a"', f'site = "a"\n[api]\nsocket = "/{"x" * 107}"', "[api] socket"),
        ('site = "a"', 'site = "a"\n[metrics]\nport = 1', "[metrics]"),
        ("[mesh]", 'stray = "x"\n[mesh]', "stray"),
        ("[mesh]", "[mesh", "not TOML"),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, old: str, new: str, field: str) -> None:
    assert old in MINIMAL
    path = written(tmp_path, MINIMAL.replace(old, new))
    with pytest.raises(ConfigError) as refusal:
        read_config(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: ")
    assert field in message
    assert "\n" not in message
    assert message.count(": ") >= 2, "file and field, what is wrong, the fix"


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "missing.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)
    (tmp_path / "big.toml").write_text("#" * (CONFIG_BYTES_MAX + 1))
    with pytest.raises(ConfigError, match="larger than"):
        read_config(tmp_path / "big.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')
    with pytest.raises(ConfigError, match="not TOML"):
        read_config(tmp_path / "latin.toml")


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True)
CONFIGS = st.builds(
    Config,
    path=st.just(Path("/etc/weft/weft.toml")),
    mesh_name=NAMES,
    mesh_id=st.binary(min_size=16, max_size=16),
    node_name=NAMES,
    site=NAMES,
    underlay=st.none() | st.just("192.0.2.9"),
    listen=st.sampled_from([("/ip4/0.0.0.0/tcp/1",), ("/ip4/10.0.0.1/tcp/9", "/ip6/::1/tcp/9")]),
    dataplane_mode=st.sampled_from(["auto", "xdp", "memory"]),
    wan_if=st.none() | st.just("eth0"),
    socket_path=st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
    )
    .filter(lambda name: name not in (".", ".."))
    .map(lambda name: Path("/run") / name),
)


@given(CONFIGS)
def test_what_is_written_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: Config
) -> None:
    path = tmp_path_factory.mktemp("config") / "weft.toml"
    config = replace(config, path=path)
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
    with pytest.raises(ConfigError, match=r"\[node\] underlay: 203.0.113.77: no interface"):
        check_underlay(replace(config, underlay="203.0.113.77"))
