"""Recycled top-k on the demo's prompts: the shipped model's own tokens, in far fewer passes."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.client import LocalClient
from retrieval_spec.commands.demo import DECODING, prompt_texts
from retrieval_spec.commands.generate import load_model
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.drafters.recycling import RecyclingDrafter
from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine
from retrieval_spec.verifier import generate

torch.set_num_threads(1)  # sums in one order, whatever the shape
NUM_PROMPTS = 8
NEW_TOKENS = 128
MAX_NODES = 32


@pytest.mark.row("L1")
def test_recycling_pays_on_real_text_and_changes_no_token():
    model, tokenizer = load_model(demo_model_dir())
    prompts = [tokenizer(text, return_tensors="pt").input_ids for text in prompt_texts(NUM_PROMPTS)]
    truths = [model.generate(prompt, max_new_tokens=NEW_TOKENS, **DECODING)[0].tolist() for prompt in prompts]
    vocab_size = model.config.vocab_size
    engines = {
        "token-recycling": Engine(vocab_size, preset="token-recycling"),
        "recycling": Engine(vocab_size, {"recycling": RecyclingDrafter.open(vocab_size)}),
        "session": Engine(vocab_size, {"session": SessionDrafter.open(vocab_size)}),
        "session+recycling": Engine(vocab_size, preset="session+recycling"),
    }
    lengths = {}
    for name, engine in engines.items():
        steps = accepted_tokens = 0
        for prompt, truth in zip(prompts, truths, strict=True):
            found = generate(
                model,
                prompt,
                LocalClient(engine),
                max_nodes=MAX_NODES,
                max_new_tokens=NEW_TOKENS,
                **DECODING,
            )
            assert found.token_ids.tolist() == truth, name
            steps += found.steps
            accepted_tokens += found.accepted_tokens
        lengths[name] = 1 + accepted_tokens / steps
    print(lengths)
    assert lengths["token-recycling"] >= 2.0
    assert lengths["recycling"] > lengths["token-recycling"]
    assert lengths["session+recycling"] > max(lengths["session"], lengths["recycling"])
