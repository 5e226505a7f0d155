"""What the replica asks its shell to do, in order. A shell carries effects out; it decides nothing.

`Persist` comes before any `Send` that relies on it: a shell that cannot persist must not send.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeAlias

from crdt.delta import Puts
from crdt.header import ChainId, Epoch
from mesh.core.ops import NodeId


class Persist(NamedTuple):
    """Bring the stored branch (`chain`, `epoch`) to what `header` signs.

    First the rows of `relabel_from`, if any, become this branch's; `replace` empties it; then
    `deletes` and `puts` apply. The branches in `drop` are deleted last.
    A tuple and not a dataclass, as `Send`: one is made for each flush that comes.
    """

    chain: ChainId
    epoch: Epoch
    header: bytes
    puts: Puts
    deletes: tuple[bytes, ...]
    replace: bool = False
    relabel_from: Epoch | None = None
    drop: tuple[Epoch, ...] = ()


@dataclass(frozen=True, slots=True)
class DropBranches:
    """Delete stored branches of a chain."""

    chain: ChainId
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Make the stored branches of a chain these, whatever they were."""

    chain: ChainId
    branches: tuple[Persist, ...]


@dataclass(frozen=True, slots=True)
class PersistStatements:
    """Add roster statements to the store, and delete those that left the set."""

    statements: tuple[bytes, ...]
    left: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """Delete every stored branch of `node`, and where it was reached."""

    node: NodeId


class Send(NamedTuple):
    """Give `frame` to `peer`: pushes at once, the rest beside them without delaying them."""

    peer: NodeId
    frame: bytes
    push: bool


ALARMS: Final = (
    "chain.disproved",
    "chain.forked",
    "chain.mismatch",
    "chain.over_quota",
    "key.contested",
    "node.cloned",
    "peer.incompatible",
    "peer.misbehaved",
)
"""The events of all alarms that there are."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """Tell people. `event` is one of `ALARMS`."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AlarmOver:
    """What people were told of is over."""

    event: str


@dataclass(frozen=True, slots=True)
class DropPeer:
    """Close the link to a peer that broke the protocol, or is no active member any more."""

    peer: NodeId
    reason: str


@dataclass(frozen=True, slots=True)
class MembersChanged:
    """The roster grew: membership, and what the view may read, may differ."""


Stored: TypeAlias = Persist | DropBranches | Rewrite | PersistStatements | Forget
"""What is the store's to carry out."""

Effect: TypeAlias = Stored | Send | Alarm | AlarmOver | DropPeer | MembersChanged
