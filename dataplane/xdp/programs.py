"""The programs as machine-independent of one load: instructions, and the maps that they refer to.

Compiled by BCC, which makes maps of its own: it opens pinned ones by id, which takes CAP_SYS_ADMIN.
So references to maps are numbered here by name, and become descriptors when programs are loaded.
"""

from __future__ import annotations

import os
import re
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dataplane.backend import Hook
from dataplane.xdp import headers, kernel, layout

SOURCE_DIR = Path(__file__).parent / "bpf"
TREE_VARIABLE = "BCC_KERNEL_SOURCE"
INSTRUCTION_BYTES = 8
_LOAD_64 = 0x18  # BPF_LD | BPF_IMM | BPF_DW
MAP_FD = 1  # BPF_PSEUDO_MAP_FD, in the upper half of the second byte
_IMMEDIATE = struct.Struct("=i")
_INCLUDE = re.compile(r'^#include "([a-z_]+\.h)"$', re.MULTILINE)
_LOOKUP = re.compile(r"\bLOOKUP\((\w+),\s*([^()]+)\)")

Shape: TypeAlias = tuple[int, int, int]
"""Of a map: its type, and the bytes of its keys and values."""


@dataclass(frozen=True, slots=True)
class Programs:
    """Instructions by program; in place of descriptors they have the maps' places in `maps`."""

    maps: tuple[tuple[str, Shape], ...]
    instructions: dict[str, bytes]

    def linked(self, fds: Mapping[str, int]) -> dict[str, bytes]:
        """The instructions with these maps. ValueError where one has another shape."""
        for name, expected in self.maps:
            found = shape(fds[name])
            if found != expected:
                text = f"map {name} is (type, key, value) {found}, programs have {expected}"
                raise ValueError(text)
        placed = {place: fds[name] for place, (name, _) in enumerate(self.maps)}
        return {name: exchanged(code, placed) for name, code in self.instructions.items()}


def source(hook: Hook = "xdp") -> str:
    """The program text for a hook: our headers inlined, look-ups in BCC's form, assertions.

    BCC rewrites look-ups in the main file only, and not inside macros; hence both substitutions.
    """
    text = (SOURCE_DIR / "weft.c").read_text()
    if hook == "tc":
        text = "#define FOR_TC\n" + text
    text = _INCLUDE.sub(lambda match: (SOURCE_DIR / match.group(1)).read_text(), text)
    return _LOOKUP.sub(r"\1.lookup(\2)", text) + layout.assertions()


def compiled(more: str = "", names: Iterable[str] = (), hook: Hook = "xdp") -> Programs:
    """Compile these programs, or all of a hook, out of the source and what is added to it: a second
    of CPU, and over 100 MB in this process from then on."""
    with tempfile.TemporaryDirectory(prefix="weft-headers-") as tree:
        headers.make_tree(Path(tree))
        os.environ[TREE_VARIABLE] = tree
        from bcc import BPF

        made: Any = BPF(text=(source(hook) + more).encode(), cflags=headers.search_paths())
    fds = {name: int(made[name.encode()].map_fd) for name in layout.maps()}
    places = {fd: place for place, fd in enumerate(fds.values())}
    return Programs(
        tuple((name, shape(fd)) for name, fd in fds.items()),
        {
            name: exchanged(bytes(made.dump_func(name.encode())), places)
            for name in names or layout.PROGRAMS[hook]
        },
    )


def shape(fd: int) -> Shape:
    info = kernel.map_info(fd)
    return info.type, info.key_bytes, info.value_bytes


def exchanged(instructions: bytes, maps: Mapping[int, int]) -> bytes:
    """The instructions with other maps. KeyError for one that is not known."""
    changed = bytearray(instructions)
    for at in references(instructions):
        (known,) = _IMMEDIATE.unpack_from(changed, at)
        _IMMEDIATE.pack_into(changed, at, maps[known])
    return bytes(changed)


def references(instructions: bytes) -> Iterator[int]:
    """Where maps are referred to: a load of 64 bits in two instructions, whose first has the
    descriptor for its immediate (`struct bpf_insn` in linux/bpf.h)."""
    for at in range(0, len(instructions), INSTRUCTION_BYTES):
        if instructions[at] == _LOAD_64 and instructions[at + 1] >> 4 == MAP_FD:
            yield at + 4
