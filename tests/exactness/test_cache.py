"""The cache after a run holds what a fresh prefill of the same tokens would have put there."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.verifier import TreeVerifier
from tests.exactness.sources import FakeSource, bushy, oracle, partly_wrong, random_trees
from tests.tiny_models import ARCHITECTURES, tiny_model

pytestmark = pytest.mark.row("L2")

VOCAB_SIZE = 37
PROMPT = torch.tensor([[5, 9, 17, 3, 5, 9, 17, 8]])
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def filled_cache(model, token_ids):
    cache = transformers.DynamicCache(config=model.config)
    with torch.inference_mode():
        model(token_ids, past_key_values=cache, use_cache=True)
    return cache


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "maker", [oracle, bushy, partly_wrong, random_trees], ids=lambda maker: maker.__name__
)
def test_the_cache_equals_a_fresh_prefill(architecture, dtype, maker):
    model = tiny_model(architecture, dtype, vocab_size=VOCAB_SIZE)
    options = {"do_sample": False, "max_new_tokens": 21}
    truth = model.generate(PROMPT, **options)[0].tolist()
    cache = transformers.DynamicCache(config=model.config)
    verifier = TreeVerifier(FakeSource(VOCAB_SIZE, maker(truth, VOCAB_SIZE)))
    output = model.generate(PROMPT, custom_generate=verifier, past_key_values=cache, **options)
    assert output[0].tolist() == truth
    fresh = filled_cache(model, output[:, :-1])
    assert cache.get_seq_length() == fresh.get_seq_length() == len(truth) - 1
    for ours, theirs in zip(cache.layers, fresh.layers, strict=True):
        for name in ("keys", "values"):
            difference = (getattr(ours, name) - getattr(theirs, name)).abs().max()
            assert difference <= TOLERANCE[dtype]


def test_a_run_goes_on_from_the_cache_of_the_last_one():
    model = tiny_model("Qwen3", vocab_size=VOCAB_SIZE)
    truth = model.generate(PROMPT, do_sample=False, max_new_tokens=30)[0].tolist()
    cache = transformers.DynamicCache(config=model.config)
    output = PROMPT
    for new_tokens in (1, 9, 20):
        verifier = TreeVerifier(FakeSource(VOCAB_SIZE, bushy(truth, VOCAB_SIZE)))
        options = {"do_sample": False, "max_new_tokens": new_tokens, "past_key_values": cache}
        output = model.generate(output, custom_generate=verifier, **options)
    assert output[0].tolist() == truth
