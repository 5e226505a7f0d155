"""Drops that people can see: one packet of many, as either backend tells of it."""

from __future__ import annotations

from dataclasses import dataclass

from dataplane.reasons import DropReason

DROPS_TAKEN_MAX = 1000
"""Events handed over in one call; what is left comes with the next."""


@dataclass(frozen=True, slots=True)
class DropEvent:
    """A dropped packet, which stands for `packets` with the same reason since the last event.

    Texts are empty where they are not known: what a stranger sends is not looked into.
    """

    at_ns: int  # wall clock
    reason: DropReason
    packets: int
    vni: int  # the forwarding domain, 0: not known
    src: str  # inner addresses; of ARP, the sender's and the one asked for
    dst: str
    outer: str  # underlay address of the peer that it came from, or would have gone to
    ifname: str  # that it came in by
