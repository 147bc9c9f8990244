"""A Hugging Face draft model: the same distributions as plain passes over each path give."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.errors import InvalidRequest, LimitExceeded, UnsupportedModel
from retrieval_spec.model_tree import DraftModel, Growth, Predictions, grow
from retrieval_spec.verifier import HuggingFaceDraftModel
from tests.pseudo_models import PseudoModel
from tests.reference.fusion import paths_of
from tests.tiny_models import ARCHITECTURES, tiny_model

VOCAB_SIZE = 37
PROMPT = [5, 9, 17, 3, 5, 9, 17, 8]
TOLERANCE = {"float32": 1e-5, "float64": 1e-7}  # what is handed out is float32


def draft_model(architecture="Llama", dtype="float64", attention="sdpa", temperature=1.0):
    model = tiny_model(architecture, dtype, attention, vocab_size=VOCAB_SIZE, initializer_range=0.15)
    return HuggingFaceDraftModel(model, temperature)


def plain_law(model, temperature=1.0):
    """One pass without a cache for every context."""

    def law(context):
        with torch.inference_mode():
            logits = model(torch.tensor([context])).logits[0, -1]
        return torch.softmax(logits.double() / temperature, -1).numpy()

    return law


def ids(values):
    return np.array(values, np.int32)


def asked(predictions, layers):
    return np.concatenate([predictions.next_probs(layer) for layer in layers])


LAYERS = ([()], [(4,), (7,)], [(7, 2), (4, 2), (7, 3)], [(7, 3, 3), (4, 2, 9)])


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_path_gets_the_distribution_of_a_plain_pass(architecture, attention, dtype):
    model = draft_model(architecture, dtype, attention)
    law = plain_law(model.model)
    predictions = model.start()
    context = []
    for piece in (PROMPT, [7, 3, 3, 1], [2]):  # commits that were drafted in part, in whole, not at all
        context += piece
        predictions.observe(ids(piece))
        for _ in range(2):  # asking again changes nothing
            found = asked(predictions, LAYERS)
            expected = [law([*context, *path]) for layer in LAYERS for path in layer]
            assert np.abs(found - np.array(expected)).max() <= TOLERANCE[dtype]


def test_a_temperature_flattens_what_is_drawn_from():
    predictions = draft_model(temperature=2.0).start()
    predictions.observe(ids(PROMPT))
    expected = plain_law(draft_model().model, 2.0)(PROMPT)
    assert np.abs(predictions.next_probs([()])[0] - expected).max() < 1e-6


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12), st.integers(1, 16))
@settings(max_examples=25, deadline=None)
def test_its_trees_are_those_of_plain_passes(context, max_nodes):
    model = draft_model()
    trees = []
    for source in (model, PseudoModel(VOCAB_SIZE, plain_law(model.model))):
        predictions = source.start()
        predictions.observe(ids(context))
        trees.append(paths_of(grow(predictions, VOCAB_SIZE, max_nodes, Growth(0.0, 4)).tree))
    found, expected = trees
    assert found.keys() == expected.keys()
    assert all(abs(found[path][0] - expected[path][0]) < 1e-6 for path in found)


def test_it_keeps_the_protocol():
    assert isinstance(draft_model(), DraftModel)
    assert isinstance(draft_model().start(), Predictions)


def test_sessions_do_not_share_a_cache():
    model = draft_model()
    first, second = model.start(), model.start()
    first.observe(ids(PROMPT))
    second.observe(ids(PROMPT[::-1]))
    before = first.next_probs([()])
    second.next_probs([()])
    assert np.array_equal(first.next_probs([()]), before)


@pytest.mark.parametrize("length", range(7))
@pytest.mark.parametrize("num_read", [0, 3, 6])
def test_going_back_is_as_if_one_had_never_been_further(num_read, length):
    model, text = draft_model(), [5, 9, 17, 3, 9, 17]
    predictions, fresh = model.start(), model.start()
    if num_read:
        predictions.observe(ids(text[:num_read]))
        predictions.next_probs([()])
    predictions.observe(ids(text[num_read:]))
    predictions.truncate(length)
    for one, tokens in ((predictions, [4, 8]), (fresh, [*text[:length], 4, 8])):
        one.observe(ids(tokens))
    assert np.allclose(predictions.next_probs([()]), fresh.next_probs([()]), atol=1e-12)


def test_a_context_that_is_too_long_is_named():
    predictions = draft_model().start()
    predictions.observe(ids([1] * 513))
    with pytest.raises(LimitExceeded, match="too long for the draft model"):
        predictions.next_probs([()])


def test_a_tree_that_would_reach_too_far_is_named():
    predictions = draft_model().start()
    predictions.observe(ids([1] * 512))
    predictions.next_probs([()])
    with pytest.raises(LimitExceeded):
        predictions.next_probs([(1,)])


def test_models_and_temperatures_that_cannot_draft_are_refused():
    with pytest.raises(InvalidRequest, match="positive temperature"):
        draft_model(temperature=0.0)
    model = tiny_model("Llama", vocab_size=VOCAB_SIZE)
    model.config._attn_implementation, right = "flash_attention_2", model.config._attn_implementation
    try:
        with pytest.raises(UnsupportedModel):
            HuggingFaceDraftModel(model)
    finally:
        model.config._attn_implementation = right
