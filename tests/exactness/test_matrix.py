"""Over 200 generations on tiny random models: drafts of every quality, and never another token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

pytest.importorskip("transformers")
from retrieval_spec.client import LocalClient
from retrieval_spec.engine import Engine
from retrieval_spec.verifier import NoDrafts, generate
from tests.exactness.sources import MAKERS, FakeSource
from tests.tiny_models import ARCHITECTURES, VOCAB_SIZE, tiny_model

pytestmark = pytest.mark.row("L1")

NEW_TOKENS = 18
MODES = {
    "greedy": {"do_sample": False},
    "greedy_penalty": {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95},
    "sampled_penalty": {"do_sample": True, "top_k": 0, "min_p": 0.01, "repetition_penalty": 1.2},
}
# Every mode meets every type and every attention code, half of the architectures each.
PAIRS = (("float32", "sdpa"), ("float64", "eager"), ("float64", "sdpa"), ("float32", "eager"))
CASES = [
    (architecture, mode, *PAIRS[(index + half) % 4])
    for index, (architecture, mode) in enumerate(itertools.product(ARCHITECTURES, MODES))
    for half in (index // 4 % 2, index // 4 % 2 + 2)
]
# Repeats itself, so that the session drafter has something to find.
PROMPT = [5, 9, 17, 3, 5, 9, 17, 8, 44, 5, 9]


def plain_output(model, options: dict) -> np.ndarray:
    """What the drafts must not change: the host's own greedy output, or the loop's own plain draw."""
    if options["do_sample"]:
        return generate(model, PROMPT, NoDrafts(VOCAB_SIZE), seed=11, **options).token_ids
    return model.generate(torch_ids(PROMPT), **options)[0].numpy()


def torch_ids(tokens):
    import torch

    return torch.tensor([tokens])


def real_drafts() -> LocalClient:
    return LocalClient(Engine(VOCAB_SIZE))


@pytest.mark.parametrize(
    ("architecture", "mode", "dtype", "attention"), CASES, ids=["-".join(case) for case in CASES]
)
def test_no_draft_changes_a_token(architecture, mode, dtype, attention):
    model = tiny_model(architecture, dtype, attention)
    options = {**MODES[mode], "max_new_tokens": NEW_TOKENS}
    truth = plain_output(model, options)
    assert len(set(truth[len(PROMPT) :].tolist())) > 10, "an output without variety would show nothing"
    found = {}
    for name, maker in MAKERS.items():
        source = FakeSource(VOCAB_SIZE, maker(truth.tolist(), VOCAB_SIZE))
        found[name] = generate(model, PROMPT, source, seed=11, **options)
        assert source.sessions[0].context == found[name].token_ids.tolist()
        assert source.sessions[0].is_closed
    found["real"] = generate(model, PROMPT, real_drafts(), seed=11, **options)
    for name, generation in found.items():
        assert generation.token_ids.tolist() == truth.tolist(), name
    assert found["empty"].steps == found["all_wrong"].steps == NEW_TOKENS - 1
    assert found["all_wrong"].accepted_tokens == 0
    assert found["oracle"].steps == -(-(NEW_TOKENS - 1) // 7)
    assert found["bushy"].accepted_tokens > NEW_TOKENS // 2


def test_the_matrix_holds_more_than_200_generations():
    assert len(CASES) * (len(MAKERS) + 1) >= 200
