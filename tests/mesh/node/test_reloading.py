"""What `weft reload` takes up, what it names, and that a file with a mistake changes nothing."""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mesh.cli import app
from mesh.node.config import read_config, render_config
from mesh.node.config_fields import FIELDS
from tests.mesh.api_nodes import Running, founded, until
from tests.ports import free_port

Change = Callable[..., None]


@pytest.fixture
def change(first: Running) -> Iterator[Change]:
    """Rewrites the file of the node; it is as before at the end, and in use as before."""
    before = first.config.read_text()

    def write(**values: Any) -> None:
        first.config.write_text(render_config(replace(read_config(first.config), **values)))

    yield write
    first.config.write_text(before)
    assert first.ask("POST", "/v1/reload", {})[0] == 200
    logging.getLogger("weft").setLevel(logging.NOTSET)


def reload(first: Running, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    code = app.run(["reload", "--socket", str(first.socket), *options])
    out, err = capsys.readouterr()
    return code, out + err


def fetch(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_nothing_changed_is_nothing_done(
    first: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reload(first, capsys) == (0, "FIELD  RESULT  WHY\n")


def test_live_fields_are_taken_up(
    first: Running, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    change(log_level="error", metrics_listen=f"127.0.0.1:{port}")
    code, said = reload(first, capsys)
    assert code == 0 and said.count("applied") == 2
    assert logging.getLogger("weft").level == logging.ERROR
    assert first.node.config.metrics_listen == f"127.0.0.1:{port}"
    status, text = fetch(port, "/metrics")
    assert status == 200 and "weft_ready 1" in text
    assert fetch(port, "/v1/status")[0] == 200
    for path in ("/v1/endpoints", "/v1/roster", "/v1/openapi.json", "/v1/members"):
        assert fetch(port, path)[0] == 404
    moved = free_port()
    change(metrics_listen=f"127.0.0.1:{moved}")
    assert reload(first, capsys)[0] == 0
    assert fetch(moved, "/metrics")[0] == 200
    with pytest.raises(ConnectionRefusedError):
        fetch(port, "/metrics")
    change(metrics_listen=None)
    assert reload(first, capsys)[0] == 0
    with pytest.raises(ConnectionRefusedError):
        fetch(moved, "/metrics")


def test_links_are_taken_up(
    first: Running, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    change(bootstrap=("/dns4/gw.example.invalid/tcp/7400",), relay=False)
    code, said = reload(first, capsys)
    assert code == 0 and said.count("applied") == 2
    transport = first.node.transport
    assert list(transport._dialler._bootstrap) == ["/dns4/gw.example.invalid/tcp/7400"]
    assert not transport.traversal.relay.willing


def test_what_needs_a_restart_is_named_and_the_rest_taken_up(
    first: Running, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    change(log_level="debug", endpoints_max=4096, site="elsewhere")
    code, said = reload(first, capsys)
    assert code == 1
    rows = {line.split("  ")[0]: line for line in said.splitlines()}
    assert "needs a restart" in rows["[dataplane] endpoints_max"]
    assert "cannot change" in rows["[node] site"]
    assert "applied" in rows["[log] level"]
    assert "restart the node" in said
    config = first.node.config
    assert (config.log_level, config.site, config.endpoints_max) == ("debug", "a", 1 << 18)
    assert reload(first, capsys)[0] == 1, "it is named until it is so"


def test_a_mistake_changes_nothing_and_is_told(
    first: Running, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    change(log_level="debug")
    with first.config.open("a") as file:
        file.write("\n[mesh2]\nx = 1\n[mesh3]\n")
    before = first.node.config
    code, said = reload(first, capsys)
    assert code == 2 and said.count("\n") == 2
    assert all(line.startswith(f"weft: {first.config}:") for line in said.splitlines())
    assert first.node.config == before


def test_an_address_that_cannot_be_had_changes_nothing(
    first: Running, change: Change, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        change(log_level="debug", metrics_listen=f"127.0.0.1:{taken.getsockname()[1]}")
        before = first.node.config
        code, said = reload(first, capsys)
        assert code == 2 and "[metrics] listen" in said and "in use" in said
        assert first.node.config == before


def test_every_field_says_what_a_change_takes() -> None:
    live = {field.title for field in FIELDS if field.change == "live"}
    assert {"[log] level", "[metrics] listen"} <= live
    assert all(bool(field.why) == (field.change != "live") for field in FIELDS)


def test_sighup_reloads_and_does_not_stop_the_node(tmp_path: Path) -> None:
    config = founded(tmp_path)
    log = tmp_path / "log"

    def said(text: str) -> Callable[[], bool]:
        return lambda: text in log.read_text()

    with log.open("w") as output:
        command = [sys.executable, "-m", "mesh.cli", "run", "--config", str(config)]
        node = subprocess.Popen(command, stderr=output, stdout=output)
        try:
            until(said("event=node.started"), "started")
            louder = config.read_text().replace('level = "info"', 'level = "debug"')
            config.write_text(louder + "[oops]\n")
            os.kill(node.pid, signal.SIGHUP)
            until(said("event=config.refused"), "refused")
            assert "[oops]: no such table" in log.read_text()
            config.write_text(louder)
            os.kill(node.pid, signal.SIGHUP)
            until(said('event=config.reloaded fields="[log] level"'), "reloaded")
            node.send_signal(signal.SIGTERM)
            assert node.wait(60) == 0
        finally:
            node.kill()
            node.wait(60)
