"""What the transport tells the node. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from mesh.core.ops import NodeId
from mesh.core.wire import SPOKEN, Versions

Channel: TypeAlias = Literal["push", "sync"]
"""Two streams to each peer, so that a large anti-entropy answer never delays a push."""


Path: TypeAlias = Literal["direct", "relayed"]
"""Whether there is a connection of our own to the peer, or one inside another member's."""


@dataclass(frozen=True, slots=True)
class PeerUp:
    """There is a link to `node`, both streams are ready. Exactly one PeerDown follows."""

    node: NodeId
    addr: str
    inbound: bool
    path: Path = "direct"
    speaks: Versions = SPOKEN
    """Wire versions: frames are of one that this node speaks, too, or there is nothing to say."""


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The link to `node` has ended; every frame that came over it has been delivered before."""

    node: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class FrameIn:
    """A frame from `node`. Frames of one channel keep their order; channels have none between."""

    node: NodeId
    frame: bytes
    channel: Channel


@dataclass(frozen=True, slots=True)
class Overflow:
    """What was queued for `node` has been dropped: bring it up to date from the state instead."""

    node: NodeId


Event: TypeAlias = PeerUp | PeerDown | FrameIn | Overflow


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """One link as it is now. Times are nanoseconds of the wall clock, for display only."""

    node: NodeId
    addr: str
    """The other end as a multiaddr; of an inbound link its port is not a listening one."""
    path: Path
    inbound: bool
    rtt_ms: float | None
    """Smoothed round trip of the heartbeats; None until the first echo."""
    clock_offset_ns: int | None
    """The peer's wall clock ahead of ours, to within half a round trip; None until the first echo.
    Whatever the peer says it is: nothing is decided by it."""
    connected_since_ns: int
    last_rx_ns: int
    soft_state: bytes
    """What the peer says with its heartbeats, opaque here; empty until the first one."""
