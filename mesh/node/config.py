"""`weft.toml`: one node's own configuration, read, checked and written.

Everything in it is checked before anything is started: an unknown table or field, a value of the
wrong type and a value that cannot work are refused with the file, the field and what to write
instead. A field that is left out has the default given here. Relative paths are relative to the
directory of the file, which also holds the node's keys and its store.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

from mesh.core import validate
from mesh.core.errors import BadInput
from mesh.core.validate import bad

CONFIG_NAME: Final = "weft.toml"
DEFAULT_SOCKET: Final = "/run/weft/weft.sock"
DEFAULT_PORT: Final = 7400
DATAPLANE_MODES: Final = ("auto", "xdp", "memory")

CONFIG_BYTES_MAX: Final = (
    64 * 1024
)  # a hundred times what a full file has; a wrong path is not read
IFNAME_CHARS_MAX: Final = 15  # IFNAMSIZ - 1
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of sockaddr_un holds 108 with its NUL
LISTEN_MAX: Final = 8  # addresses of one machine worth binding apart; 0.0.0.0 binds all

_IFNAME = re.compile(rf"[^\s/:]{{1,{IFNAME_CHARS_MAX}}}")
_LISTEN = re.compile(r"/(ip4|ip6)/([0-9a-fA-F.:]+)/tcp/([0-9]{1,5})")


Check: TypeAlias = Callable[[str, str], str]
"""(the field as people know it, its value) -> the value. Raises BadInput."""


class ConfigError(BadInput):
    """The configuration file cannot be used; nothing was started or changed."""


@dataclass(frozen=True, slots=True)
class Config:
    """What `weft.toml` says, with defaults filled in and paths made absolute.

    `underlay` is the outer address of this gateway (None: no traffic between sites); `wan_if` the
    interface that has it (None: found by the address). `listen` are multiaddrs of libp2p.
    """

    path: Path
    mesh_name: str
    mesh_id: bytes  # 16 bytes
    node_name: str
    site: str
    underlay: str | None
    listen: tuple[str, ...]
    dataplane_mode: str
    wan_if: str | None
    socket_path: Path

    @property
    def directory(self) -> Path:
        return self.path.parent

    @property
    def node_key_path(self) -> Path:
        return self.directory / "node.key"

    @property
    def root_key_path(self) -> Path:
        """Only there on the node that founded the mesh, and not if it was taken offline."""
        return self.directory / "root.key"

    @property
    def store_path(self) -> Path:
        return self.directory / "store.db"


def default_listen(underlay: str | None) -> str:
    """The address to listen on when none is given: the underlay address, else every IPv4 one."""
    if underlay is None:
        return f"/ip4/0.0.0.0/tcp/{DEFAULT_PORT}"
    return f"/ip4/{underlay}/tcp/{DEFAULT_PORT}"


def read_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a field is wrong; one line that names
            the file, the field and the fix.
    """
    path = path.absolute()
    try:
        with path.open("rb") as file:
            raw = file.read(CONFIG_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}): give the file that `weft init` or"
            " `weft join` wrote"
        ) from None
    if len(raw) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {CONFIG_BYTES_MAX} bytes: this is no weft.toml")
    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}: correct that line") from None
    return _parse(path, document)


def _parse(path: Path, document: Mapping[str, object]) -> Config:
    reader = _Reader(path, document)
    mesh_name = reader.text("mesh", "name", validate.name)
    mesh_id = reader.text("mesh", "id", _mesh_id)
    node_name = reader.text("node", "name", validate.name)
    site = reader.text("node", "site", validate.name)
    underlay = reader.optional_text("node", "underlay", underlay_ip)
    listen = reader.texts("node", "listen", listen_addr, (default_listen(underlay),), LISTEN_MAX)
    mode = reader.optional_text("dataplane", "mode", _mode) or "auto"
    wan_if = reader.optional_text("dataplane", "wan_if", ifname)
    api_socket = reader.optional_text("api", "socket", socket_path) or DEFAULT_SOCKET
    reader.refuse_leftovers()
    return Config(
        path=path,
        mesh_name=mesh_name,
        mesh_id=bytes.fromhex(mesh_id),
        node_name=node_name,
        site=site,
        underlay=underlay,
        listen=listen,
        dataplane_mode=mode,
        wan_if=wan_if,
        socket_path=path.parent / api_socket,
    )


class _Reader:
    """Takes fields out of the document one by one; what is left at the end is unknown."""

    def __init__(self, path: Path, document: Mapping[str, object]) -> None:
        self._path = path
        self._tables: dict[str, dict[str, Any]] = {}
        self._known: dict[str, list[str]] = {}
        for name, table in document.items():
            if not isinstance(table, dict):
                raise ConfigError(
                    f"{path}: {name}: a field outside of any table: move it under its [table]"
                )
            self._tables[name] = dict(table)

    def _take(self, table: str, field: str) -> object:
        self._known.setdefault(table, []).append(field)
        return self._tables.get(table, {}).pop(field, None)

    def _fail(self, table: str, field: str, what: str) -> ConfigError:
        return ConfigError(f"{self._path}: [{table}] {field}: {what}")

    def _checked(self, table: str, field: str, value: object, check: Check) -> str:
        if not isinstance(value, str):
            kind = type(value).__name__
            raise self._fail(table, field, f"is of type {kind}: write a text in quotes")
        try:
            return check(f"{self._path}: [{table}] {field}", value)
        except BadInput as error:
            raise ConfigError(str(error)) from None

    def optional_text(self, table: str, field: str, check: Check) -> str | None:
        value = self._take(table, field)
        return None if value is None else self._checked(table, field, value, check)

    def text(self, table: str, field: str, check: Check) -> str:
        value = self.optional_text(table, field, check)
        if value is None:
            raise self._fail(table, field, "is missing: add it")
        return value

    def texts(
        self,
        table: str,
        field: str,
        check: Check,
        default: tuple[str, ...],
        count_max: int,
    ) -> tuple[str, ...]:
        value = self._take(table, field)
        if value is None:
            return default
        if not isinstance(value, list):
            raise self._fail(table, field, 'is no list: write it as ["...", "..."]')
        if not 1 <= len(value) <= count_max:
            raise self._fail(table, field, f"has {len(value)} entries: write 1 to {count_max}")
        return tuple(self._checked(table, field, entry, check) for entry in value)

    def refuse_leftovers(self) -> None:
        for table, fields in sorted(self._tables.items()):
            if table not in self._known:
                tables = ", ".join(f"[{name}]" for name in sorted(self._known))
                raise ConfigError(
                    f"{self._path}: [{table}]: no such table: remove it (there are {tables})"
                )
            for field in sorted(fields):
                known = ", ".join(sorted(self._known[table]))
                raise self._fail(table, field, f"no such field: remove it (there are {known})")


def underlay_ip(what: str, value: str) -> str:
    """A canonical unicast IPv4 address that a machine can have. Raises BadInput."""
    address = ipaddress.ip_address(validate.ipv4(what, value))
    if address.is_multicast or address.is_unspecified:
        raise bad(what, value, "give the address of an interface of this machine")
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


def _mesh_id(what: str, value: str) -> str:
    if not validate.ID.fullmatch(value):
        raise bad(what, value, "copy the 32 hex digits from another node's file")
    return value


def _mode(what: str, value: str) -> str:
    if value not in DATAPLANE_MODES:
        raise bad(what, value, f"write one of {', '.join(DATAPLANE_MODES)}")
    return value


def check_underlay(config: Config) -> None:
    """Raises ConfigError unless an interface of this machine has the underlay address."""
    if config.underlay is None:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((config.underlay, 0))
        except OSError:
            raise ConfigError(
                f"{config.path}: [node] underlay: {config.underlay}: no interface of this machine"
                " has it: give one that does"
            ) from None


def render_config(config: Config) -> str:
    """The text of the file: reading it at `config.path` gives `config` again."""
    tables: list[tuple[str, list[tuple[str, str | tuple[str, ...] | None]]]] = [
        ("mesh", [("name", config.mesh_name), ("id", config.mesh_id.hex())]),
        (
            "node",
            [
                ("name", config.node_name),
                ("site", config.site),
                ("underlay", config.underlay),
                ("listen", config.listen),
            ],
        ),
        ("dataplane", [("mode", config.dataplane_mode), ("wan_if", config.wan_if)]),
        ("api", [("socket", str(config.socket_path))]),
    ]
    blocks = []
    for table, fields in tables:
        lines = [f"[{table}]"]
        for field, value in fields:
            if isinstance(value, str):
                lines.append(f"{field} = {_quote(value)}")
            elif value is not None:
                lines.append(f"{field} = [{', '.join(map(_quote, value))}]")
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def write_config(config: Config) -> None:
    """Write a new file at `config.path`. Raises ConfigError when one is there already."""
    try:
        with config.path.open("x", encoding="utf-8") as file:
            file.write(render_config(config))
    except FileExistsError:
        raise ConfigError(f"{config.path}: is there already: choose another directory") from None


def _quote(value: str) -> str:
    """A TOML basic string (toml.io v1.0.0, "String")."""
    out = []
    for char in value:
        if char in '"\\':
            out.append("\\" + char)
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            out.append(f"\\u{ord(char):04x}")
        else:
            out.append(char)
    return '"' + "".join(out) + '"'
