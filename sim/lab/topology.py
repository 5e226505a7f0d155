"""Which namespaces, interfaces and addresses a lab has: plain values, computed from its size.

Nothing here touches the machine. A lab named NAME with gateways `a1`, `a2`, `b1` … and pods
`a-v1-1` (site, VPC, number) looks like this, one network namespace to a box:

    wl-NAME-a-v1-1         wl-NAME-a1             wl-NAME-wan
    [ eth0 ]------------[ a-v1-1   wan0 ]------[ w-a1  br0  w-b1 ]------ …
    10.0.1.10/24              198.18.1.1/16

- The underlay is 198.18.0.0/16, a range that RFC 2544 keeps for labs: gateway G of site number I
  has 198.18.I.G. An IPv6 underlay is fd00:c612::/64, with the addresses fd00:c612::I:G.
- Every VPC has the CIDR 10.0.0.0/16, subnet `home-a` 10.0.I.0/24 homed at each site, and subnet
  `stretched` 10.0.200.0/24 over all sites. Each VPC belongs to a tenant of its own.
- Pod 1 of a site and VPC is 10.0.I.10, pod 3 10.0.I.12 and so on. Pod 2, where there is one, lives
  in the stretched subnet: 10.0.200.(9+I).
- Pods of a site are dealt to its gateways in turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from mesh.core.errors import BadInput, NotFound, Refused

SITES_MAX: Final = 26  # a … z
GATEWAYS_PER_SITE_MAX: Final = 9  # each is a process of about 100 MB
PODS_PER_SITE_AND_VPC_MAX: Final = 100  # they start at .10 of a /24
VPCS_MAX: Final = 32
PODS_MAX: Final = 2000  # namespaces of pods in one lab; a kernel makes about 100 a second
LAB_NAME_CHARS_MAX: Final = 32  # it is part of the path of a Unix socket

NAMESPACE_PREFIX: Final = "wl"
BRIDGE: Final = "br0"
WAN_IF: Final = "wan0"
POD_IF: Final = "eth0"
UNDERLAY_MTU: Final = 1500
UNDERLAYS: Final = ("ipv4", "ipv6")
UNDERLAY_PREFIX_BITS: Final = {"ipv4": 16, "ipv6": 64}
POD_MTU: Final = {"ipv4": 1450, "ipv6": 1430}
"""Leaves the 50 bytes of Ethernet, IPv4, UDP and Geneve, or 70 with IPv6."""
VPC_CIDR: Final = "10.0.0.0/16"
STRETCHED: Final = "stretched"
STRETCHED_CIDR: Final = "10.0.200.0/24"
POD_PREFIX_BITS: Final = 24

_FIRST_VNI: Final = 101
_FIRST_HOST: Final = 10
_LAB_NAME = re.compile(rf"[a-z0-9](?:[a-z0-9-]{{0,{LAB_NAME_CHARS_MAX - 2}}}[a-z0-9])?")
_POD_NAME = re.compile(r"[a-z]-[a-z0-9]{1,4}-[a-z0-9]{1,8}")  # as an interface <= 15 characters
_MEMBER = r"(?:wan|[a-z][0-9]|[a-z]-[a-z0-9]{1,4}-[a-z0-9]{1,8})"


@dataclass(frozen=True, slots=True)
class LabSpec:
    """The size of a lab. Raises BadInput where a number is out of its bounds."""

    name: str = "lab"
    sites: int = 3
    gateways: int = 1  # of each site
    pods: int = 1  # of each VPC at each site
    vpcs: int = 2
    underlay: str = "ipv4"

    def __post_init__(self) -> None:
        check_lab_name(self.name)
        if self.underlay not in UNDERLAYS:
            raise BadInput(f"--underlay {self.underlay}: give one of {', '.join(UNDERLAYS)}")
        _check_range("--sites", self.sites, 1, SITES_MAX)
        _check_range("--gateways", self.gateways, 1, GATEWAYS_PER_SITE_MAX)
        _check_range("--pods", self.pods, 0, PODS_PER_SITE_AND_VPC_MAX)
        _check_range("--vpcs", self.vpcs, 0, VPCS_MAX)
        pods = self.sites * self.vpcs * self.pods
        if pods > PODS_MAX:
            raise BadInput(
                f"{self.sites} sites × {self.vpcs} VPCs × {self.pods} pods are {pods} pods; "
                f"ask for {PODS_MAX} at most"
            )


@dataclass(frozen=True, slots=True)
class Gateway:
    """A namespace with one `weft run` in it. `port` is its end at the bridge."""

    name: str
    site: str
    netns: str
    port: str
    underlay_ip: str
    mac: str


@dataclass(frozen=True, slots=True)
class Pod:
    """A namespace with one interface, whose other end is `ifname` at `gateway`."""

    name: str
    site: str
    gateway: str
    netns: str
    ifname: str
    vpc: str
    ip: str
    prefix_bits: int
    router_ip: str
    mac: str


@dataclass(frozen=True, slots=True)
class Vpc:
    name: str
    vni: int
    tenant: str


@dataclass(frozen=True, slots=True)
class Subnet:
    """The same in every VPC of the lab. More than one site: stretched."""

    name: str
    cidr: str
    sites: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Topology:
    """Everything that a lab consists of, in a fixed order: sites a, b, c …"""

    name: str
    wan_netns: str
    sites: tuple[str, ...]
    gateways: tuple[Gateway, ...]
    pods: tuple[Pod, ...]
    vpcs: tuple[Vpc, ...]
    subnets: tuple[Subnet, ...]
    interest: str = "hosted"  # which VPCs' endpoints the nodes keep, as in weft.toml

    @property
    def underlay(self) -> str:
        """Of UNDERLAYS."""
        return "ipv6" if any(":" in gateway.underlay_ip for gateway in self.gateways) else "ipv4"

    def gateway(self, name: str) -> Gateway:
        """Raises NotFound."""
        for gateway in self.gateways:
            if gateway.name == name:
                return gateway
        known = ", ".join(gateway.name for gateway in self.gateways)
        raise NotFound(f"lab {self.name} has no gateway {name!r}; it has {known}")

    def pod(self, name: str) -> Pod:
        """Raises NotFound."""
        for pod in self.pods:
            if pod.name == name:
                return pod
        raise NotFound(f"lab {self.name} has no pod {name!r}; {_some(p.name for p in self.pods)}")

    def namespaces(self) -> tuple[str, ...]:
        return (
            self.wan_netns,
            *(gateway.netns for gateway in self.gateways),
            *(pod.netns for pod in self.pods),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Topology:
        """The inverse of `to_json`. Raises KeyError or TypeError when it is not one."""
        return cls(
            name=document["name"],
            wan_netns=document["wan_netns"],
            sites=tuple(document["sites"]),
            gateways=tuple(Gateway(**entry) for entry in document["gateways"]),
            pods=tuple(Pod(**entry) for entry in document["pods"]),
            vpcs=tuple(Vpc(**entry) for entry in document["vpcs"]),
            subnets=tuple(
                Subnet(entry["name"], entry["cidr"], tuple(entry["sites"]))
                for entry in document["subnets"]
            ),
            interest=document["interest"],
        )


def check_lab_name(name: str) -> str:
    """Raises BadInput."""
    if not _LAB_NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} is no name of a lab; use 1 to {LAB_NAME_CHARS_MAX} of a-z, 0-9 and '-',"
            " not starting or ending in '-'"
        )
    return name


def _check_range(option: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise BadInput(f"{option} {value} is not possible; give {low} to {high}")


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    if not shown:
        return "it has none"
    more = ", …" if len(shown) > 12 else ""
    return f"it has {', '.join(shown[:12])}{more}"


def plan(spec: LabSpec) -> Topology:
    """What a lab of this size consists of; equal sizes and names give equal plans."""
    sites = tuple(chr(ord("a") + index) for index in range(spec.sites))
    vpcs = tuple(
        Vpc(name=f"v{number}", vni=_FIRST_VNI + number - 1, tenant=f"t{number}")
        for number in range(1, spec.vpcs + 1)
    )
    homes = tuple(
        Subnet(f"home-{site}", f"10.0.{number}.0/24", (site,))
        for number, site in enumerate(sites, start=1)
    )
    topology = Topology(
        name=spec.name,
        wan_netns=_netns(spec.name, "wan"),
        sites=sites,
        gateways=tuple(
            _gateway(spec, site, site_number, number)
            for site_number, site in enumerate(sites, start=1)
            for number in range(1, spec.gateways + 1)
        ),
        pods=(),
        vpcs=vpcs,
        subnets=(*homes, Subnet(STRETCHED, STRETCHED_CIDR, sites)),
    )
    pods = tuple(
        plan_pod(
            topology,
            name=f"{site}-{vpc.name}-{number}",
            gateway=f"{site}{(number - 1) % spec.gateways + 1}",
            vpc=vpc.name,
            ip=_pod_ip(site_number, number),
        )
        for site_number, site in enumerate(sites, start=1)
        for vpc in vpcs
        for number in range(1, spec.pods + 1)
    )
    return with_pods(topology, pods)


def plan_pod(topology: Topology, *, name: str, gateway: str, vpc: str, ip: str) -> Pod:
    """One more pod for a lab: its names, and its MAC address made from VPC and IP.

    Raises:
        BadInput: the name does not fit, or the address is in none of the lab's subnets.
        NotFound: no such gateway or VPC.
        Refused: the lab has a pod of that name.
    """
    if not _POD_NAME.fullmatch(name):
        raise BadInput(f"{name!r} is no name of a pod; write SITE-VPC-NUMBER, like a-v1-7")
    if any(pod.name == name for pod in topology.pods):
        raise Refused(f"lab {topology.name} has a pod {name} already; choose another name")
    index = next((i for i, known in enumerate(topology.vpcs) if known.name == vpc), None)
    if index is None:
        raise NotFound(
            f"lab {topology.name} has no VPC {vpc!r}; {_some(v.name for v in topology.vpcs)}"
        )
    octets = _host_octets(ip)
    at = topology.gateway(gateway)
    return Pod(
        name=name,
        site=at.site,
        gateway=gateway,
        netns=_netns(topology.name, name),
        ifname=name,
        vpc=vpc,
        ip=ip,
        prefix_bits=POD_PREFIX_BITS,
        router_ip=f"10.0.{octets[2]}.1",
        mac=_mac(index + 1, octets),
    )


def with_pods(topology: Topology, pods: Sequence[Pod]) -> Topology:
    """The topology with these pods instead of its own."""
    return replace(topology, pods=tuple(pods))


def partition_groups(sites: Sequence[str], arguments: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The groups that `A,B C` means: each argument is one, sites not named are one more.

    Raises:
        BadInput: an unknown site, one named twice, or nothing that would be cut.
    """
    groups: list[tuple[str, ...]] = []
    seen: set[str] = set()
    for argument in arguments:
        names = argument.split(",")
        for name in names:
            if name not in sites:
                raise BadInput(f"{name!r} is no site of this lab; it has {', '.join(sites)}")
            if name in seen:
                raise BadInput(f"site {name} is named twice; name each site once")
            seen.add(name)
        groups.append(tuple(sorted(names)))
    rest = tuple(site for site in sites if site not in seen)
    if rest:
        groups.append(rest)
    if len(groups) < 2:
        raise BadInput("one group cuts nothing; name two, like: a b,c (or use heal)")
    return tuple(groups)


def belongs_to(lab: str, name: str) -> bool:
    """Whether a namespace, or the pins of a node, are what a lab of this name could have made.

    No two labs have such names in common, even where one's name starts with the other's.
    """
    return re.fullmatch(f"{NAMESPACE_PREFIX}-{re.escape(lab)}-{_MEMBER}", name) is not None


def mesh_name(lab: str) -> str:
    """The mesh of a lab. With the name of a gateway it names the pins of that gateway's node."""
    return f"{NAMESPACE_PREFIX}-{lab}"


def _netns(lab: str, member: str) -> str:
    return f"{NAMESPACE_PREFIX}-{lab}-{member}"


def _gateway(spec: LabSpec, site: str, site_number: int, number: int) -> Gateway:
    name = f"{site}{number}"
    octets = (198, 18, site_number, number)
    six = spec.underlay == "ipv6"
    return Gateway(
        name=name,
        site=site,
        netns=_netns(spec.name, name),
        port=f"w-{name}",
        underlay_ip=f"fd00:c612::{site_number:x}:{number:x}" if six else ".".join(map(str, octets)),
        mac=_mac(0xFF, octets),
    )


def _pod_ip(site_number: int, number: int) -> str:
    if number == 2:
        return f"10.0.200.{_FIRST_HOST + site_number - 1}"
    return f"10.0.{site_number}.{_FIRST_HOST + number - 1}"


def _host_octets(ip: str) -> tuple[int, int, int, int]:
    """The octets of an address in 10.0.0.0/16 that a pod can have. Raises BadInput."""
    parts = ip.split(".")
    valid = len(parts) == 4 and all(
        part.isascii() and part.isdigit() and str(int(part)) == part and int(part) <= 255
        for part in parts
    )
    octets = tuple(int(part) for part in parts) if valid else ()
    if octets[:2] != (10, 0) or not 2 <= octets[3] <= 254:
        raise BadInput(f"{ip!r} is no address for a pod; give one of {VPC_CIDR} from .2 to .254")
    return octets[0], octets[1], octets[2], octets[3]


def _mac(realm: int, octets: tuple[int, int, int, int]) -> str:
    """A locally administered address that shows what it belongs to: 02, realm, IPv4 address."""
    return ":".join(f"{byte:02x}" for byte in (0x02, realm, *octets))
