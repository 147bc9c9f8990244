"""No text makes a source learn slowly: what every registered source that learns from text must show."""

from __future__ import annotations

import time

import numpy as np
import pytest

from retrieval_spec.drafters.registry import DRAFTERS, drafter_class
from tests.contract.test_drafters import PARAMS, VOCAB_SIZE
from tests.test_suffix_automaton import TEXTS

pytestmark = pytest.mark.row("A2")

COMMIT_TOKENS = 64
FEW, MANY = 4_000, 32_000
MOST_TIMES_SLOWER = 24.0
"""For eight times the text: a linear source takes eight times as long, a quadratic one 64 times."""
SPARE_S = 0.002


def learning_s(name: str, text: np.ndarray) -> float:
    """The least time of three sessions that write the text and end."""
    times = []
    for _ in range(3):
        drafter = drafter_class(name).open(vocab_size=VOCAB_SIZE)
        began_s = time.thread_time()
        cursor = drafter.start(text[:0])
        for begin in range(0, len(text), COMMIT_TOKENS):
            cursor.observe(text[begin : begin + COMMIT_TOKENS])
        getattr(cursor, "close", lambda: None)()
        times.append(time.thread_time() - began_s)
    return min(times)


@pytest.mark.parametrize("text", ["one token", "fibonacci", "de bruijn", "all different"])
@pytest.mark.parametrize("name", sorted(DRAFTERS.keys() - PARAMS.keys()))
def test_a_text_eight_times_as_long_is_learned_in_about_eight_times_the_time(name, text):
    few, many = (np.array(TEXTS[text](length), np.int64) % VOCAB_SIZE for length in (FEW, MANY))
    learning_s(name, few[:COMMIT_TOKENS].astype(np.int32))  # compiles
    at_few, at_many = (learning_s(name, tokens.astype(np.int32)) for tokens in (few, many))
    print(name, text, round(at_many / at_few, 1))
    assert at_many <= MOST_TIMES_SLOWER * (at_few + SPARE_S)
