"""Ed25519 against RFC 8032's own vectors, and against everything that is no signature."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.core import ed25519

# RFC 8032, 7.1: (secret seed, public key, message, signature)
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ORDER = 2**252 + 27742317777372353535851937790883648493
SEED = bytes(range(32))
KEY = ed25519.public_key(SEED)


@pytest.mark.parametrize("vector", VECTORS)
def test_the_rfc_s_vectors(vector: tuple[str, ...]) -> None:
    seed, key, message, signature = map(bytes.fromhex, vector)
    assert ed25519.public_key(seed) == key
    assert ed25519.sign(seed, message) == signature
    assert ed25519.verify(key, message, signature)


@given(st.binary(max_size=300), st.integers(0, 10**6))
def test_one_changed_bit_anywhere_is_no_signature(message: bytes, bit: int) -> None:
    signature = ed25519.sign(SEED, message)
    assert ed25519.verify(KEY, message, signature)
    whole = bytearray(KEY + signature + message)
    bit %= len(whole) * 8
    whole[bit // 8] ^= 1 << bit % 8
    key, changed, said = bytes(whole[:32]), bytes(whole[32:96]), bytes(whole[96:])
    assert not ed25519.verify(key, said, changed)


@given(st.binary(max_size=100), st.binary(max_size=100), st.binary(max_size=20))
def test_what_has_another_length_is_refused(key: bytes, signature: bytes, message: bytes) -> None:
    signed = ed25519.sign(SEED, message)
    assert ed25519.verify(KEY, message, signed)
    assert not ed25519.verify(KEY, message, signed[:-1])
    assert not ed25519.verify(KEY, message, signed + b"\0")
    assert not ed25519.verify(KEY[:-1], message, signed)
    assert not ed25519.verify(KEY + b"\0", message, signed)
    assert not ed25519.verify(key, message, signature)


def test_a_signature_has_one_form() -> None:
    """RFC 8032, 5.1.7: S below the group's order; S plus the order would verify as well."""
    signed = ed25519.sign(SEED, b"once")
    other = int.from_bytes(signed[32:], "little") + ORDER
    assert not ed25519.verify(KEY, b"once", signed[:32] + other.to_bytes(32, "little"))


def test_keys_that_sign_anything_are_refused() -> None:
    """Of small order: with R of small order and S = 0 one signature fits many messages."""
    for key in (bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"):
        assert not ed25519.verify(key, b"any", b"\1" + bytes(63))
