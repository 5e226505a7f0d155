"""The fields of `weft.toml`: one table that reads, checks, documents and writes them.

A field is added here and to `Config`, under the same name as its `attribute`; the generated file,
the page in `mesh/README.md` and `weft reload` follow from this table.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from dataplane.backend import DEFAULT_CAPACITY
from mesh.core import validate
from mesh.core.errors import BadInput
from mesh.core.validate import bad

CONFIG_NAME: Final = "weft.toml"
DEFAULT_SOCKET: Final = "/run/weft/weft.sock"
DEFAULT_PORT: Final = 7400
DATAPLANE_MODES: Final = ("auto", "xdp", "memory")
HOOKS: Final = ("xdp", "tc")
INTERESTS: Final = ("hosted", "all")
LOG_LEVELS: Final = ("debug", "info", "warning", "error")

IFNAME_CHARS_MAX: Final = 15  # IFNAMSIZ - 1
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of sockaddr_un holds 108 with its NUL
LISTEN_MAX: Final = 8  # addresses of one machine worth binding apart; 0.0.0.0 binds all
BOOTSTRAP_MAX: Final = 8  # ways into a mesh: the rest is learned from whoever answers
ENDPOINTS_LOW: Final = 1024  # fewer save no memory worth having: rows take it as they come
ENDPOINTS_HIGH: Final = 1 << 24  # 1.4 GB of rows; the kernel counts a map's entries in 32 bits
SUBNETS_HIGH: Final = 1 << 20  # a walk through so deep a tree is what a packet still pays for
GATEWAYS_HIGH: Final = 1 << 16  # with groups and counters 20 MB on two processors, up front
PORTS_HIGH: Final = 1 << 16  # interfaces of one machine
ROOM_LOW: Final = 64  # fewer save nothing

CAPACITY_FIELDS: Final = {
    "endpoints": "endpoints_max",
    "subnets": "subnets_max",
    "gateways": "gateways_max",
    "groups": "gateways_max",
    "peers": "gateways_max",
    "entitled": "subnets_max",
    "ports": "ports_max",
}
"""Table of the data plane -> field of [dataplane] that says how much room it has."""

_IFNAME = re.compile(rf"[^\s/:]{{1,{IFNAME_CHARS_MAX}}}")
_HOST_PORT = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+)):([0-9]{1,5})")
_LISTEN = re.compile(r"/(ip4|ip6)/([0-9a-fA-F.:]+)/tcp/([0-9]{1,5})")
_DIAL = re.compile(r"/(dns|dns4|dns6)/([a-zA-Z0-9._-]{1,253})/tcp/([0-9]{1,5})(/p2p/\w{1,100})?")

Check: TypeAlias = Callable[[str, str], str]
"""(the field as people know it, its value) -> the value. Raises BadInput."""
Values: TypeAlias = Mapping[str, Any]
"""attribute -> value"""
Change: TypeAlias = Literal["live", "restart", "never"]
"""What a changed field takes: `weft reload`, a restart, or a new node."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text in quotes."""

    check: Check
    kind: str = "text"

    def parse(self, what: str, value: object) -> str:
        """Raises BadInput."""
        if not isinstance(value, str):
            raise bad(what, value, f"is {_kind(value)}: write a text in quotes")
        return self.check(what, value)


@dataclass(frozen=True, slots=True)
class Texts:
    """A list of texts, each once."""

    check: Check
    count_max: int
    count_min: int = 1
    kind: str = "list of texts"

    def parse(self, what: str, value: object) -> tuple[str, ...]:
        """Raises BadInput."""
        if not isinstance(value, list):
            raise bad(what, value, f'is {_kind(value)}: write a list, ["...", "..."]')
        if not self.count_min <= len(value) <= self.count_max:
            few = f"write {self.count_min} to {self.count_max}"
            raise BadInput(f"{what}: has {len(value)} entries: {few}")
        found: dict[str, None] = {}
        for entry in value:
            text = Text(self.check).parse(what, entry)
            if text in found:
                raise bad(what, text, "is there twice: remove one")
            found[text] = None
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Number:
    """A whole number within bounds."""

    low: int
    high: int
    kind: str = "number"

    def parse(self, what: str, value: object) -> int:
        """Raises BadInput."""
        if type(value) is not int:
            raise bad(what, value, f"is {_kind(value)}: write a whole number without quotes")
        if not self.low <= value <= self.high:
            raise bad(what, value, f"write {self.low} to {self.high}")
        return value


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    kind: str = "true or false"

    def parse(self, what: str, value: object) -> bool:
        """Raises BadInput."""
        if not isinstance(value, bool):
            raise bad(what, value, f"is {_kind(value)}: write true or false, without quotes")
        return value


Form: TypeAlias = Text | Texts | Number | Flag


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    `default` gives the value of a field that is left out from the values of the fields above it;
    None: it must be given. `shown` says the default in words; `unit` is empty where there is none.
    `change` says what a change takes, and `why` for what reason it takes more than a reload.
    """

    table: str
    name: str
    attribute: str
    form: Form
    says: str
    change: Change
    default: Callable[[Values], object] | None = None
    shown: str = ""
    unit: str = ""
    why: str = ""

    @property
    def title(self) -> str:
        return f"[{self.table}] {self.name}"


def default_listen(underlay: str | None) -> tuple[str, ...]:
    """Where to listen when nothing is given: the underlay address, else every address there is."""
    if underlay is None:
        return (f"/ip4/0.0.0.0/tcp/{DEFAULT_PORT}", f"/ip6/::/tcp/{DEFAULT_PORT}")
    family = "ip6" if ":" in underlay else "ip4"
    return (f"/{family}/{underlay}/tcp/{DEFAULT_PORT}",)


# ---- what values can be ----


def dial_addr(what: str, value: str) -> str:
    """A TCP multiaddr to dial, with a name or an address, and perhaps a peer id. Raises BadInput.

    The peer id is not compared: whoever answers has to be a member, and any member will do.
    """
    match = _DIAL.fullmatch(value)
    if match is None:
        listen_addr(what, value.partition("/p2p/")[0])
    elif not 1 <= int(match[3]) <= 65535:
        raise bad(what, value, f"a port is 1 to 65535: write /dns4/gw.example/tcp/{DEFAULT_PORT}")
    return value


def listen_addr(what: str, value: str) -> str:
    """A TCP multiaddr to listen on. Raises BadInput."""
    match = _LISTEN.fullmatch(value)
    hint = f"write one like /ip4/0.0.0.0/tcp/{DEFAULT_PORT}"
    if match is None:
        raise bad(what, value, f"not a TCP multiaddr: {hint}")
    family, host, port = match.groups()
    try:
        parse = ipaddress.IPv4Address if family == "ip4" else ipaddress.IPv6Address
        parse(host)
    except ValueError:
        raise bad(what, value, f"{host} is no {family} address: {hint}") from None
    if not 1 <= int(port) <= 65535:
        raise bad(what, value, f"a port is 1 to 65535: {hint}")
    return value


def ifname(what: str, value: str) -> str:
    """A name that a network interface can have. Raises BadInput."""
    if not _IFNAME.fullmatch(value) or not value.isprintable() or value in (".", ".."):
        fix = f"an interface name has 1 to {IFNAME_CHARS_MAX} characters, no blank, '/' or ':'"
        raise bad(what, value, fix)
    return value


def socket_path(what: str, value: str) -> str:
    """A path that a Unix socket can be bound to. Raises BadInput."""
    if not value or "\0" in value or value.endswith("/"):
        raise bad(what, value, f"not a path of a file: write one like {DEFAULT_SOCKET}")
    if len(value.encode()) > SOCKET_PATH_BYTES_MAX:
        fix = (
            f"a Unix socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes: choose a shorter one"
        )
        raise bad(what, value, fix)
    return value


def host_port(what: str, value: str) -> str:
    """An IP address and a TCP port, `ADDRESS:PORT`, IPv6 in brackets. Raises BadInput."""
    hint = "write one like 127.0.0.1:9464 or [::1]:9464"
    match = _HOST_PORT.fullmatch(value)
    if match is None:
        raise bad(what, value, f"not ADDRESS:PORT: {hint}")
    address, port = match[1] or match[2], match[3]
    try:
        (ipaddress.IPv6Address if match[1] else ipaddress.IPv4Address)(address)
    except ValueError:
        raise bad(what, value, f"{address} is no IP address: {hint}") from None
    if not 1 <= int(port) <= 65535:
        raise bad(what, value, f"a port is 1 to 65535: {hint}")
    return value


def one_of(words: tuple[str, ...]) -> Check:
    """A check that the value is one of `words`."""

    def check(what: str, value: str) -> str:
        if value not in words:
            raise bad(what, value, f"write one of {', '.join(words)}")
        return value

    return check


def _mesh_id(what: str, value: str) -> str:
    if not validate.ID.fullmatch(value):
        raise bad(what, value, "copy the 32 hex digits from another node's file")
    return value


def _kind(value: object) -> str:
    """What TOML calls a value."""
    names = {str: "a text", bool: "true or false", int: "a number", float: "a number with a point"}
    names |= {list: "a list", dict: "a table"}
    return names.get(type(value), "a date or time")


# ---- the table ----

_IDENTITY: Final = "it is what the node was admitted as: join again with a new directory"
_FOUNDED: Final = "it is the mesh that the keys and the store belong to"
_SIZED: Final = "a map in the kernel has the size that it was made with"
_OPENED: Final = "the data plane is opened once"

FIELDS: Final = (
    Field(
        "mesh", "name", "mesh_name", Text(validate.name),
        "The mesh's name.", "never", why=_FOUNDED,
    ),
    Field(
        "mesh", "id", "mesh_id", Text(_mesh_id),
        "The mesh's id: 32 hex digits, the same in every node's file.", "never", why=_FOUNDED,
    ),
    Field(
        "mesh", "bootstrap", "bootstrap", Texts(dial_addr, BOOTSTRAP_MAX, count_min=0),
        "TCP multiaddrs, with an IP address or a DNS name, that are dialled whichever member is"
        f" there, at most {BOOTSTRAP_MAX}; members met before are dialled anyway.",
        "live", lambda _: (), "none",
    ),
    Field(
        "mesh", "relay", "relay", Flag(),
        "Whether this node carries links between members that do not reach each other: at most 64,"
        " and 4 MiB/s of each member; what it carries is encrypted between their ends.",
        "live", lambda _: True, "true",
    ),
    Field(
        "mesh", "interest", "interest", Text(one_of(INTERESTS)),
        "hosted: this node keeps the endpoints of VPCs that its site has something to do with, and"
        " of those peered with them; all: of every VPC that its site may have.",
        "live", lambda _: "hosted", '"hosted"',
    ),
    Field(
        "mesh", "mdns", "mdns", Flag(),
        "Whether this node announces itself in its local networks by multicast DNS, UDP port 5353,"
        " and dials the members that do; who is none is refused in the handshake.",
        "live", lambda _: False, "false",
    ),
    Field(
        "node", "name", "node_name", Text(validate.name),
        "The node's name, as it was admitted.", "never", why=_IDENTITY,
    ),
    Field(
        "node", "site", "site", Text(validate.name),
        "The node's site, as it was admitted.", "never", why=_IDENTITY,
    ),
    Field(
        "node", "underlay", "underlay", Text(validate.underlay_ip),
        "IPv4 or IPv6 address of this machine that other gateways send tunnels to; without it no"
        " traffic goes between sites, nor with gateways whose address is of the other family.",
        "restart", lambda _: None, "none", why="the programs in the kernel are bound to it",
    ),
    Field(
        "node", "listen", "listen", Texts(listen_addr, LISTEN_MAX),
        f"TCP multiaddrs where other nodes connect to, at most {LISTEN_MAX}.",
        "restart", lambda values: default_listen(values["underlay"]),
        f"port {DEFAULT_PORT} of the underlay address, else of all IPv4 and IPv6 addresses",
        why="links stand on it",
    ),
    Field(
        "dataplane", "mode", "dataplane_mode", Text(one_of(DATAPLANE_MODES)),
        "xdp: the kernel forwards, or the node does not start; memory: nothing is forwarded; auto:"
        " xdp where the machine can.",
        "restart", lambda _: "auto", '"auto"', why=_OPENED,
    ),
    Field(
        "dataplane", "wan_if", "wan_if", Text(ifname),
        "Interface that tunnels come in by.",
        "restart", lambda _: None, "the one that has the underlay address", why=_OPENED,
    ),
    Field(
        "dataplane", "encapsulation", "encapsulation", Text(validate.encapsulation),
        "geneve, or vxlan where the underlay knows no other: what this gateway and all others send"
        " each other.",
        "restart", lambda _: "geneve", '"geneve"', why="others are told when the node starts",
    ),
    Field(
        "dataplane", "hook", "hook", Text(one_of(HOOKS)),
        "Where the kernel's programs meet packets. xdp: as early as can be, best for many small"
        " packets; pods' interfaces are to be fit for it. tc: as senders make them, best for bulk"
        " TCP, with pods' interfaces as they come, Linux 6.6 and an underlay of IPv4.",
        "restart", lambda _: "xdp", '"xdp"', why=_OPENED,
    ),
    Field(
        "dataplane", "endpoints_max", "endpoints_max", Number(ENDPOINTS_LOW, ENDPOINTS_HIGH),
        "Capacity of the kernel's endpoint table. A table in place grows at a restart, and never"
        " shrinks.",
        "restart", lambda _: DEFAULT_CAPACITY.endpoints, str(DEFAULT_CAPACITY.endpoints),
        unit="rows, 84 B each once used", why=_SIZED,
    ),
    Field(
        "dataplane", "subnets_max", "subnets_max", Number(ROOM_LOW, SUBNETS_HIGH),
        "Capacity of the kernel's table of subnets; as that of endpoints.",
        "restart", lambda _: DEFAULT_CAPACITY.subnets, str(DEFAULT_CAPACITY.subnets),
        unit="rows", why=_SIZED,
    ),
    Field(
        "dataplane", "gateways_max", "gateways_max", Number(ROOM_LOW, GATEWAYS_HIGH),
        "Capacity of the kernel's tables of gateways, of their addresses and, twice that, of"
        " next-hop groups; their memory is taken up front.",
        "restart", lambda _: DEFAULT_CAPACITY.gateways, str(DEFAULT_CAPACITY.gateways),
        unit="rows", why=_SIZED,
    ),
    Field(
        "dataplane", "ports_max", "ports_max", Number(ROOM_LOW, PORTS_HIGH),
        "Capacity of the kernel's table of attached interfaces; its memory is taken up front.",
        "restart", lambda _: DEFAULT_CAPACITY.ports, str(DEFAULT_CAPACITY.ports),
        unit="rows", why=_SIZED,
    ),
    Field(
        "api", "socket", "socket", Text(socket_path),
        "Unix socket of the local API; a relative path starts at this file's directory.",
        "restart", lambda _: DEFAULT_SOCKET, f'"{DEFAULT_SOCKET}"',
        why="tools are told where it is",
    ),
    Field(
        "metrics", "listen", "metrics_listen", Text(host_port),
        "TCP address that serves /metrics (Prometheus) and /v1/status to anybody who reaches it.",
        "live", lambda _: None, "none, they are on the API's socket",
    ),
    Field(
        "log", "level", "log_level", Text(one_of(LOG_LEVELS)),
        f"The least level that is logged: {', '.join(LOG_LEVELS)}.",
        "live", lambda _: "info", '"info"',
    ),
)  # fmt: skip

TABLES: Final = tuple(dict.fromkeys(field.table for field in FIELDS))
BY_NAME: Final = {(field.table, field.name): field for field in FIELDS}
BY_ATTRIBUTE: Final = {field.attribute: field for field in FIELDS}

_CHANGES: Final = {"live": "`weft reload`", "restart": "restart", "never": "never"}


def documented() -> str:
    """The page about all fields, as Markdown: it stands in `mesh/README.md`."""
    rows = ["| Field | Type | Default | Unit | Change | |", "|---|---|---|---|---|---|"]
    for field in FIELDS:
        default = "must be given" if field.default is None else field.shown
        change = _CHANGES[field.change] + (f": {field.why}" if field.why else "")
        cells = (f"`{field.title}`", field.form.kind, default, field.unit, change, field.says)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"
