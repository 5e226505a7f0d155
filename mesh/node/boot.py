"""From disk to a replica: what a starting node knows before it has met anybody."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from crdt.chain import Chain, RootMismatch
from crdt.delta import BadDelta
from crdt.header import ChainId
from crdt.lattice import Lattice
from mesh.core import ed25519
from mesh.core.effects import DropBranches
from mesh.core.errors import BadInput, NotReady, PeerError
from mesh.core.members import Member
from mesh.core.persisting import load_header
from mesh.core.roster import Roster
from mesh.node.config import Config
from mesh.node.keys import next_seed, read_seed, take_next
from mesh.node.log import event
from mesh.node.salvage import REBUILT, rebuild
from mesh.node.store import Store, StoreDamaged, StoredBranch, StoreError

HEARS_FIRST: Final = "hears-first"
"""Key in the store's `meta`: not empty while peers are still to tell what this node wrote, because
something of that was damaged here."""

LACKS: Final = "lacks"
"""The same of what anybody wrote."""

_logger = logging.getLogger("weft.node")


@dataclass(frozen=True, slots=True)
class Booted:
    """A node's identity, its open store, and what is in it."""

    store: Store
    seed: bytes
    member: Member
    roster: Roster
    lattice: Lattice
    damaged: int
    """stored branches that did not verify and were left out: peers have them"""
    hears_first: bool
    """something that this node wrote may be lost here: peers are to tell before it writes"""
    lacks: bool
    """something that somebody wrote may be: peers are to tell before anything is dropped"""


def boot(config: Config) -> Booted:
    """Read the key, open the store; a damaged one is made anew of what can be read.

    Raises BadInput (wrong files) or NotReady (a store that is in use, or cannot be made anew).
    """
    try:
        store = Store(config.store_path)
    except StoreDamaged as error:
        store = rebuild(config.store_path, error)
    try:
        try:
            return _read(config, store)
        except StoreDamaged as error:
            store.close()
            store = rebuild(config.store_path, error)
            return _read(config, store)
    except BaseException:
        store.close()
        raise


def _read(config: Config, store: Store) -> Booted:
    seed = read_seed(config.node_key_path, "node")
    stored = store.load()
    try:
        roster = Roster.founded_by(stored.statements)
    except PeerError as error:
        raise NotReady(
            f"{config.store_path}: {error}; join the mesh again with a new directory"
        ) from None
    seed = _in_use(config, roster, seed)
    member = _member(config, roster, seed)
    node = member.node
    lattice = Lattice()
    damaged: list[ChainId] = []
    drops: list[DropBranches] = []
    for branch in stored.branches:
        if not _restore(lattice, roster, branch):
            damaged.append(branch.chain)
            drops.append(DropBranches(branch.chain, (branch.epoch,)))
    lost = any(id.node == node for id in damaged)
    if drops:
        # Rows of no use would be in the way of the branch when it comes back from a peer. That
        # something is missing is known from them, and has to be known at the next start, too.
        with suppress(StoreError):
            if lost:
                store.set_meta(HEARS_FIRST, b"1")
            store.set_meta(LACKS, b"1")
            store.apply(drops)
    hears_first = lost or any(store.get_meta(key) for key in (REBUILT, HEARS_FIRST))
    lacks = bool(damaged) or any(store.get_meta(key) for key in (REBUILT, LACKS))
    return Booted(store, seed, member, roster, lattice, len(damaged), hears_first, lacks)


def _in_use(config: Config, roster: Roster, seed: bytes) -> bytes:
    """The key that the stored statements say is in use: the next one, if the node was stopped
    while it took its place."""
    if roster.node_of_key(ed25519.public_key(seed)) is None:
        following = next_seed(config.node_key_path)
        if following is not None and roster.node_of_key(ed25519.public_key(following)) is not None:
            try:
                take_next(config.node_key_path)
            except OSError as error:
                raise NotReady(
                    f"{config.node_key_path}: cannot be replaced by the key that is in use"
                    f" ({error.strerror}): mend that, then start again"
                ) from None
            return following
    return seed


def _member(config: Config, roster: Roster, seed: bytes) -> Member:
    if roster.mesh_id != config.mesh_id:
        raise BadInput(
            f"{config.where('mesh', 'id')}: is {config.mesh_id.hex()}, and the store is of mesh"
            f" {roster.mesh_id.hex()}; put the right files together"
        )
    key = ed25519.public_key(seed)
    node = roster.node_of_key(key)
    member = None if node is None else roster.members().get(node)
    if member is None and (had := roster.had_key(key)) is not None:
        raise BadInput(
            f"{config.node_key_path}: the key of {had.name} was replaced by another: put that one"
            " there, or restore a snapshot that was made since"
        )
    if member is None:
        raise BadInput(f"{config.node_key_path}: the key of no member; restore the right key")
    if member.state != "active":
        raise BadInput(f"node {member.name} was retired from the mesh: join with a new directory")
    if (member.name, member.site) != (config.node_name, config.site):
        raise BadInput(
            f"{config.where('node', 'name')}: says node {config.node_name} at site {config.site},"
            f" and it was admitted as {member.name} at {member.site}; write these"
        )
    return member


def _restore(lattice: Lattice, roster: Roster, branch: StoredBranch) -> bool:
    """Take a stored branch into the lattice if it is what its writer signed."""
    try:
        header = load_header(branch.header)
        writer = roster.members().get(header.chain.node)
        if writer is not None and writer.state == "forgotten":
            return True  # the replica has its rows deleted
        if writer is None or not roster.signed(header):
            raise ValueError("signature")
        lattice.add(Chain.restore(header, branch.records))
    except (ValueError, BadDelta, RootMismatch) as error:
        event(
            _logger,
            "store.branch_damaged",
            level=logging.ERROR,
            node=branch.chain.node,
            shard=branch.chain.shard,
            reason=error,
        )
        return False
    return True
