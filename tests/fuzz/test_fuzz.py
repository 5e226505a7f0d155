"""Every decoder against its corpus and a bounded number of random inputs; `./just fuzz` goes on."""

from __future__ import annotations

import pytest

from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.run import check, corpus, fuzz
from tests.fuzz.seeds import seeds

INPUTS = 1500


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_a_decoder_takes_what_encodes_again_or_raises_its_own_error(decoder: Decoder) -> None:
    start = seeds()[decoder.name]
    assert all(check(decoder, data, "a seed") for data in start)
    kept = corpus(decoder.name)
    for data in kept:
        check(decoder, data, "of the corpus")
    assert fuzz(decoder, [*start, *kept], 1, INPUTS) > 0
