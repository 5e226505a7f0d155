"""What nodes of former wire versions send and store is read by this one as what it meant.

`forms_v1.json` holds bytes that version 1 made: every frame and statement, a stored header, and all
frames of an exchange between two nodes; `forms_v2.json` every frame of version 2, and an exchange.
They are never made anew: a form that changes gets a file of its own beside them, and all are read
here. (That nodes of both get on is seen in `tests/mesh/node/test_former_release.py`.)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crdt.header import ChainId
from mesh.core import wire
from mesh.core.effects import Alarm, DropPeer
from mesh.core.persisting import load_header
from mesh.core.roster import Roster
from mesh.core.statements import Statement
from tests.mesh.core.test_replica import SHARD, Wire
from tests.mesh.core.test_wire import CHAIN, FRAMES, meant

FORMS: dict[int, dict[str, Any]] = {
    version: json.loads(Path(__file__).with_name(f"forms_v{version}.json").read_text())
    for version in range(wire.SPOKEN.lowest, wire.SPOKEN.highest + 1)
}


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("version", FORMS)
def test_frames_mean_what_they_meant_and_are_said_so(version: int, name: str) -> None:
    data = bytes.fromhex(FORMS[version]["frames"][name])
    assert wire.decode(data) == meant(name, version)
    assert wire.encode(FRAMES[name], version) == data


@pytest.mark.parametrize("version", FORMS)
def test_a_compressed_frame_is_read(version: int) -> None:
    assert wire.decode(bytes.fromhex(FORMS[version]["zipped"])) == FRAMES["heads"]


def test_a_stored_header_is_read() -> None:
    assert load_header(bytes.fromhex(FORMS[1]["stored_header"])) == CHAIN.header


def test_statements_are_taken_by_a_roster() -> None:
    blobs = {kind: bytes.fromhex(blob) for kind, blob in FORMS[1]["statements"].items()}
    roster = Roster.founded_by([blobs["mesh"], blobs["admin"], blobs["admit"]])
    roster.add(blobs.values())
    for blob in blobs.values():
        assert roster.get(Statement.parse(blob).hash) == blob


@pytest.mark.parametrize("version", FORMS)
def test_an_exchange_with_a_node_of_that_version_brings_all_it_has(version: int) -> None:
    """Its side of a conversation, as it was recorded: pushes, heads, and a big answer."""
    exchange = FORMS[version]["exchange"]
    mesh = Wire(2)
    reader = mesh.replicas[1]
    reader.peer_up(mesh.nodes[0], mesh.now_ns, wire.Versions(version, version))
    effects = reader.drain()
    for frame in exchange["frames"]:
        reader.receive(mesh.nodes[0], bytes.fromhex(frame), mesh.now_ns)
        effects += reader.drain()
    assert not any(isinstance(effect, Alarm | DropPeer) for effect in effects)
    assert {s: reader.lattice.digest(s).hex() for s in ("mesh", SHARD)} == exchange["digests"]
    read = reader.read(mesh.nodes[0], SHARD, bytes.fromhex(exchange["key"]))
    assert read is not None
    assert read.hex() == exchange["record"]
    chain = reader.lattice.latest(ChainId(mesh.nodes[0], SHARD))
    assert chain is not None
    assert len(chain.live) == exchange["records"]
