"""Every decoder against its corpus and a bounded number of inputs more; `./just fuzz` goes on."""

from __future__ import annotations

import pytest

from tests.fuzz.decoders import DECODERS, Decoder
from tests.fuzz.reached import Reached
from tests.fuzz.run import begin, corpus, fuzz
from tests.fuzz.seeds import seeds

INPUTS = 200
REACHED_PERCENT = 94
"""Of the lines of all decoders and of what they call, by the seeds and the corpus alone. The rest
are bounds that no input of this size meets, and what only another caller does."""


STARTS = {name: [*right, *corpus(name)] for name, right in seeds().items()}


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)
def test_a_decoder_takes_what_encodes_again_or_raises_its_own_error(decoder: Decoder) -> None:
    found = begin(decoder, STARTS[decoder.name])
    fuzz(decoder, STARTS[decoder.name], found, 1, INPUTS)
    assert found.taken > 0


def test_a_seed_is_taken_and_the_corpus_reaches_nearly_every_line_of_the_decoders() -> None:
    right, reached = seeds(), Reached()
    for decoder in DECODERS:
        assert all(decoder.check(data) for data in right[decoder.name]), decoder.name
        reached.steps |= begin(decoder, STARTS[decoder.name]).reached.steps
    lines, every = reached.lines()
    assert 100 * len(lines) >= REACHED_PERCENT * len(every), (
        f"not reached: {sorted(every - lines)}; have it found: ./just fuzz 600 keep"
    )


def test_a_way_that_is_new_is_told_from_one_that_is_not() -> None:
    decoder = next(decoder for decoder in DECODERS if decoder.name == "address")
    reached = Reached()
    sizes = []
    for data in (b"/ip4/127.0.0.1/tcp/1", b"/ip4/127.0.0.2/tcp/2", b"nonsense"):
        with reached.watching():
            decoder.check(data)
        sizes.append(len(reached.steps))
    assert 0 < sizes[0] == sizes[1] < sizes[2]
