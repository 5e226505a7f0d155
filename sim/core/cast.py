"""Who takes part in a run: the nodes of a scenario, those that join later, and copies of nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256

from mesh.core import ed25519
from mesh.core.bounds import Quotas
from mesh.core.roster import Roster
from mesh.core.statements import found_mesh
from sim.core.clock import SECOND_NS
from sim.core.events import Clone
from sim.core.releases import PRESENT
from sim.core.scenario import Scenario
from sim.core.signing import Ed25519, KeyedHashes, Signatures
from sim.core.world import Identity


def identities_of(scenario: Scenario) -> list[Identity]:
    """Members first, then those that join, then room for clones; a key follows from its name."""
    releases = {site.name: site.release for site in scenario.sites}
    sites = [site.name for site in scenario.sites for _ in range(site.gateways)]
    named = [*zip(scenario.node_names, sites, strict=True), *scenario.joining]
    found = [
        _identity(index, name, site, releases.get(site, PRESENT))
        for index, (name, site) in enumerate(named)
    ]
    clones = sum(isinstance(event, Clone) for event in scenario.events) + scenario.faults.clones
    for _ in range(clones):
        found.append(replace(found[0], index=len(found), name=f"copy-{len(found)}"))
    return found


def as_clone(identity: Identity, of: Identity) -> Identity:
    """`identity`'s machine, running as the node `of`."""
    return replace(of, index=identity.index, name=f"{of.name}-copy", underlay=identity.underlay)


@lru_cache(maxsize=4096)
def _identity(index: int, name: str, site: str, release: int) -> Identity:
    seed = sha256(b"sim node " + name.encode()).digest()
    key = ed25519.public_key(seed)
    underlay = f"192.{168 + (index >> 16)}.{index >> 8 & 255}.{index & 255}"
    return Identity(index, name, site, seed, key, ed25519.node_id(key), underlay, release)


def statements_of(identities: Sequence[Identity], quota: int) -> tuple[bytes, ...]:
    """The roster's statements: the first node founds the mesh and admits the others."""
    return _statements(tuple(identities), quota)


@lru_cache(maxsize=64)
def _statements(identities: tuple[Identity, ...], quota: int) -> tuple[bytes, ...]:
    first = identities[0]
    root = sha256(b"sim mesh").digest()
    roster = Roster.founded_by(found_mesh("sim", root, first.seed, first.name, first.site))
    quotas = Quotas(mesh=quota)
    # All of them together: members are read anew after each addition.
    admissions = [
        roster.admit(first.seed, identity.key, identity.name, identity.site, quotas=quotas)
        for identity in identities[1:]
    ]
    roster.add(admissions)
    return tuple(roster.statements())


def signatures_of(scenario: Scenario, identities: Sequence[Identity]) -> Signatures:
    if scenario.real_signatures:
        return Ed25519()
    return KeyedHashes(identity.seed for identity in identities)


def latencies_of(scenario: Scenario, identities: Sequence[Identity]) -> Callable[[int, int], int]:
    """From node to node; gateways of one site are on one LAN."""
    lan_ns = min(SECOND_NS // 1000, scenario.latency_ns)
    sites = [identity.site for identity in identities]

    def latency_ns(a: int, b: int) -> int:
        if sites[a] == sites[b]:
            return lan_ns
        return scenario.links.get((sites[a], sites[b]), scenario.latency_ns)

    return latency_ns
