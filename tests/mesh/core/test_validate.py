"""What people type: canonical or refused, in one line that says what to do."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import keys, validate
from mesh.core.errors import BadInput

GOOD: list[tuple[Callable[..., Any], Any, Any]] = [
    (validate.name, "a", "a"),
    (validate.name, "red-2", "red-2"),
    (validate.name, "a" * 63, "a" * 63),
    (validate.optional_name, None, ""),
    (validate.optional_name, "", ""),
    (validate.optional_name, "acme", "acme"),
    (validate.names, ["b", "a", "b"], ("a", "b")),
    (validate.vni, 1, 1),
    (validate.vni, 16777215, 16777215),
    (validate.mac, "02:00:00:aa:bb:cc", "02:00:00:aa:bb:cc"),
    (validate.mac, "02:00:00:AA:BB:CC", "02:00:00:aa:bb:cc"),
    (validate.ip, "10.0.0.1", "10.0.0.1"),
    (validate.ip, "fd00::1", "fd00::1"),
    (validate.underlay_ip, "127.0.0.1", "127.0.0.1"),
    (validate.underlay_ip, "2001:db8::1", "2001:db8::1"),
    (validate.underlay_ip, "fd00::1", "fd00::1"),
    (validate.pod_ip, "10.0.0.1", "10.0.0.1"),
    (validate.pod_ip, "fd00::5", "fd00::5"),
    (validate.pod_ip, "2001:db8::1", "2001:db8::1"),
    (validate.pod_cidrs, ["fd00::/64", "10.0.0.0/16"], ("10.0.0.0/16", "fd00::/64")),
    (validate.pod_cidrs, ["fd00::/126"], ("fd00::/126",)),
    (validate.pod_cidrs, ["10.1.0.0/16", "10.0.0.0/16"], ("10.0.0.0/16", "10.1.0.0/16")),
    (validate.pod_cidrs, ["10.0.0.0/30"], ("10.0.0.0/30",)),
    (validate.printable, "/ip4/10.0.0.1/tcp/1", "/ip4/10.0.0.1/tcp/1"),
    (validate.labels, None, ()),
    (validate.labels, {"b": "2", "a": "1"}, (("a", "1"), ("b", "2"))),
]

BAD: list[tuple[Callable[..., Any], Any, str]] = [
    (validate.name, "", "use 1 to 63"),
    (validate.name, "Red", "use 1 to 63"),
    (validate.name, "-red", "use 1 to 63"),
    (validate.name, "red-", "use 1 to 63"),
    (validate.name, "red\n", "use 1 to 63"),
    (validate.name, "a" * 64, "use 1 to 63"),
    (validate.name, 7, "give a text"),
    (validate.names, [f"s{i}" for i in range(129)], "at most 128"),
    (validate.vni, 0, "from 1 to 16777215"),
    (validate.vni, 16777216, "from 1 to 16777215"),
    (validate.vni, True, "from 1 to 16777215"),
    (validate.vni, "7", "from 1 to 16777215"),
    (validate.mac, "02:00:00:00:00", "aa:bb:cc:dd:ee:ff"),
    (validate.mac, "02-00-00-00-00-01", "aa:bb:cc:dd:ee:ff"),
    (validate.mac, "01:00:5e:00:00:01", "unicast"),
    (validate.mac, "ff:ff:ff:ff:ff:ff", "unicast"),
    (validate.mac, "00:00:00:00:00:00", "not zeros"),
    (validate.ip, "10.0.0", "such as"),
    (validate.ip, "10.0.0.01", "such as"),
    (validate.ip, "fd00::0001", "write it as fd00::1"),
    (validate.ip, "fe80::1%eth0", "without a zone"),
    (validate.ip, None, "give a text"),
    (validate.underlay_ip, "fe80::1", "give a global or unique local address"),
    (validate.underlay_ip, "::ffff:a00:1", "give a global or unique local address"),
    (validate.underlay_ip, "224.0.0.1", "give the address of an interface"),
    (validate.underlay_ip, "ff02::1", "give the address of an interface"),
    (validate.underlay_ip, "::", "give the address of an interface"),
    (validate.pod_ip, "127.0.0.1", "unicast"),
    (validate.pod_ip, "0.0.0.0", "unicast"),
    (validate.pod_ip, "224.0.0.1", "unicast"),
    (validate.pod_ip, "255.255.255.255", "unicast"),
    (validate.pod_ip, "::", "unicast"),
    (validate.pod_ip, "::1", "unicast"),
    (validate.pod_ip, "::ffff:a00:1", "unicast"),
    (validate.pod_ip, "fe80::1", "unicast"),
    (validate.pod_ip, "ff02::1", "unicast"),
    (validate.cidr, "10.0.0.1/24", "write it as 10.0.0.0/24"),
    (validate.cidr, "10.0.0.0/255.255.255.0", "write it as 10.0.0.0/24"),
    (validate.cidr, "10.0.0.0", "write it as 10.0.0.0/32"),
    (validate.cidr, "10.0.0.0/33", "such as"),
    (validate.cidr, "fe80::%1/64", "without a zone"),
    (validate.pod_cidr, "fd00::/127", "too small"),
    (validate.pod_cidr, "::/0", "unicast"),
    (validate.pod_cidr, "::ffff:0:0/96", "unicast"),
    (validate.pod_cidrs, ["fd00::/48", "fd00::/64", "10.0.0.0/16"], "overlaps fd00::/48"),
    (validate.pod_cidr, "10.0.0.0/31", "too small"),
    (validate.pod_cidr, "0.0.0.0/0", "unicast"),
    (validate.pod_cidr, "224.0.0.0/24", "unicast"),
    (validate.pod_cidrs, [], "at least one"),
    (validate.pod_cidrs, ["10.0.0.0/16", "10.0.1.0/24"], "overlaps 10.0.0.0/16"),
    (validate.pod_cidrs, [f"10.{i}.0.0/16" for i in range(33)], "at most 32"),
    (validate.printable, "a\x1b[31m", "printable"),
    (validate.printable, "a" * 257, "printable"),
    (validate.labels, {"a": "\n"}, "printable"),
    (validate.labels, {"a" * 64: ""}, "printable"),
    (validate.labels, {str(i): "" for i in range(17)}, "at most 16"),
]


@pytest.mark.parametrize(("check", "value", "canonical"), GOOD)
def test_good_input_becomes_canonical(
    check: Callable[..., Any], value: Any, canonical: Any
) -> None:
    assert check("--x", value) == canonical


@pytest.mark.parametrize(("check", "value", "fix"), BAD)
def test_bad_input_is_refused_with_the_fix(check: Callable[..., Any], value: Any, fix: str) -> None:
    with pytest.raises(BadInput) as caught:
        check("--x", value)
    text = str(caught.value)
    assert text.startswith("--x: ") and fix in text


@given(st.sampled_from([check for check, *_ in BAD]), st.text())
def test_arbitrary_text_passes_or_is_bad_input_on_one_short_line(
    check: Callable[..., Any], value: str
) -> None:
    try:
        check("--x", value)
    except BadInput as error:
        assert str(error).isprintable() and len(str(error)) < 250
    except AttributeError:
        assert check is validate.labels  # takes a mapping


NEAR_ADDRESSES = st.ip_addresses().map(str) | st.from_regex(
    r"[0-9]{1,3}(\.[0-9]{1,3}){2,4}|[0-9a-f:]{2,12}(:[0-9.]{7})?|\d{1,3}(\.\w{1,3}){3}\n?",
    fullmatch=True,
)


@given(NEAR_ADDRESSES)
def test_addresses_are_what_the_library_says_they_are(text: str) -> None:
    try:
        parsed = ipaddress.ip_address(text)
        canonical = str(parsed) == text
    except ValueError:
        canonical = False
    if not canonical:
        with pytest.raises(BadInput):
            validate.ip("--x", text)
        return
    assert validate.ip("--x", text) == text
    assert keys.addr_of(text) == parsed.packed
    assert keys.ip_of(parsed.packed) == text
    four = any(parsed in network for network in validate._NOT_FOR_PODS)
    six = any(parsed in network for network in validate._NOT_FOR_PODS_6)
    if not (four or six):
        assert validate.pod_ip("--x", text) == text
    else:
        with pytest.raises(BadInput):
            validate.pod_ip("--x", text)
