"""How long an answer takes tells no tenant what another one wrote: medians over interleaved pairs."""

from __future__ import annotations

import time

import numpy as np
import pytest

from retrieval_spec.engine import Engine

VOCAB_SIZE = 50_000
PASSAGE_TOKENS, KNOWN_TOKENS = 300, 40
MOST_DIFFERENCE = 0.02


def us_of_draft(engine: Engine, prompt: np.ndarray) -> float:
    session = engine.open_session(prompt, "a/one")
    began = time.perf_counter_ns()
    session.draft(16)
    took = (time.perf_counter_ns() - began) / 1e3
    session.close()
    return took


@pytest.mark.row("T4")
@pytest.mark.long
@pytest.mark.timeout(1_200)
def test_a_text_of_another_tenant_is_drafted_no_sooner_than_a_new_one():
    rng = np.random.default_rng(0)
    engine = Engine(VOCAB_SIZE)
    engine.open_session([1], "a/one").draft(16)
    of_other, of_nobody = [], []
    for _ in range(5_000):
        written, new = rng.integers(0, VOCAB_SIZE, (2, PASSAGE_TOKENS)).astype(np.int32)
        other = engine.open_session(written, "b/one")
        other.commit(written)
        other.draft(16)
        other.close()
        pair = [(of_other, written[:KNOWN_TOKENS]), (of_nobody, new[:KNOWN_TOKENS])]
        for times, prompt in pair if rng.random() < 0.5 else pair[::-1]:
            times.append(us_of_draft(engine, prompt))
    ratio = np.median(of_other) / np.median(of_nobody)
    print(f"another tenant's text / a new text: {ratio:.4f} of {np.median(of_nobody):.1f} us")
    assert abs(ratio - 1) <= MOST_DIFFERENCE
