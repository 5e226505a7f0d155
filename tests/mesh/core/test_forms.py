"""What nodes of wire version 1 send and store is read by this one as what it meant.

`forms_v1.json` holds bytes that version 1 made: every frame and statement, a stored header, and all
frames of an exchange between two nodes. It is never made anew: a form that changes gets a file of
its own beside it, and both are read here.
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
from tests.mesh.core.test_wire import CHAIN, FRAMES

FORMS: dict[str, Any] = json.loads(Path(__file__).with_name("forms_v1.json").read_text())


@pytest.mark.parametrize("name", FORMS["frames"])
def test_frames_mean_what_they_meant(name: str) -> None:
    assert wire.decode(bytes.fromhex(FORMS["frames"][name])) == FRAMES[name]


def test_a_compressed_frame_is_read() -> None:
    assert wire.decode(bytes.fromhex(FORMS["zipped"])) == FRAMES["heads"]


def test_a_stored_header_is_read() -> None:
    assert load_header(bytes.fromhex(FORMS["stored_header"])) == CHAIN.header


def test_statements_are_taken_by_a_roster() -> None:
    blobs = {kind: bytes.fromhex(blob) for kind, blob in FORMS["statements"].items()}
    roster = Roster.founded_by([blobs["mesh"], blobs["admin"], blobs["admit"]])
    roster.add(blobs.values())
    for blob in blobs.values():
        assert roster.get(Statement.parse(blob).hash) == blob


def test_an_exchange_with_a_node_of_version_1_brings_all_it_has() -> None:
    """Its side of a conversation, as it was recorded: pushes, heads, and a big answer."""
    exchange = FORMS["exchange"]
    mesh = Wire(2)
    reader = mesh.replicas[1]
    reader.peer_up(mesh.nodes[0], mesh.now_ns)
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
