"""Log events: what a line looks like, and that a peer cannot fill the disk."""

from __future__ import annotations

import logging

import pytest

from mesh.node.log import LimitedLog, event

LOGGER = logging.getLogger("weft.test")


def test_a_line_names_the_event_and_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        event(LOGGER, "link.up", peer=b"\x01\x02", inbound=True, rtt_ms=1.5, reason=None)
    assert caplog.messages == ["event=link.up peer=0102 inbound=true rtt_ms=1.5"]
    assert caplog.records[0].__dict__["fields"] == {
        "event": "link.up",
        "peer": "0102",
        "inbound": True,
        "rtt_ms": 1.5,
    }


def test_text_of_a_peer_stays_inside_its_field(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        event(LOGGER, "link.down", reason='x"\nevent=forged peer=me')
    assert caplog.messages == [r'event=link.down reason="x\"\nevent=forged peer=me"']


def test_a_flood_becomes_a_number(caplog: pytest.LogCaptureFixture) -> None:
    now_s = 0.0
    log = LimitedLog(LOGGER, lambda: now_s, burst=3, interval_s=10)
    with caplog.at_level(logging.INFO):
        logged = [log.event("bad.frame") for _ in range(100)]
        assert logged == [True] * 3 + [False] * 97
        assert log.event("other.event")
        now_s = 10.0
        assert log.event("bad.frame") and not log.event("bad.frame")
    assert caplog.messages[-1] == "event=bad.frame suppressed=97"
