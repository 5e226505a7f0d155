"""Tables in arrays behind an index: what programs find, whatever was interrupted before."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.backend import Capacity
from dataplane.xdp import kernel, layout
from dataplane.xdp.indexed import Indexed, Readers, _cells_for

ROWS, CELLS = 8, 256
VALUE_BYTES = 12
COUNTER_BYTES = 8
U32 = struct.Struct("=I")
VPC, VNI = "v", 78


class CountedReaders(Readers):
    """That says how often programs were waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def end_all(self) -> None:
        super().end_all()
        self.waits += 1


class Table:
    """Maps of the kernel's, as small as can be, and their rows."""

    def __init__(self) -> None:
        row, array = layout.PLACED_BYTES + VALUE_BYTES, kernel.MapType.ARRAY
        self.fd = kernel.map_create(array, 4, row, 2 * ROWS, 0, "rows")
        self.index_fd = kernel.map_create(array, 4, 4, 1 + CELLS, 0, "index")
        percpu = kernel.MapType.PERCPU_ARRAY
        self.counters_fd = kernel.map_create(percpu, 4, COUNTER_BYTES, ROWS, 0, "counters")
        self.readers = CountedReaders()
        self.rows = self.open()

    def open(self) -> Indexed:
        return Indexed(self.fd, self.index_fd, self.counters_fd, self.readers)

    def close(self) -> None:
        for fd in (self.fd, self.index_fd, self.counters_fd):
            os.close(fd)

    def put(self, *numbers: int, content: int = 0) -> list[int]:
        """The keys that were refused."""
        rows = [(U32.pack(number), value(number, content)) for number in numbers]
        return [U32.unpack(key)[0] for key, _ in self.rows.put(rows)]

    def delete(self, *numbers: int) -> None:
        self.rows.delete([U32.pack(number) for number in numbers])

    def found(self) -> dict[int, bytes]:
        return {U32.unpack(key)[0]: value for key, value in self.rows.rows()}

    def cell(self, number: int) -> int:
        return int(U32.unpack(kernel.lookup(self.index_fd, U32.pack(number), 4) or b"")[0])

    def set_cell(self, number: int, to: int) -> None:
        kernel.update(self.index_fd, U32.pack(number), U32.pack(to))

    def used(self) -> list[int]:
        return [cell for cell in range(1, 1 + CELLS) if self.cell(cell)]


def value(number: int, content: int) -> bytes:
    return struct.pack("=III", number, content, ~content & 0xFFFFFFFF)


@contextlib.contextmanager
def made_table() -> Iterator[Table]:
    table = Table()
    try:
        yield table
    finally:
        table.close()


@pytest.fixture
def table(xdp_machine: None) -> Iterator[Table]:
    with made_table() as made:
        yield made


keys = st.sampled_from([1, 257, 513, 769, 1025, 2, 258, 3, 0xFFFFFFFF, 0x80000001, 1000, 1256])
"""Many with the same first cell."""
steps = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.lists(keys, unique=True, max_size=5), st.integers(0, 99)),
        st.tuples(st.just("delete"), st.lists(keys, unique=True, max_size=3), st.just(0)),
        st.tuples(st.just("open"), st.just([]), st.just(0)),
    ),
    max_size=8,
)


@pytest.mark.usefixtures("xdp_machine")
@settings(max_examples=40, deadline=None)
@given(steps)
def test_what_was_written_is_found_by_whoever_opens_the_maps(done: Any) -> None:
    with made_table() as table:
        expected: dict[int, bytes] = {}
        for what, numbers, content in done:
            if what == "put":
                refused = table.put(*numbers, content=content)
                assert not refused or len(expected) + len(numbers) > ROWS
                written = {n: value(n, content) for n in numbers if n not in refused}
                expected |= written
            elif what == "delete":
                table.delete(*numbers)
                expected = {n: raw for n, raw in expected.items() if n not in numbers}
            else:
                table.rows = table.open()
            assert table.found() == expected and len(table.rows) == len(expected)
            assert len(table.used()) == len(expected)
            assert all(table.rows.lookup(U32.pack(n)) == raw for n, raw in expected.items())


def test_a_row_that_changes_is_not_written_where_programs_read_it(table: Table) -> None:
    def at(cell: int) -> tuple[int, bytes | None]:
        place = table.cell(cell) - layout.INDEX_FIRST
        return place, kernel.lookup(table.fd, U32.pack(place), layout.PLACED_BYTES + VALUE_BYTES)

    table.put(5, content=1)
    (cell,) = table.used()
    before, raw = at(cell)
    table.put(5, content=2)
    after, _ = at(cell)
    assert after == before ^ 1 and table.readers.waits == 0
    former = kernel.lookup(table.fd, U32.pack(before), len(raw or b""))
    assert former == raw and raw is not None and raw.endswith(value(5, 1))
    table.put(5, content=3)  # its first place again: whoever read there has ended
    assert at(cell)[0] == before and table.readers.waits == 1


def test_a_slot_that_is_free_is_not_written_to_before_its_readers_have_ended(table: Table) -> None:
    table.put(*range(100, 100 + ROWS))
    table.delete(100)
    assert table.readers.waits == 0
    assert table.put(200) == [] and table.readers.waits == 1


def test_keys_move_for_others(table: Table) -> None:
    rival, one, alike = 257, 1, 0x80000001
    """One's cells are the second's, too; its first is that of the rival."""
    assert _cells_for(one, CELLS - 1) == _cells_for(alike, CELLS - 1) == (2, 111)
    assert _cells_for(rival, CELLS - 1) == (2, 99)
    assert table.put(rival) == table.put(one) == [] and table.used() == [2, 111]
    assert table.put(alike) == [] and table.used() == [2, 99, 111]
    assert table.readers.waits == 1  # for those that had looked for the rival at its second cell
    assert table.found() == {number: value(number, 0) for number in (rival, one, alike)}
    table.delete(rival)
    table.put(alike, content=1)
    assert table.found() == {one: value(one, 0), alike: value(alike, 1)}


def test_what_is_full_says_so(table: Table) -> None:
    assert table.put(*range(ROWS + 2)) == [ROWS, ROWS + 1]
    assert table.put(ROWS) == [ROWS]
    table.delete(3)
    assert table.put(ROWS) == []


def test_counters_begin_at_zero_with_each_row_and_stay_as_it_changes(table: Table) -> None:
    width = COUNTER_BYTES * kernel.processors()
    table.put(7)
    ones = b"\1" * width
    kernel.update(table.counters_fd, U32.pack(0), ones)
    table.put(7, content=9)
    assert table.rows.counted(U32.pack(7)) == ones
    table.delete(7)
    assert table.rows.counted(U32.pack(7)) == b""
    table.put(*range(20, 20 + ROWS))
    assert all(table.rows.counted(U32.pack(n)) == bytes(width) for n in range(20, 20 + ROWS))
    table.rows.count_anew(U32.pack(99))  # not there: nothing


def test_cells_that_lead_astray_are_not_believed(table: Table) -> None:
    table.put(1, content=4)
    cell = table.cell(2)
    assert table.used() == [2]  # the cell of 1
    table.set_cell(9, cell)  # not a cell of 1
    table.set_cell(4, cell ^ 1)  # to the slot's other place, which says nothing of itself
    table.set_cell(5, 0xFFFFFFFF)  # beyond all places
    assert table.found() == {1: value(1, 4)}
    table.rows = table.open()
    assert table.found() == {1: value(1, 4)} and table.cell(2) == cell
    assert table.cell(9) == table.cell(4) == 0
    table.put(4)  # whose cell leads nowhere
    assert table.found() == {1: value(1, 4), 4: value(4, 0)}


def test_what_the_kernel_refuses_leaves_the_next_call_to_look(table: Table) -> None:
    table.put(1)
    fd = table.rows._fd
    table.rows._fd = 1 << 20  # no descriptor
    with pytest.raises(OSError, match="UPDATE"):
        table.put(1, 2, content=5)
    table.rows._fd = fd
    assert table.found() == {1: value(1, 0)}
    table.put(3)
    assert table.found() == {1: value(1, 0), 3: value(3, 0)} and len(table.rows) == 2


# ---- under programs -----------------------------------------------------------------------------


@pytest.fixture
def pair(site_pair: Any) -> Any:
    site_pair.vpc(VPC, VNI, {"10.0.1.0/24": ("a",), "10.0.2.0/24": ("b",)})
    site_pair.pod(site_pair.a, "one", VPC, "10.0.1.10")
    site_pair.pod(site_pair.b, "two", VPC, "10.0.2.10")
    site_pair.open()
    return site_pair


INDEXES = ("port_index", "gateway_index", "group_index")


def test_programs_find_rows_by_either_cell_and_an_audit_those_they_do_not(pair: Any) -> None:
    gateway, one = pair.a, pair.pods["one"]
    backend = gateway.backend
    for table, name in zip(("ports", "gateways", "groups"), INDEXES, strict=True):
        rows, fd = backend._maps._indexed[table], backend._maps._fds[name]
        for key, cell in list(rows._cell_of.items()):
            second = _cells_for(key, rows._mask)[1]
            to = kernel.lookup(fd, U32.pack(cell), 4)
            assert to is not None
            kernel.update(fd, U32.pack(cell), bytes(4))
            kernel.update(fd, U32.pack(second), to)
    assert one.ping("10.0.2.10", count=3) == 3
    tables = gateway.compiler.tables()
    assert gateway.run(lambda: backend.audit(tables)).clean

    fd = backend._maps._fds["port_index"]
    raw = kernel.dump_values(fd, 4, 4)
    (lost,) = (cell for cell in range(1, len(raw) // 4) if any(raw[4 * cell : 4 * cell + 4]))
    kernel.update(fd, U32.pack(lost), bytes(4))
    assert one.ping("10.0.2.10", timeout_s=0.1) == 0
    assert gateway.run(lambda: backend.repair(tables)).missing == (f"ports {one.ifname}",)
    assert gateway.run(lambda: backend.audit(tables)).clean
    assert one.ping("10.0.2.10", count=3) == 3


def test_more_room_is_made_under_the_programs_at_work(pair: Any) -> None:
    gateway, one = pair.a, pair.pods["one"]
    gateway.run(gateway.backend.close)
    gateway.open(capacity=Capacity(endpoints=64, gateways=8192))
    assert gateway.backend.capacities()["gateways"] == 8192
    assert gateway.backend.capacities()["ports"] == Capacity().ports
    assert one.ping("10.0.2.10", count=3) == 3  # on the maps of before
    gateway.sync()
    assert one.ping("10.0.2.10", count=3) == 3
    assert gateway.run(lambda: gateway.backend.audit(gateway.compiler.tables())).clean
