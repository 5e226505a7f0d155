"""Programs built ahead of time by clang, for gateways that have no compiler: `python -m
dataplane.xdp.ahead FILE` writes an object file, and the loader takes the one that WEFT_PROGRAMS
names instead of compiling.

The same source as BCC's, with what BCC brings by itself out of `bpf/ahead.h`. Of an object file are
read: one section of instructions for each program, the maps' shapes, what instructions refer to
which map (ELF-64; relocation R_BPF_64_64 of the kernel's Documentation/bpf/llvm_reloc.rst), and the
hash of the source that it was built of. One of another source is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataplane.backend import Hook
from dataplane.xdp import headers, layout, programs
from dataplane.xdp.programs import Programs, Shape

OBJECT_VARIABLE = "WEFT_PROGRAMS"
CLANG = "clang"
OBJECT_BYTES_MAX = 1 << 20
_FLAGS = (
    *("-target", "bpf", "-mcpu=v2", "-O2", "-ffunction-sections"),
    *("-Wall", "-Werror", "-Wno-address-of-packed-member"),  # frames are read where they lie
)
_INCLUDES = re.compile(r"(^#include <.*>\n)(?!#include <)", re.MULTILINE)
_MAP_TYPE = re.compile(r'^(BPF_F?_?TABLE\()"(\w+)"', re.MULTILINE)
_LOOKUP = re.compile(r"\b(\w+)\.lookup\(([^()]+)\)")
_OUTPUT = re.compile(r"\b(\w+)\.ringbuf_output\(")

_FILE_HEADER = struct.Struct("=16sHHIQQQIHHHHHH")
_SECTION_HEADER = struct.Struct("=IIQQQQIIQQ")
_SYMBOL = struct.Struct("=IBBHQQ")
_RELOCATION = struct.Struct("=QQ")
_SHAPE = struct.Struct("=III")
_MAGIC = b"\x7fELF\x02"
_BPF_MACHINE = 247  # EM_BPF
_R_BPF_64_64 = 1
_MAP_REFERENCE = programs.MAP_FD << 4
_BROKEN = (KeyError, IndexError, ValueError, struct.error)


class NoPrograms(Exception):
    """There are none to be had from there; the text says why and what to do."""


def object_file() -> Path | None:
    """The one to take programs from, if there is to be one."""
    given = os.environ.get(OBJECT_VARIABLE)
    return Path(given) if given else None


def source() -> str:
    """The whole program text in clang's form."""
    text = programs.source()
    text = _LOOKUP.sub(r"((\1_row *)bpf_map_lookup_elem(&\1, \2))", text)
    text = _OUTPUT.sub(r"bpf_ringbuf_output(&\1, ", text)
    text = _MAP_TYPE.sub(lambda at: f"{at[1]}BPF_MAP_TYPE_{at[2].upper()}", text)
    own = (programs.SOURCE_DIR / "ahead.h").read_text()
    return _INCLUDES.sub(lambda at: at[1] + own, text, count=1)


def fingerprint() -> bytes:
    """Of the source as it is."""
    return hashlib.sha256(source().encode()).hexdigest().encode()


def build(to: Path) -> None:
    """Compile into an object file. NoPrograms with the compiler's words, or if there is none."""
    text = source() + f'const char built_of[] SECTION("source") = "{fingerprint().decode()}";\n'
    command = [CLANG, *_FLAGS, *headers.search_paths(), "-x", "c", "-c", "-", "-o", str(to)]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise NoPrograms(f"no {CLANG} here (Debian: apt install clang)") from None
    if done.returncode != 0:
        raise NoPrograms(f"{CLANG} refuses: {done.stderr.strip()}")


def read(path: Path, hook: Hook = "xdp") -> Programs:
    """The programs of an object file. NoPrograms if it is none, or of another source, or hook."""
    if hook != "xdp":
        raise NoPrograms(f"{path} has programs for XDP, not for {hook}: [dataplane] hook = 'xdp'")
    try:
        with path.open("rb") as file:
            raw = file.read(OBJECT_BYTES_MAX)
    except OSError as error:
        raise NoPrograms(f"{path}: {error.strerror}") from error
    try:
        found = _Object(raw)
        built_of = found.sections["source"].data.rstrip(b"\0")
        made = found.programs() if built_of == fingerprint() else None
    except _BROKEN as error:
        raise NoPrograms(f"{path} holds no programs: {error!r}") from error
    if made is None:
        again = f"python -m dataplane.xdp.ahead {path}"
        raise NoPrograms(f"{path} was built of another version's source: build it again ({again})")
    return made


# ---- object files -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Section:
    index: int
    data: bytes


class _Object:
    """An object file's sections by name, and its symbols as (name, section, offset)."""

    def __init__(self, raw: bytes) -> None:
        header = _FILE_HEADER.unpack_from(raw)
        if not header[0].startswith(_MAGIC) or header[2] != _BPF_MACHINE:
            raise ValueError("not an object file of BPF")
        start, count, names_at = header[6], header[12], header[13]
        rows = [
            _SECTION_HEADER.unpack_from(raw, start + _SECTION_HEADER.size * index)
            for index in range(count)
        ]
        contents = [raw[row[4] : row[4] + row[5]] for row in rows]
        self.sections = {
            _text(contents[names_at], row[0]): _Section(index, contents[index])
            for index, row in enumerate(rows)
        }
        names = contents[rows[self.sections[".symtab"].index][6]]
        self._symbols = [
            (_text(names, name), section, value)
            for name, _, _, section, value, _ in _SYMBOL.iter_unpack(self.sections[".symtab"].data)
        ]

    def programs(self) -> Programs:
        maps = self._maps()
        places = {name: place for place, (name, _) in enumerate(maps)}
        return Programs(maps, {name: self._linked(name, places) for name in layout.PROGRAMS["xdp"]})

    def _maps(self) -> tuple[tuple[str, Shape], ...]:
        section = self.sections["maps"]
        found = {
            name: _SHAPE.unpack_from(section.data, value)
            for name, at, value in self._symbols
            if at == section.index and name
        }
        return tuple((name, found[name]) for name in layout.maps())

    def _linked(self, program: str, places: dict[str, int]) -> bytes:
        """A program's instructions, with maps' places for what they are to be."""
        code = bytearray(self.sections[f".text.{program}"].data)
        for at, name in self._relocations(f".rel.text.{program}"):
            code[at + 1] |= _MAP_REFERENCE
            struct.pack_into("=i", code, at + 4, places[name])
        return bytes(code)

    def _relocations(self, section: str) -> Iterator[tuple[int, str]]:
        if section not in self.sections:
            return
        for at, info in _RELOCATION.iter_unpack(self.sections[section].data):
            name = self._symbols[info >> 32][0]
            if info & 0xFFFFFFFF != _R_BPF_64_64:
                raise ValueError(f"a reference to {name}, which is no map")
            yield at, name


def _text(names: bytes, at: int) -> str:
    return names[at : names.index(b"\0", at)].decode()


def main() -> int:
    try:
        build(Path(sys.argv[1]))
    except NoPrograms as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
