"""What this process may do, and how it comes to be allowed no more than it needs.

A node that runs needs CAP_BPF for maps and programs and CAP_NET_ADMIN for interfaces. The loader
needs CAP_PERFMON beside these: without it, the kernel guards each program against speculation, and
a packet takes twice as long (measured: 1,000 against 470 ns). So a node starts its loader while it
has everything, gives the rest away, and asks the loader to load.

Capabilities belong to threads: give away before there is a second one.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from enum import IntEnum

_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3: two sets of three u32
_SETS = struct.Struct("=6I")
_PR_CAPBSET_READ = 23  # linux/prctl.h
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_libc = ctypes.CDLL(None, use_errno=True)


class Capability(IntEnum):
    """Of linux/capability.h, those that matter here."""

    CAP_SETPCAP = 8
    CAP_NET_ADMIN = 12
    CAP_PERFMON = 38
    CAP_BPF = 39


NEEDED = (Capability.CAP_NET_ADMIN, Capability.CAP_BPF)
"""By a node whose data plane is in the kernel."""


def _read() -> tuple[int, int]:
    """The effective and the permitted set of this thread, as bits."""
    header = ctypes.create_string_buffer(struct.pack("=II", _VERSION, 0), 8)
    data = ctypes.create_string_buffer(_SETS.size)
    _checked(_libc.capget(header, data), "capget")
    low, low_permitted, _, high, high_permitted, _ = _SETS.unpack(data.raw)
    return low | high << 32, low_permitted | high_permitted << 32


def missing(wanted: Iterable[Capability] = NEEDED) -> list[str]:
    """The names of those that this thread does not have."""
    effective, _ = _read()
    return [capability.name for capability in wanted if not effective >> capability & 1]


def give_away_all_but(kept: Iterable[Capability] = NEEDED) -> None:
    """Have only these, as far as they are held, for good: no program that this process starts gets
    others either. OSError as the kernel said."""
    bits = sum(1 << capability for capability in kept)
    effective, permitted = _read()
    if effective >> Capability.CAP_SETPCAP & 1:
        for number in range(64):
            if not bits >> number & 1 and _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) == 1:
                _checked(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "prctl")
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    left, left_permitted = effective & bits, permitted & bits
    halves = [word >> shift & 0xFFFFFFFF for shift in (0, 32) for word in (left, left_permitted, 0)]
    header = ctypes.create_string_buffer(struct.pack("=II", _VERSION, 0), 8)
    data = ctypes.create_string_buffer(_SETS.pack(*halves), _SETS.size)
    _checked(_libc.capset(header, data), "capset")


def _checked(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
