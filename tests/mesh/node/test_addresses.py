"""Which of a machine's addresses other nodes are told."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mesh.node.addresses import ADDRESSES_MAX, advertised, choose

TEMPORARY, DEPRECATED, TENTATIVE, PERMANENT = 0x01, 0x20, 0x40, 0x80


def test_both_families_take_turns_and_the_underlay_is_first() -> None:
    found = [(f"10.0.{n}.1", PERMANENT) for n in range(20)]
    found += [("2001:db8::1", PERMANENT), ("2001:db8::2", PERMANENT)]
    chosen = choose("10.0.7.1", found)
    assert chosen[0] == "10.0.7.1"
    assert {"2001:db8::1", "2001:db8::2"} <= set(chosen)
    assert len(chosen) == len(set(chosen)) == ADDRESSES_MAX


def test_what_does_not_last_or_reaches_nobody_is_left_out() -> None:
    found = [
        ("127.0.0.1", PERMANENT),
        ("::1", PERMANENT),
        ("169.254.3.4", PERMANENT),
        ("fe80::1", PERMANENT),
        ("2001:db8::a", TEMPORARY),
        ("2001:db8::b", DEPRECATED),
        ("2001:db8::c", TENTATIVE),
        ("2001:db8::d", PERMANENT),
        ("fd00::e", PERMANENT),
        # IPv4 has no temporary addresses: there the bit says "secondary".
        ("192.0.2.9", TEMPORARY),
    ]
    assert choose(None, found) == ["192.0.2.9", "2001:db8::d", "fd00::e"]


def test_with_nothing_but_loopback_loopback_is_told() -> None:
    assert choose(None, [("127.0.0.1", PERMANENT), ("::1", PERMANENT)]) == ["127.0.0.1"]


def test_wildcards_become_the_addresses_of_their_family() -> None:
    listening = ["/ip6/::/tcp/7400", "/ip4/0.0.0.0/tcp/7401", "/ip4/192.0.2.1/tcp/9"]
    assert advertised(listening, ["10.0.0.1", "2001:db8::1", "10.0.0.2"]) == [
        "/ip6/2001:db8::1/tcp/7400",
        "/ip4/10.0.0.1/tcp/7401",
        "/ip4/10.0.0.2/tcp/7401",
        "/ip4/192.0.2.1/tcp/9",
    ]


@given(
    st.none() | st.just("192.0.2.1"),
    st.lists(st.tuples(st.ip_addresses().map(str), st.integers(0, 0xFFFF)), max_size=40),
)
def test_there_is_always_something_to_tell_and_never_too_much(
    underlay: str | None, found: list[tuple[str, int]]
) -> None:
    chosen = choose(underlay, found)
    assert 1 <= len(chosen) <= ADDRESSES_MAX
    assert len(set(chosen)) == len(chosen)
    assert underlay is None or chosen[0] == underlay
    families = [":" in text for text in chosen[1:]]
    four, six = families.count(False), families.count(True)
    # Where one family has two in a row, the other has no more.
    for n, (a, b) in enumerate(pairwise(families)):
        if a == b:
            assert (not a) not in families[n + 1 :]
    assert four + six == len(chosen) - 1
