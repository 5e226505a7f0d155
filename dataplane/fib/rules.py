"""How one row follows from facts. Every judgement of the data plane is in this file.

- A group is a site (all its gateways; those that are up, or all when none is, so a site that is
  cut off goes on forwarding) or one gateway (for what is directly attached to it).
- An endpoint row points to a group by number, so a site's failure rewrites one row.
- An address that nobody claims goes to its subnet's home from elsewhere, and is dropped at home; in
  a stretched subnet it is dropped everywhere.
- A VPC that lost its VNI has rows only for what is attached here, under a number of its own.
- A site is entitled to send for a VPC that admits it, if that may use its VNI between sites.
- A local port is blocked unless its address is claimed for this machine: it would send with
  another's address, or one that was taken from it. The port stays, so that nothing else carries
  what it sends, while its VPC is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from dataplane.fib.facts import AttachmentFact, EndpointFact, GatewayFact, SubnetFact, VpcFact
from dataplane.fib.rows import (
    ANY_SITE,
    GROUP_GATEWAYS_MAX,
    NO_GROUP,
    VNI_MAX,
    EndpointRow,
    EntitledKey,
    EntitledRow,
    GatewayRow,
    GroupRow,
    PortRow,
    SubnetKey,
    SubnetRow,
    address_of,
    mac_bytes,
    prefix_of,
)

ID_MAX: Final = 1 << 32
PRIVATE_DOMAIN_MIN: Final = VNI_MAX + 1
"""Forwarding domains from here on have no VNI and are never seen in a tunnel."""


def site_group(site: str) -> bytes:
    return b"site/" + site.encode()


def gateway_group(node: bytes) -> bytes:
    return b"gateway/" + node.hex().encode()


def endpoint_group(site: str, gateway: bytes | None) -> bytes:
    """The name of the group that leads to an endpoint at the site, or attached to the gateway."""
    return site_group(site) if gateway is None else gateway_group(gateway)


def subnet_group(fact: SubnetFact) -> bytes | None:
    """The name of the group that leads to a subnet's home; None for a stretched one."""
    return site_group(fact.sites[0]) if len(fact.sites) == 1 else None


def claimed_here(site: str, gateway: bytes | None, self_id: bytes, self_site: str) -> bool:
    """Whether an endpoint at the site, or attached to the gateway, is for this machine."""
    return site == self_site if gateway is None else gateway == self_id


def gateway_row(fact: GatewayFact, self_site: str, number: Callable[[bytes], int]) -> GatewayRow:
    """`number` gives a group's."""
    return GatewayRow(
        fact.id,
        fact.site,
        address_of(fact.underlay),
        group=number(gateway_group(fact.id)),
        site_group=number(site_group(fact.site)),
        own_site=fact.site == self_site,
        vxlan=fact.vxlan,
    )


def group_row(
    name: bytes, site_group: int, gateways: Iterable[GatewayFact], number: Callable[[bytes], int]
) -> GroupRow | None:
    """The group of these gateways of a site; None without any. `number` gives a node's gateway
    id."""
    members = list(gateways)
    preferred = [fact for fact in members if fact.up] or members
    if not preferred:
        return None
    ids = sorted(number(fact.id) for fact in preferred)[:GROUP_GATEWAYS_MAX]
    return GroupRow(name.decode(), tuple(ids), site_group)


def entitled_rows(
    fact: VpcFact, *, forwarded: bool, number: Callable[[bytes], int]
) -> dict[EntitledKey, EntitledRow]:
    """Who may send for a VPC. `number` gives a group's."""
    if not forwarded:
        return {}
    if not fact.sites:
        return {EntitledKey(fact.vni, ANY_SITE): EntitledRow("")}
    return {EntitledKey(fact.vni, number(site_group(s))): EntitledRow(s) for s in fact.sites}


def endpoint_row(
    claim: EndpointFact | None,
    attachment: AttachmentFact | None,
    *,
    here: bool,
    forwarded: bool,
    number: Callable[[bytes], int],
) -> EndpointRow | None:
    """The row of one address. `here`: there is a claim, for this machine."""
    if attachment is not None and here:
        return local_row(attachment)
    if claim is None or not forwarded:
        return None
    group = NO_GROUP if here else number(endpoint_group(claim.site, claim.gateway))
    return EndpointRow(group, "", mac_bytes(claim.mac))


def local_row(attachment: AttachmentFact) -> EndpointRow:
    """The row of what is attached here, and claimed for here."""
    return EndpointRow(NO_GROUP, attachment.ifname, mac_bytes(attachment.mac))


def port_row(fact: AttachmentFact, domain: int, *, blocked: bool) -> PortRow:
    return PortRow(domain, address_of(fact.ip), mac_bytes(fact.mac), blocked)


def subnet_key(fact: SubnetFact, domain: int) -> SubnetKey:
    return SubnetKey(domain, *prefix_of(fact.cidr))


def subnet_row(
    fact: SubnetFact, self_site: str, *, forwarded: bool, number: Callable[[bytes], int]
) -> SubnetRow:
    group = subnet_group(fact)
    leads_away = forwarded and group is not None and fact.sites[0] != self_site
    return SubnetRow(
        number(group) if leads_away and group is not None else NO_GROUP,
        address_of(fact.gateway_ip),
    )
