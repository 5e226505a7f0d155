"""Where the VPCs of a run are, and their addresses: as in a lab, every VPC has the same ones.

A VPC has the CIDR 10.0.0.0/16, a subnet 10.0.I.0/24 homed at its site I (from 1), and
10.0.200.0/24 stretched over all its sites. Few addresses are used, so that claims, moves and
removals of one address meet. VPCs that a scenario lays out one by one have room for more: the same
one octet further left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sim.core.chance import Chance, below, pick
from sim.core.scenario import STRETCHED, Workload

VNI_FIRST: Final = 100
EXTRA_FIRST: Final = 240
"""Subnets that come and go."""
FIRST_HOST: Final = 10


def vpc_name(i: int) -> str:
    return f"vpc-{i}"


class Layout:
    """Of one run."""

    def __init__(self, workload: Workload, sites: Sequence[str]) -> None:
        self._workload = workload
        self._wide = bool(workload.laid_out)
        self._counts = {vpc.name: vpc.endpoints for vpc in workload.laid_out}
        self.vpcs = list(self._counts) or [vpc_name(i) for i in range(workload.vpcs)]
        self.homes: dict[str, Sequence[str]] = {}
        """by VPC: the sites at which it has endpoints"""
        for i, name in enumerate(self.vpcs):
            self.homes[name] = list(self._counts.get(name, ())) or self._sites_of(i, sites)

    def _sites_of(self, vpc: int, sites: Sequence[str]) -> Sequence[str]:
        """All sites, or so many in turn that each hosts as many VPCs as the others."""
        count = self._workload.sites_per_vpc
        if not count or count >= len(sites):
            return sites
        return [sites[(vpc * count + j) % len(sites)] for j in range(count)]

    @property
    def cidr(self) -> str:
        """Of every VPC."""
        return "10.0.0.0/8" if self._wide else "10.0.0.0/16"

    def subnet(self, number: int) -> str:
        return f"10.{number}.0.0/16" if self._wide else f"10.0.{number}.0/24"

    def ip(self, number: int, host: int) -> str:
        """A subnet's host, from 0."""
        host += FIRST_HOST
        return f"10.{number}.{host >> 8}.{host & 255}" if self._wide else f"10.0.{number}.{host}"

    def vpcs_at(self, site: str) -> list[str]:
        """Those that have endpoints at the site."""
        return [name for name in self.vpcs if site in self.homes[name]]

    def any_vpc(self, chance: Chance) -> str:
        return pick(chance, self.vpcs)

    def any_ip(self, chance: Chance, site: str, vpc: str) -> str:
        """Of the site's own subnet or of the stretched one."""
        homes = self.homes[vpc]
        number = homes.index(site) + 1 if site in homes else STRETCHED
        if number >= STRETCHED or chance.random() < 0.5:
            number = STRETCHED
        return self.ip(number, below(chance, self._workload.addresses))

    def stretched_ip(self, chance: Chance) -> str:
        return self.ip(STRETCHED, below(chance, self._workload.addresses))

    def first_ips(
        self, chance: Chance, site: str, vpc: str, gateway: int, gateways: int
    ) -> Iterator[str]:
        """What a gateway claims at the start; it is that one, from 0, of the gateways there."""
        counts = self._counts.get(vpc)
        if counts is None:
            for _ in range(self._workload.endpoints):
                yield self.any_ip(chance, site, vpc)
        else:
            number = list(counts).index(site) + 1
            for host in range(gateway, counts[site], gateways):
                yield self.ip(number, host)

    def home_ips(self, site: str, vpc: str, gateway: int, gateways: int) -> Iterator[str]:
        """What a gateway has at the start where nobody contests anything: as many as `first_ips`
        at most, of the site's own subnet. Needs a site that has one."""
        number = list(self.homes[vpc]).index(site) + 1
        count = self._counts[vpc][site] if vpc in self._counts else self._workload.endpoints
        if vpc not in self._counts:
            count = min(count * gateways, self._workload.addresses)
        for host in range(gateway, count, gateways):
            yield self.ip(number, host)
