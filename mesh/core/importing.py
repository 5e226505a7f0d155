"""Many endpoints claimed at once: which of them are plainly new, judged for a VPC at a time.

Of a file of endpoints most are claimed by nobody. What `EndpointWriter.add` asks for each is asked
here once for a VPC, a subnet or all keys together, by the same rules; whatever is not plain, and
whatever is wrong, is left to `add`, which says what. It takes a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple, TypeAlias

from mesh.core import keys, model, validate
from mesh.core.author import Author
from mesh.core.errors import RequestError
from mesh.core.model import Claim
from mesh.core.ops import Put
from mesh.core.view import Vpc
from mesh.core.view.layout import Layout, claimable_span

Said: TypeAlias = tuple[str, str, str | None, tuple[tuple[str, str], ...]]
"""MAC, name, host, labels: what is asked for an endpoint."""


_NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class EndpointSpec(NamedTuple):
    """What somebody asks for; None and empty: not said. `vpc` is a name or an id.

    A tuple and not a dataclass: an import makes a million.
    """

    vpc: str
    ip: str
    mac: str | None = None
    name: str | None = None
    host: str | None = None
    labels: Mapping[str, str] = _NO_LABELS


class Fresh(NamedTuple):
    """A claim that may be made as it is asked for."""

    vpc: str
    key: bytes
    said: Said

    def put(self, hlc: int) -> Put:
        mac, name, host, labels = self.said
        if host is None and not labels:
            return Put(self.vpc, self.key, model.encode_plain(hlc, mac, name))
        return Put(self.vpc, self.key, model.encode(Claim(0, hlc, mac, name, host, labels)))


@dataclass(slots=True)
class _Where:
    """A VPC, and the addresses of the subnet looked at last that this site may claim."""

    vpc: Vpc
    layout: Layout
    macs: model.DerivedMacs
    low: bytes = b""
    high: bytes = b""


def said_of(spec: EndpointSpec, vpc: str, ip: str) -> Said:
    """What is asked for. Raises BadInput."""
    mac = spec.mac
    return (
        model.derived_mac(vpc, ip) if mac is None else validate.mac("mac", mac),
        validate.optional_name("name", spec.name),
        None if spec.host is None else validate.underlay_ip("host", spec.host),
        validate.labels("labels", spec.labels) if spec.labels else (),
    )


def fresh(author: Author, specs: Sequence[EndpointSpec]) -> dict[int, Fresh]:
    """Those of `specs`, by index, that are good and ask for what nobody claims or was evicted from.
    Of several for one address each is there."""
    view = author.view
    places: dict[str, _Where] = {}
    found: dict[str, dict[int, Fresh]] = {}
    for index, spec in enumerate(specs):
        try:
            where = places.get(spec.vpc)
            if where is None:
                vpc = view.vpc(spec.vpc)
                where = places[spec.vpc] = _Where(
                    vpc, view.catalog.layout(vpc.id), model.DerivedMacs(vpc.id)
                )
            ip = validate.pod_ip("ip", spec.ip)
            addr = keys.addr_of(ip)
            if len(addr) == 4 and _claims_here(author, where, addr):
                vpc_id = where.vpc.id
                bare = spec.mac is spec.name is spec.host is None and not spec.labels
                said = (where.macs.of(addr), "", None, ()) if bare else said_of(spec, vpc_id, ip)
                found.setdefault(vpc_id, {})[index] = Fresh(vpc_id, keys.ENDPOINT + addr, said)
        except RequestError:
            continue
    return {
        index: new
        for vpc_id, asked in found.items()
        for index, new in _unclaimed(author, vpc_id, asked).items()
    }


def _claims_here(author: Author, where: _Where, addr: bytes) -> bool:
    """Whether this site may claim the address."""
    if where.low <= addr <= where.high:
        return True
    subnet = where.layout.claimable(addr)
    if subnet is None or not where.vpc.admits(author.site) or not subnet.admits(author.site):
        return False
    where.low, where.high = claimable_span(subnet.cidr)
    return True


def _unclaimed(author: Author, vpc: str, asked: Mapping[int, Fresh]) -> dict[int, Fresh]:
    view = author.view
    wanted = list(dict.fromkeys(new.key for new in asked.values()))
    free = set(view.table.owners.sorted_out(vpc, wanted).free)
    # A record of this node's that cannot be read is no claim, and is not written over unseen.
    held = view.records(author.node, vpc, wanted)
    free.difference_update(key for key, record in zip(wanted, held, strict=True) if record)
    evicted = view.catalog.evicted(vpc)
    return {
        index: new for index, new in asked.items() if new.key in free and new.key[1:] not in evicted
    }
