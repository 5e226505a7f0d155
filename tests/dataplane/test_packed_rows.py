"""Endpoint rows are packed as the kernel's map holds them, and read back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dataplane.fib.rows import ROW_BYTES, EndpointKey, EndpointRow, group_of, ifname_of
from dataplane.xdp import layout, pack
from dataplane.xdp.pack import Interface
from dataplane.xdp.state import Resolved

u32 = st.integers(0, (1 << 32) - 1)
rows = st.builds(
    EndpointRow,
    u32,
    st.sampled_from(["", "p0", "veth-name-of-15"]),
    st.binary(min_size=6, max_size=6),
)


u128 = st.integers(0, (1 << 128) - 1)


@given(st.builds(EndpointKey, u32, u128 | u32.map(lambda n: 0xFFFF << 32 | n)), rows, u32)
def test_packed_rows_are_the_maps_bytes_and_read_back(
    key: EndpointKey, row: EndpointRow, generation: int
) -> None:
    assert EndpointKey.unpack(key.pack()) == key and EndpointRow.unpack(row.pack()) == row
    assert (group_of(row.pack()), ifname_of(row.pack())) == (row.group, row.ifname)
    assert (len(row.pack()) > ROW_BYTES) == bool(row.ifname)
    state = Resolved(0)
    state.interfaces["p0"] = Interface(7, 1500)
    ((raw, value),) = state.endpoint_rows({key.pack(): row.pack()}, generation)
    assert raw == layout.ENDPOINT_KEY.packer.pack(key.vni, key.ip.to_bytes(16, "big"))
    ifindex = 7 if row.ifname == "p0" else 0
    assert value == layout.ENDPOINT_VALUE.packer.pack(row.group, ifindex, row.mac, 0, generation)
    installed = pack.read_endpoint(value)
    assert (installed.group, installed.mac, installed.ifindex) == (row.group, row.mac, ifindex)
