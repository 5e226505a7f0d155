"""`weft.toml`: one node's own configuration, read, checked and written.

Everything in it is checked before anything is started: an unknown table or field, a value of the
wrong type and a value that cannot work are refused with file, line, field and what to write
instead, all of them at once. Which fields there are, and what they default to, is the table of
`mesh.node.config_fields`. Relative paths are relative to the directory of the file, which also
holds the node's keys and its store.
"""

from __future__ import annotations

import difflib
import re
import socket
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dataplane.backend import DEFAULT_CAPACITY, Capacity
from mesh.core.errors import BadInput, Mistakes
from mesh.node.config_fields import BY_NAME, FIELDS, TABLES, Field
from mesh.node.toml_lines import FieldPath, lines_of

CONFIG_BYTES_MAX: Final = 64 * 1024  # ten times what a full file has; a wrong path is not read
LINE_CHARS_MAX: Final = 1024  # tomllib takes quadratic time for one long dotted key
MISTAKES_MAX: Final = 20  # as many as a person mends at once
_NAME_CHARS_MAX: Final = 64  # of an unknown name: shown, and compared with known ones
_TEXT_COLUMNS: Final = 98

_AT_LINE = re.compile(r" \(at line ([0-9]+), column [0-9]+\)")


class ConfigError(Mistakes):
    """The configuration file cannot be used; nothing was started or changed."""


@dataclass(frozen=True, slots=True)
class Config:
    """What `weft.toml` says, with defaults filled in and paths made absolute.

    `underlay` is the outer address of this gateway (None: no traffic between sites); `wan_if` the
    interface that has it (None: found by the address). `listen` and `bootstrap` are multiaddrs of
    libp2p.
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
    endpoints_max: int = DEFAULT_CAPACITY.endpoints
    subnets_max: int = DEFAULT_CAPACITY.subnets
    gateways_max: int = DEFAULT_CAPACITY.gateways
    ports_max: int = DEFAULT_CAPACITY.ports
    encapsulation: str = "geneve"
    hook: str = "xdp"
    metrics_listen: str | None = None
    log_level: str = "info"
    bootstrap: tuple[str, ...] = ()
    relay: bool = True
    interest: str = "hosted"
    mdns: bool = False

    @property
    def capacity(self) -> Capacity:
        """Of the data plane's tables."""
        return Capacity(self.endpoints_max, self.subnets_max, self.gateways_max, self.ports_max)

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

    def where(self, table: str, name: str) -> str:
        """`FILE:LINE: [table] field`, as the file is now: how errors name a field."""
        try:
            text = _read(self.path)
            tomllib.loads(text)
            line = lines_of(text).get((table, name))
        except (ConfigError, ValueError, RecursionError):
            line = None  # it was read before, and is another file now
        return f"{self.path}{'' if line is None else f':{line}'}: [{table}] {name}"

    def values(self) -> dict[str, Any]:
        """Field attribute -> value as the file has it."""
        special = {"mesh_id": self.mesh_id.hex(), "socket": str(self.socket_path)}
        return {
            field.attribute: special[field.attribute]
            if field.attribute in special
            else getattr(self, field.attribute)
            for field in FIELDS
        }

    @classmethod
    def of(cls, path: Path, values: Mapping[str, Any]) -> Config:
        """The reverse of `values`."""
        given = dict(values)
        given["mesh_id"] = bytes.fromhex(given["mesh_id"])
        given["socket_path"] = path.parent / given.pop("socket")
        return cls(path=path, **given)


# ---- reading ----


def read_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or fields are wrong; each mistake is one
            line that names the file, the line, the field and the fix.
    """
    path = path.absolute()
    return parse_config(path, _read(path))


def _read(path: Path) -> str:
    """The text of the file, within bounds. Raises ConfigError."""
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
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not TOML: not UTF-8: save the file as UTF-8") from None
    for line, content in enumerate(text.split("\n"), 1):
        if len(content) > LINE_CHARS_MAX:
            raise ConfigError(
                f"{path}:{line}: longer than {LINE_CHARS_MAX} characters: no field needs that,"
                " shorten it"
            )
    return text


def parse_config(path: Path, text: str) -> Config:
    """Check the text of the file at the absolute `path`. Raises ConfigError."""
    try:
        document = tomllib.loads(text)
        lines = lines_of(text)
    except RecursionError:
        raise ConfigError(f"{path}:1: not TOML: nested too deeply: no field is nested") from None
    except ValueError as error:  # more than TOMLDecodeError: int() refuses 5,000 digits
        found = _AT_LINE.search(str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        what = " ".join(_AT_LINE.sub("", str(error)).split())
        raise ConfigError(f"{path}:{line}: not TOML: {what}: correct that line") from None
    reader = _Reader(path, document, lines)
    values = reader.values()
    if reader.mistakes:
        raise ConfigError(*reader.told())
    return Config.of(path, values)


class _Reader:
    """Takes the fields out of a document, and notes every mistake with its line."""

    def __init__(
        self, path: Path, document: Mapping[str, object], lines: Mapping[FieldPath, int]
    ) -> None:
        self._path = path
        self._document = document
        self._lines = lines
        self.mistakes: list[tuple[int, str]] = []
        """(line, what is wrong)"""

    def values(self) -> dict[str, Any]:
        """attribute -> value, of the fields that are right."""
        self._note_unknown()
        found: dict[str, Any] = {}
        for field in FIELDS:
            table = self._document.get(field.table, {})
            given = table.get(field.name) if isinstance(table, dict) else None
            if given is not None:
                self._take(field, given, found)
            elif field.default is None:
                self._note((field.table,), f"{field.title}: is missing: add it")
            else:
                found[field.attribute] = field.default({"underlay": None, **found})
        if found.get("dataplane_mode") == "xdp" and found.get("underlay", "") is None:
            self._note(
                ("dataplane", "mode"),
                "[dataplane] mode: 'xdp': needs [node] underlay: write the address that other"
                " gateways send to",
            )
        return found

    def told(self) -> list[str]:
        """The mistakes in the order of the file, bounded."""
        ordered = [what for _, what in sorted(self.mistakes, key=lambda mistake: mistake[0])]
        more = len(ordered) - MISTAKES_MAX
        if more > 0:
            ordered[MISTAKES_MAX:] = [f"{self._path}: and {more} more mistakes: mend these first"]
        return ordered

    def _take(self, field: Field, given: object, found: dict[str, Any]) -> None:
        try:
            found[field.attribute] = field.form.parse(field.title, given)
        except BadInput as error:
            self._note((field.table, field.name), str(error))

    def _note(self, path: FieldPath, what: str) -> None:
        line = self._lines.get(path) or self._lines.get(path[:1]) or 1
        self.mistakes.append((line, f"{self._path}:{line}: {what}"))

    def _note_unknown(self) -> None:
        for name, table in self._document.items():
            if not isinstance(table, dict):
                self._note((name,), f"{_shown(name)}: {self._stray(name)}")
            elif name not in TABLES:
                fix = _instead(name, TABLES) or f"remove it (there are {_titles(TABLES)})"
                self._note((name,), f"[{_shown(name)}]: no such table: {fix}")
            else:
                for field in table:
                    if (name, field) not in BY_NAME:
                        what = f"[{name}] {_shown(field)}: no such field: {_better(name, field)}"
                        self._note((name, field), what)

    @staticmethod
    def _stray(name: str) -> str:
        tables = [field.table for field in FIELDS if field.name == name]
        if name in TABLES:
            return f"is a field, and should be a table: write [{name}] and its fields below"
        where = f"[{tables[0]}]" if tables else "its [table]"
        return f"a field outside of any table: move it under {where}"


def _better(table: str, name: str) -> str:
    """What to do about an unknown field."""
    known = [field.name for field in FIELDS if field.table == table]
    elsewhere = [field.title for field in FIELDS if field.name == name]
    if elsewhere:
        return f"there is {elsewhere[0]}: move it there"
    return _instead(name, known) or f"remove it (there are {', '.join(known)})"


def _instead(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name[:_NAME_CHARS_MAX].lower(), known, 1)
    return f"did you mean {near[0]}?" if near else ""


def _shown(name: str) -> str:
    """An unknown name, on one line however strange it is."""
    short = name if len(name) <= _NAME_CHARS_MAX else name[:_NAME_CHARS_MAX] + "…"
    return short if re.fullmatch(r"[A-Za-z0-9_-]+…?", short) else repr(short)


def _titles(tables: Sequence[str]) -> str:
    return ", ".join(f"[{table}]" for table in tables)


def check_underlay(config: Config) -> None:
    """Raises ConfigError unless an interface of this machine has the underlay address."""
    if config.underlay is None:
        return
    family = socket.AF_INET6 if ":" in config.underlay else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((config.underlay, 0))
        except OSError:
            raise ConfigError(
                f"{config.where('node', 'underlay')}: {config.underlay}: no interface of this"
                " machine has it: give one that does"
            ) from None


# ---- writing ----


def render_config(config: Config) -> str:
    """The text of the file: reading it at `config.path` gives `config` again.

    Every field stands in it with what it means; one that has no value is a comment.
    """
    values = config.values()
    blocks = []
    for table in TABLES:
        lines = [f"[{table}]"]
        for field in FIELDS:
            if field.table == table:
                lines += [*_comment(field), _assigned(field, values[field.attribute])]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def _comment(field: Field) -> list[str]:
    says = field.says
    if field.default is not None:
        says += f" Default: {field.shown}."
    if field.unit:
        says += f" Unit: {field.unit}."
    return textwrap.wrap(
        says, _TEXT_COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def _assigned(field: Field, value: object) -> str:
    if value is None:
        return f"# {field.name} ="
    return f"{field.name} = {_toml(value)}"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return _quote(str(value))


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
