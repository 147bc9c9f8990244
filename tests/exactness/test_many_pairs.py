"""Thousands of generations over drafts beside plain ones, each with its own prompt, model and drafts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
from retrieval_spec.verifier import NoDrafts, generate
from tests.exactness.sources import MAKERS, FakeSource
from tests.tiny_models import ARCHITECTURES, VOCAB_SIZE, tiny_model

NEW_TOKENS = 40
MODES = (
    {"do_sample": False},
    {"do_sample": True, "temperature": 0.8},
    {"do_sample": True, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1},
)


@pytest.mark.long
@pytest.mark.timeout(3_000)
@pytest.mark.row("L1")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_pair_differs(dtype):
    rng = np.random.default_rng(3)
    makers, accepted = list(MAKERS.values()), 0
    for number in range(1_500):
        model = tiny_model(ARCHITECTURES[number % len(ARCHITECTURES)], dtype)
        options = {**MODES[number % len(MODES)], "max_new_tokens": NEW_TOKENS}
        prompt = rng.integers(0, VOCAB_SIZE, rng.integers(1, 30)).tolist()
        truth = generate(model, prompt, NoDrafts(VOCAB_SIZE), seed=number, **options).token_ids.tolist()
        source = FakeSource(VOCAB_SIZE, makers[rng.integers(len(makers))](truth, VOCAB_SIZE))
        found = generate(model, prompt, source, seed=number, **options)
        assert found.token_ids.tolist() == truth, number
        accepted += found.accepted_tokens
    assert accepted > 1_500
