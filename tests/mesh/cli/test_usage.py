"""What the command does without a node: usage, wrong input, exit codes, start-up cost, plug-ins."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mesh.cli import app
from mesh.cli.output import Output, cell, heading, printable

WEFT = [sys.executable, "-m", "mesh.cli"]


def weft(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = app.run(args)
    out, err = capsys.readouterr()
    return code, out, err


def one_line(err: str) -> bool:
    return err.startswith("weft: ") and err.endswith("\n") and err.count("\n") == 1


ALL = [
    ["init"],
    ["invite"],
    ["join"],
    ["run"],
    ["reload"],
    ["snapshot"],
    ["restore"],
    ["rotate"],
    ["retire"],
    ["forget"],
    ["leave"],
    *(["admin", name] for name in ("add", "rm", "log")),
    ["status"],
    ["diagnose"],
    ["members"],
    *(["vpc", name] for name in ("add", "ls", "get", "set", "rm")),
    *(["subnet", name] for name in ("add", "ls", "get", "rm")),
    *(["endpoint", name] for name in ("add", "ls", "get", "rm", "move", "import")),
    *(["peering", name] for name in ("add", "ls", "rm")),
    *(["conflicts", name] for name in ("ls", "resolve")),
    *(["state", name] for name in ("digest", "dump", "verify", "history", "diff")),
    ["watch"],
    ["route", "explain"],
    *(["dataplane", name] for name in ("show", "audit", "stats", "drops")),
]


@pytest.mark.parametrize("command", ALL, ids=" ".join)
def test_every_command_has_help_and_refuses_what_it_does_not_know(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, out, err = weft(capsys, *command, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: weft {' '.join(command)}" in out
    code, out, err = weft(capsys, *command, "--no-such-option")
    assert (code, out) == (2, "")
    assert one_line(err)


def test_all_commands_are_in_the_list() -> None:
    listed: set[str] = set()
    with click.Context(app.root) as ctx:
        for name in app._MODULES:
            command = app.root.get_command(ctx, name)
            if isinstance(command, click.Group):
                listed.update(f"{name} {inner}" for inner in command.commands)
            else:
                listed.add(name)
    assert listed == {" ".join(command) for command in ALL}


@pytest.mark.parametrize("command", [c for c in ALL if c[0] not in ("run",)], ids=" ".join)
def test_every_command_that_prints_takes_an_output_form(
    capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    code, _, err = weft(capsys, *command, "-o", "xml")
    assert (code, one_line(err)) == (2, True)
    assert "--output" in err


@pytest.mark.parametrize(
    "args",
    [
        ["bogus"],
        ["--bogus"],
        ["vpc"],
        ["vpc", "bogus"],
        ["vpc", "add"],
        ["vpc", "add", "red"],
        ["vpc", "add", "red", "--vni", "x", "--cidr", "10.0.0.0/16"],
        ["vpc", "add", "Red", "--vni", "1", "--cidr", "10.0.0.0/16"],
        ["vpc", "add", "red", "--vni", "1", "--cidr", "10.0.0.0/16", "--tenant", ""],
        ["vpc", "get"],
        ["vpc", "get", "a/b"],
        ["vpc", "get", ".."],
        ["vpc", "get", "a", "b"],
        ["vpc", "set", "red"],
        ["vpc", "rm", "red", "--force=1"],
        ["subnet", "get", "s"],
        ["subnet", "add", "s", "--vpc", "red"],
        ["endpoint", "get", "--vpc", "red", "10.0.0.256"],
        ["endpoint", "get", "--vpc", "red", "10.0.0.01"],
        ["endpoint", "get", "--vpc", "red"],
        ["endpoint", "add", "--vpc", "red", "--ip", "x"],
        ["endpoint", "add", "--vpc", "red", "--ip", "10.0.0.1", "--host", "h"],
        ["endpoint", "rm", "10.0.0.1"],
        ["endpoint", "import", "/nonexistent"],
        ["endpoint", "import", "/"],
        ["peering", "add", "a"],
        ["conflicts", "resolve", "endpoint/a/10.0.0.1"],
        ["conflicts", "resolve", "k", "--keep", "A B"],
        ["state", "diff"],
        ["state", "digest", "--shard", "a b"],
        ["route", "explain", "10.0.0.1"],
        ["invite", "--ttl", "15"],
        ["invite", "--ttl", "m"],
        ["invite", "--ttl", "-5m"],
        ["invite", "--site", "A"],
        ["invite", "--quota-mesh", "0"],
        ["invite", "--quota-vpc", "1000001"],
        ["status", "--wait", "-1"],
        ["status", "--wait", "soon"],
        ["status", "--wait", "nan"],
        ["run"],
        ["run", "--config", "/nonexistent"],
        ["init", "--dir", "/tmp/x", "--mesh", "m", "--site", "s", "--node", "N"],
        ["join", "--dir", "/tmp/x", "--site", "s", "--node", "n"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_exit_2(
    capsys: pytest.CaptureFixture[str], args: list[str], tmp_path: Path
) -> None:
    os.environ["WEFT_SOCKET"] = str(tmp_path / "none.sock")
    try:
        code, out, err = weft(capsys, *args)
    finally:
        del os.environ["WEFT_SOCKET"]
    assert (code, out) == (2, "")
    assert one_line(err), err
    assert "Traceback" not in err


NODE = ["--site", "s", "--node", "n"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--underlay", "10.0.0"),
        ("--underlay", "0.0.0.0"),
        ("--underlay", "fe80::1"),
        ("--listen", "tcp://0.0.0.0:1"),
        ("--listen", "/ip4/0.0.0.0/tcp/0"),
        ("--socket", "x" * 200),
        ("--socket", ""),
        ("--mesh", "M"),
    ],
)
def test_init_refuses_what_cannot_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: str, value: str
) -> None:
    args = ["init", "--dir", str(tmp_path / "d"), *NODE, "--mesh", "m", option, value]
    code, _, err = weft(capsys, *args)
    assert (code, one_line(err)) == (2, True)
    assert option in err
    assert list(tmp_path.iterdir()) == []


def init(capsys: pytest.CaptureFixture[str], directory: Path) -> tuple[int, str, str]:
    return weft(capsys, "init", "--dir", str(directory), *NODE, "--mesh", "m")


def test_init_makes_a_private_directory_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    home = tmp_path / "deep" / "d"
    assert init(capsys, home)[0] == 0
    assert home.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in home.iterdir()}
    assert set(modes) == {"weft.toml", "node.key", "root.key", "store.db", "store.db.contacts"}
    assert (modes["node.key"], modes["root.key"], modes["store.db"]) == (0o600,) * 3
    before = {path.name: path.read_bytes() for path in home.iterdir()}
    code, _, err = init(capsys, home)
    assert (code, one_line(err)) == (1, True)
    assert {path.name: path.read_bytes() for path in home.iterdir()} == before
    assert [path.name for path in home.parent.iterdir()] == ["d"], "nothing is left beside it"


def test_init_beside_other_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    home = tmp_path / "d"
    home.mkdir(mode=0o755)
    assert init(capsys, home)[0] == 0, "an empty directory is made private"
    assert home.stat().st_mode & 0o777 == 0o700
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    (other / "notes").write_text("mine")
    assert init(capsys, other)[0] == 0
    assert (other / "notes").read_text() == "mine"
    wide = tmp_path / "wide"
    wide.mkdir()
    wide.chmod(0o755)
    (wide / "notes").write_text("mine")
    code, _, err = init(capsys, wide)
    assert (code, "chmod 700" in err) == (2, True)
    assert [path.name for path in wide.iterdir()] == ["notes"]
    (tmp_path / "file").write_text("")
    assert init(capsys, tmp_path / "file")[0] == 2


def test_without_a_node_it_says_what_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = str(tmp_path / "none.sock")
    for command in (["status"], ["vpc", "ls"], ["status", "--wait", "0.2"]):
        code, out, err = weft(capsys, *command, "--socket", missing)
        assert (code, out, one_line(err)) == (3, "", True)
        assert missing in err and "weft run" in err
    (tmp_path / "file").write_text("")
    assert weft(capsys, "status", "--socket", str(tmp_path / "file"))[0] == 3
    assert weft(capsys, "status", "--socket", str(tmp_path))[0] == 3
    assert weft(capsys, "status", "--socket", "x" * 300)[0] == 3


def test_a_failure_inside_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_text: str) -> int:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr("mesh.cli.lifecycle._duration_s", lambda _what, text: fail(text))
    code, _, err = weft(capsys, "invite")
    assert (code, one_line(err)) == (3, True)


def test_bare_weft_and_help_show_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = weft(capsys)
    assert (code, err) == (0, "")
    assert weft(capsys, "--help") == (0, out, "")
    for name in app._MODULES:
        assert f"\n  {name} " in out


HEAVY = ("libp2p", "trio", "starlette", "hypercorn", "nacl", "msgpack", "rich", "sqlite3")


@pytest.mark.parametrize("args", [["--help"], ["status"], ["vpc", "ls"], ["endpoint", "--help"]])
def test_what_people_type_often_imports_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from mesh.cli.app import run\n"
        f"run({args!r})\n"
        f"print('loaded', [m for m in {HEAVY!r} if m in sys.modules])\n"
    )
    environment = {**os.environ, "WEFT_SOCKET": str(tmp_path / "none.sock")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "loaded []", done.stderr


def test_the_module_and_the_script_are_one_command() -> None:
    for command in (WEFT, [str(Path(sys.executable).parent / "weft")]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout.split()[0]) == (0, "weft")


def test_a_closed_pipe_is_no_failure() -> None:
    child = subprocess.Popen(
        [*WEFT, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert (child.wait(60), child.stderr.read()) == (0, "")
    child.stderr.close()


# ---- plug-ins -------------------------------------------------------------------------------

PLUGIN = '''"""Says hello."""
import click

@click.command("hello")
def hello() -> None:
    """Says hello, loudly."""
    click.echo("HELLO")
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two plug-ins: one that works, one that does not."""
    (tmp_path / "hello_plugin.py").write_text(PLUGIN)
    (tmp_path / "broken_plugin.py").write_text('"""Breaks."""\nraise ImportError("no luck")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [
        importlib.metadata.EntryPoint("hello", "hello_plugin:hello", app.PLUGIN_GROUP),
        importlib.metadata.EntryPoint("broken", "broken_plugin:broken", app.PLUGIN_GROUP),
        importlib.metadata.EntryPoint("gone", "gone_plugin:gone", app.PLUGIN_GROUP),
        importlib.metadata.EntryPoint("vpc", "hello_plugin:hello", app.PLUGIN_GROUP),
    ]
    monkeypatch.setattr(app, "_plugins", lambda: {point.name: point for point in points})
    yield
    sys.modules.pop("hello_plugin", None)


@pytest.mark.usefixtures("plugins")
def test_plugins_are_named_without_being_imported(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = weft(capsys, "--help")
    assert code == 0
    assert "Says hello." in out and "Breaks." in out and "(does not load)" in out
    assert "hello_plugin" not in sys.modules
    assert weft(capsys, "hello")[1] == "HELLO\n"
    assert "hello_plugin" in sys.modules


@pytest.mark.usefixtures("plugins")
def test_a_plugin_that_does_not_load_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("broken", "gone"):
        code, _, err = weft(capsys, name)
        assert (code, one_line(err)) == (3, True)
        assert name in err


@pytest.mark.usefixtures("plugins")
def test_a_plugin_does_not_take_a_builtin_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert weft(capsys, "vpc", "--help")[1].startswith("Usage: weft vpc")


# ---- output ---------------------------------------------------------------------------------


def test_tables_are_aligned_and_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "a", "last_sync": 1.25, "tags": ["x", "y"]},
        {"name": "long" * 60, "last_sync": 10.0, "tags": []},
    ]
    Output("table").rows(rows, ("name", "last_sync", "tags"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "NAME" + " " * 238 + "LAST-SYNC  TAGS"
    assert lines[1] == "a" + " " * 247 + "1.2  x,y"
    assert lines[2] == "long" * 60 + " " * 7 + "10.0  -"


def test_an_empty_table_has_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    Output("table").rows([], ("key", "since"))
    assert capsys.readouterr().out == "KEY  SINCE\n"
    Output("json").rows([], ("key", "since"))
    assert capsys.readouterr().out == "[]\n"


def test_cells() -> None:
    shown = [cell(v) for v in (None, "", [], True, False, 0, 1.26, ["a", None], {"k": 1})]
    assert shown == ["-", "-", "-", "yes", "no", "0", "1.3", "a,-", "k=1"]
    assert heading("last_sync") == "LAST-SYNC"


def test_what_others_wrote_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\nc") == "a\\x1b[2Jb\\nc"
    assert printable("grün") == "grün"
