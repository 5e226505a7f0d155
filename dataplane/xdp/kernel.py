"""bpf(2) through ctypes: just the calls that the data plane makes, on plain bytes.

Layouts are those of `union bpf_attr` in linux/bpf.h. Every call raises OSError as the kernel said;
descriptors are plain ints that the caller closes. Nothing here knows our maps.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280}
_MEMBARRIER_NUMBERS = {"x86_64": 324, "aarch64": 283}
_MEMBARRIER_GLOBAL = 1
PROGRAM_WAIT_S = 0.1
"""Longer than any program is at work: for kernels that do not say when they have ended."""
_libc = ctypes.CDLL(None, use_errno=True)

BATCH_ROWS = 4096
"""Rows per batch call: far fewer system calls, and a buffer that stays in the cache."""

UPDATE_ANY = 0
UPDATE_NEW = 1
PROG_TYPE_SCHED_CLS = 3
PROG_TYPE_XDP = 6
ATTACH_XDP = 37
ATTACH_TCX_INGRESS = 46
XDP_FLAGS_SKB = 2  # generic
XDP_FLAGS_DRV = 4  # native
XDP_HAS_FRAGS = 32
MAP_NO_PREALLOC = 1
LINK_TYPE_XDP = 6
LINK_TYPE_TCX = 11
LIVE_BATCH_PACKETS = 64
_TEST_RUN_LIVE = 2  # BPF_F_TEST_XDP_LIVE_FRAMES
VERIFIER_LOG_BYTES = 1 << 20
PASS = bytes.fromhex("b700000002000000 9500000000000000")
"""The shortest XDP program: r0 = XDP_PASS; exit."""


class MapType(IntEnum):
    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    RINGBUF = 27


class _Cmd(IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP = 1
    MAP_UPDATE = 2
    MAP_DELETE = 3
    MAP_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    OBJ_INFO = 15
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


@dataclass(frozen=True, slots=True)
class MapInfo:
    type: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class ProgInfo:
    id: int
    jited_bytes: int  # of machine code


@dataclass(frozen=True, slots=True)
class LinkInfo:
    type: int
    prog_id: int
    ifindex: int  # 0: the interface is gone


@dataclass(frozen=True, slots=True)
class TestRun:
    verdict: int  # the program's return value, an XDP_* action
    packet: bytes  # as the program left it
    duration_ns: int


class BatchFull(OSError):
    """A batch stopped at a full map; `done` rows are in."""

    def __init__(self, done: int) -> None:
        super().__init__(errno.E2BIG, "map is full")
        self.done = done


def supported() -> bool:
    """Whether the number of bpf(2) is known for this machine."""
    return platform.machine() in _SYSCALL_NUMBERS


def _bpf(cmd: _Cmd, attr: ctypes.Array[ctypes.c_char]) -> int:
    result = _libc.syscall(
        _SYSCALL_NUMBERS[platform.machine()], int(cmd), ctypes.byref(attr), len(attr)
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf {cmd.name}: {os.strerror(code)}")
    return int(result)


def _attr(format: str, *values: object) -> ctypes.Array[ctypes.c_char]:
    packed = struct.pack(format, *values)
    return ctypes.create_string_buffer(packed, len(packed))


def _buffer(data: bytes | int) -> ctypes.Array[ctypes.c_char]:
    """A C buffer with these bytes, or of this many zero bytes."""
    if isinstance(data, int):
        return ctypes.create_string_buffer(data)
    return ctypes.create_string_buffer(data, len(data))


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


# ---- objects ------------------------------------------------------------------------------------


def map_create(
    type: MapType, key_bytes: int, value_bytes: int, max_entries: int, flags: int, name: str
) -> int:
    return _bpf(
        _Cmd.MAP_CREATE,
        _attr(
            "=IIIIIII16s",
            type,
            key_bytes,
            value_bytes,
            max_entries,
            flags,
            0,
            0,
            name.encode()[:15],
        ),
    )


def map_info(fd: int) -> MapInfo:
    raw = _info(fd, 24)
    type, _, key_bytes, value_bytes, max_entries, flags = struct.unpack("=6I", raw)
    return MapInfo(type, key_bytes, value_bytes, max_entries, flags)


def prog_id(fd: int) -> int:
    return prog_info(fd).id


def prog_info(fd: int) -> ProgInfo:
    _, id, _, jited_bytes = struct.unpack("=2I8sI", _info(fd, 20))
    return ProgInfo(id, jited_bytes)


def link_info(fd: int) -> LinkInfo:
    type, _, prog, _, ifindex = struct.unpack("=5I", _info(fd, 20))
    return LinkInfo(type, prog, ifindex)


def _info(fd: int, size: int) -> bytes:
    out = _buffer(size)
    _bpf(_Cmd.OBJ_INFO, _attr("=IIQ", fd, size, _address(out)))
    return out.raw


def pin(fd: int, path: str) -> None:
    name = _buffer(path.encode() + b"\0")
    _bpf(_Cmd.OBJ_PIN, _attr("=QII", _address(name), fd, 0))


def get_pinned(path: str) -> int:
    name = _buffer(path.encode() + b"\0")
    return _bpf(_Cmd.OBJ_GET, _attr("=QII", _address(name), 0, 0))


def prog_load(
    instructions: bytes,
    name: str,
    *,
    flags: int,
    log: bool = False,
    type: int = PROG_TYPE_XDP,
) -> int:
    """Load a program. With `log`, a refusal carries the verifier's last words."""
    code = _buffer(instructions)
    license = _buffer(b"GPL\0")
    words = _buffer(VERIFIER_LOG_BYTES if log else 1)
    log_attr = (1, VERIFIER_LOG_BYTES, _address(words)) if log else (0, 0, 0)
    try:
        return _bpf(
            _Cmd.PROG_LOAD,
            _attr(
                "=IIQQIIQII16s",
                type,
                len(instructions) // 8,
                _address(code),
                _address(license),
                *log_attr,
                0,
                flags,
                name.encode()[:15],
            ),
        )
    except OSError as error:
        if not log:
            raise
        tail = words.value.decode(errors="replace")[-2000:]
        raise OSError(error.errno, f"{name} refused by the verifier: {tail}") from error


def link_create_xdp(prog_fd: int, ifindex: int, flags: int) -> int:
    return _bpf(_Cmd.LINK_CREATE, _attr("=IIIIQQ", prog_fd, ifindex, ATTACH_XDP, flags, 0, 0))


def link_create_tcx(prog_fd: int, ifindex: int) -> int:
    """Of a program for what comes in, behind those that are there (BPF_LINK_CREATE, Linux 6.6)."""
    attr = _attr("=IIIIIIQ", prog_fd, ifindex, ATTACH_TCX_INGRESS, 0, 0, 0, 0)
    return _bpf(_Cmd.LINK_CREATE, attr)


def link_update(link_fd: int, prog_fd: int) -> None:
    """Change the program of a link atomically: each packet sees the old one or the new one."""
    _bpf(_Cmd.LINK_UPDATE, _attr("=IIII", link_fd, prog_fd, 0, 0))


def link_detach(link_fd: int) -> None:
    """Take a link's program off its interface, before this returns.

    The end of the last descriptor and pin does so too, but some time later: the kernel leaves it to
    a worker (bpf_link_put in kernel/bpf/syscall.c).
    """
    _bpf(_Cmd.LINK_DETACH, _attr("=I", link_fd))


def prog_test_run(
    prog_fd: int, packet: bytes, *, ifindex: int, repeat: int = 1, type: int = PROG_TYPE_XDP
) -> TestRun:
    """Run a program on a packet, as if it came in by `ifindex` (of this namespace).

    Repeated, it sees the packet as it left it the last time; `duration_ns` is the mean of the runs.
    """
    data, out = _buffer(packet), _buffer(len(packet) + 512)
    if type == PROG_TYPE_XDP:
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        context = _buffer(struct.pack("=6I", 0, len(packet), 0, ifindex, 0, 0))
    else:
        # struct __sk_buff: among much else ingress_ifindex, ifindex
        context = _buffer(struct.pack("=36xII148x", ifindex, ifindex))
    attr = _attr(
        "=IIIIQQIIIIQQIII4x",
        prog_fd,
        0,
        len(packet),
        len(out),
        _address(data),
        _address(out),
        repeat,
        0,
        len(context),
        0,
        _address(context),
        0,
        0,
        0,
        0,
    )
    _bpf(_Cmd.PROG_TEST_RUN, attr)
    _, verdict, _, size = struct.unpack_from("=4I", attr.raw)
    (duration,) = struct.unpack_from("=I", attr.raw, 36)
    return TestRun(verdict, out.raw[:size], duration)


def prog_live_run(prog_fd: int, packet: bytes, *, ifindex: int, repeat: int) -> None:
    """Run a program on `repeat` packets that are real: they go where its verdicts say.

    Their memory is used again, as whoever had them before has left it.
    """
    data = _buffer(packet)
    context = _buffer(struct.pack("=6I", 0, len(packet), 0, ifindex, 0, 0))
    attr = _attr(
        "=IIIIQQIIIIQQIII4x",
        prog_fd,
        0,
        len(packet),
        0,
        _address(data),
        0,
        repeat,
        0,
        len(context),
        0,
        _address(context),
        0,
        _TEST_RUN_LIVE,
        0,
        LIVE_BATCH_PACKETS,
    )
    _bpf(_Cmd.PROG_TEST_RUN, attr)


def await_programs() -> None:
    """Return when the programs that were at work when this was called have ended.

    They run within an RCU read-side section each, and MEMBARRIER_CMD_GLOBAL waits for all of these
    (membarrier(2)); not where processors run without a tick (nohz_full).
    """
    number = _MEMBARRIER_NUMBERS[platform.machine()]
    if _libc.syscall(number, _MEMBARRIER_GLOBAL, 0, 0) != 0:
        time.sleep(PROGRAM_WAIT_S)


# ---- rows ---------------------------------------------------------------------------------------


def lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """The value of a key, None if there is none. Per-CPU values need all their copies' size."""
    k, v = _buffer(key), _buffer(value_bytes)
    try:
        _bpf(_Cmd.MAP_LOOKUP, _attr("=I4xQQQ", fd, _address(k), _address(v), 0))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return v.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    k, v = _buffer(key), _buffer(value)
    _bpf(_Cmd.MAP_UPDATE, _attr("=I4xQQQ", fd, _address(k), _address(v), UPDATE_ANY))


def insert(fd: int, key: bytes, value: bytes) -> bool:
    """Write a key that is not there; False, and nothing written, if it is."""
    k, v = _buffer(key), _buffer(value)
    try:
        _bpf(_Cmd.MAP_UPDATE, _attr("=I4xQQQ", fd, _address(k), _address(v), UPDATE_NEW))
    except OSError as error:
        if error.errno == errno.EEXIST:
            return False
        raise
    return True


def delete(fd: int, key: bytes) -> bool:
    """Remove a key; False if it was not there."""
    k = _buffer(key)
    try:
        _bpf(_Cmd.MAP_DELETE, _attr("=I4xQQQ", fd, _address(k), 0, 0))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def update_rows(fd: int, rows: Sequence[tuple[bytes, bytes]]) -> None:
    """Write rows in batches. Raises BatchFull with the number of rows that are in."""
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        keys = _buffer(b"".join(key for key, _ in part))
        values = _buffer(b"".join(value for _, value in part))
        attr = _batch_attr(fd, keys, values, len(part))
        try:
            _bpf(_Cmd.MAP_UPDATE_BATCH, attr)
        except OSError as error:
            # A hash says E2BIG, a prefix tree ENOSPC.
            if error.errno in (errno.E2BIG, errno.ENOSPC):
                raise BatchFull(start + _batch_count(attr)) from error
            raise


def delete_rows(fd: int, keys: Sequence[bytes]) -> None:
    """Remove keys in batches; a key that is not there does not matter."""
    start = 0
    while start < len(keys):
        part = keys[start : start + BATCH_ROWS]
        buffer = _buffer(b"".join(part))  # the attribute only has its address: keep it until after
        attr = _batch_attr(fd, buffer, None, len(part))
        try:
            _bpf(_Cmd.MAP_DELETE_BATCH, attr)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            start += _batch_count(attr) + 1  # the batch stopped at an absent key: go on after it
            continue
        start += len(part)


def dump_rows(fd: int, key_bytes: int, value_bytes: int) -> Iterator[tuple[bytes, bytes]]:
    """All rows of a map, by batches. Rows written meanwhile may be missed."""
    for keys, values, count in _dump_batches(fd, key_bytes, value_bytes):
        for index in range(count):
            yield (
                keys[index * key_bytes : (index + 1) * key_bytes],
                values[index * value_bytes : (index + 1) * value_bytes],
            )


def dump_values(fd: int, key_bytes: int, value_bytes: int) -> bytes:
    """All values of an array, one behind the other."""
    batches = _dump_batches(fd, key_bytes, value_bytes)
    return b"".join(values[: count * value_bytes] for _, values, count in batches)


def dump_heads(fd: int, key_bytes: int, value_bytes: int, head_bytes: int) -> dict[bytes, bytes]:
    """All rows of a map by key, of each value only how it begins. For maps with many rows: what is
    done for each of them is done in C."""
    heads: dict[bytes, bytes] = {}
    value = f"{head_bytes}s{value_bytes - head_bytes}x"
    for keys, values, count in _dump_batches(fd, key_bytes, value_bytes):
        names = struct.unpack_from("=" + f"{key_bytes}s" * count, keys)
        heads.update(zip(names, struct.unpack_from("=" + value * count, values), strict=True))
    return heads


def count_rows(fd: int, key_bytes: int, value_bytes: int) -> int:
    """Rows in a map: the kernel does not say, so they are walked (0.3 s for a million)."""
    return sum(count for _, _, count in _dump_batches(fd, key_bytes, value_bytes))


def _dump_batches(fd: int, key_bytes: int, value_bytes: int) -> Iterator[tuple[bytes, bytes, int]]:
    capacity = BATCH_ROWS
    cursor: ctypes.Array[ctypes.c_char] | None = None
    while True:
        keys, values = _buffer(capacity * key_bytes), _buffer(capacity * value_bytes)
        after = _buffer(max(key_bytes, 4))
        attr = _batch_attr(fd, keys, values, capacity, cursor, after)
        last = False
        try:
            _bpf(_Cmd.MAP_LOOKUP_BATCH, attr)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # one bucket holds more than fits
                capacity *= 2
                continue
            if error.errno != errno.ENOENT:
                raise
            last = True
        yield keys.raw, values.raw, _batch_count(attr)
        if last:
            return
        cursor = after


def _batch_attr(
    fd: int,
    keys: ctypes.Array[ctypes.c_char],
    values: ctypes.Array[ctypes.c_char] | None,
    count: int,
    cursor: ctypes.Array[ctypes.c_char] | None = None,
    after: ctypes.Array[ctypes.c_char] | None = None,
) -> ctypes.Array[ctypes.c_char]:
    return _attr(
        "=QQQQIIQQ",
        _address(cursor) if cursor else 0,
        _address(after) if after else 0,
        _address(keys),
        _address(values) if values else 0,
        count,
        fd,
        0,
        0,
    )


def _batch_count(attr: ctypes.Array[ctypes.c_char]) -> int:
    (count,) = struct.unpack_from("=I", attr.raw, 32)
    return int(count)


def processors() -> int:
    """Copies in a per-CPU value: the kernel's possible processors, not those online."""
    with open("/sys/devices/system/cpu/possible") as file:  # noqa: PTH123
        ranges = file.read().strip().split(",")
    return max(int(part.split("-")[-1]) for part in ranges) + 1
