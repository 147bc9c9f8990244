"""The verifier and sources of hidden states: which state travels, and which are refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("faiss")
# ruff: noqa: E402
from dataclasses import replace

from retrieval_spec.client import LocalClient
from retrieval_spec.engine import Engine
from retrieval_spec.errors import ModelMismatch
from retrieval_spec.projection import Projection
from retrieval_spec.target_states import StateTap, body_of, model_fingerprint
from retrieval_spec.tree import DraftTree
from retrieval_spec.verifier import NoDrafts, TreeVerifier, generate
from tests.exactness.sources import FakeSession, FakeSource, bushy
from tests.stores import write_dense
from tests.tiny_models import VOCAB_SIZE, tiny_model

PROMPT = [5, 9, 17, 3]
NEW_TOKENS = 40


class Listener(FakeSource):
    """Keeps every commit with its feedback."""

    def __init__(self, truth, projection):
        super().__init__(VOCAB_SIZE, bushy(truth, VOCAB_SIZE))
        self.projection = projection
        self.heard = []

    def open_session(self, prompt_ids, namespace="default"):
        session = ListeningSession(self.make, list(prompt_ids))
        session.heard = self.heard
        return session


class ListeningSession(FakeSession):
    def commit(self, token_ids, feedback=None):
        self.heard.append((list(self.context), list(token_ids), feedback))
        super().commit(token_ids)


def state_before(model, tokens):
    """The plain pass: the state that decides what follows `tokens`."""
    with torch.inference_mode():
        outputs = model(torch.tensor([tokens]), output_hidden_states=True)
    return outputs.hidden_states[-1][0].float().numpy()


@pytest.fixture(scope="module")
def model():
    return tiny_model("Llama", "float64")


@pytest.fixture(scope="module")
def truth(model):
    plain = generate(model, PROMPT, NoDrafts(VOCAB_SIZE), do_sample=False, max_new_tokens=NEW_TOKENS)
    return plain.token_ids.tolist()


@pytest.fixture(scope="module")
def projection(model, truth):
    return Projection.fit(state_before(model, truth), 8, model_fingerprint(model))


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 3}, {"do_sample": True, "temperature": 2.0}])
def test_the_state_that_decided_the_newest_token_travels_with_it(model, truth, projection, options):
    source = Listener(truth, projection)
    options = {"do_sample": False, **options}
    generate(model, PROMPT, source, max_nodes=9, max_new_tokens=NEW_TOKENS, **options)
    accepted = 0
    for context, tokens, feedback in source.heard[:-1]:
        state = state_before(model, [*context, *tokens[:-1]])[-1]
        np.testing.assert_allclose(feedback.hidden_state, projection.apply(state), atol=1e-5)
        accepted += len(tokens) - 1
    assert len(source.heard) > 4
    assert accepted > 3 or options["do_sample"]


def test_in_a_batch_every_row_is_told_its_own_state(model, truth, projection):
    source, known = Listener(truth, projection), bushy(truth, VOCAB_SIZE)
    # One row has large trees, the other none: all others are filled up to the largest.
    source.make = lambda context, n: known(context, n) if context[0] == PROMPT[0] else DraftTree.empty()
    ids = torch.tensor([PROMPT, [7, 8, 9, 2]])
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
    model.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=TreeVerifier(source), **options)
    told = [one for one in source.heard if one[2] is not None]
    assert {context[0] for context, _, _ in told} == {5, 7}
    for context, tokens, feedback in told:
        state = state_before(model, [*context, *tokens[:-1]])[-1]
        np.testing.assert_allclose(feedback.hidden_state, projection.apply(state), atol=1e-5)


def test_a_projection_of_another_model_is_refused(model, truth, projection):
    other = replace(projection, model_fingerprint=model_fingerprint(tiny_model("Llama", hidden_size=64)))
    with pytest.raises(ModelMismatch, match="another model"):
        generate(model, PROMPT, Listener(truth, other), do_sample=False, max_new_tokens=4)


def test_a_state_that_cannot_be_projected_costs_no_token(model, truth, projection):
    small = replace(projection, mean=np.zeros(8, np.float32))
    source = Listener(truth, small)
    found = generate(model, PROMPT, source, max_nodes=9, do_sample=False, max_new_tokens=NEW_TOKENS)
    assert found.token_ids.tolist() == truth
    assert all(not feedback.hidden_state.size for _, _, feedback in source.heard if feedback)


def test_the_model_is_left_as_it_was(model, truth, projection):
    head = model.get_output_embeddings()
    generate(model, PROMPT, Listener(truth, projection), do_sample=False, max_new_tokens=4)
    assert not head._forward_pre_hooks


def test_drafts_from_states_of_its_own_output_are_accepted(model, truth, tmp_path):
    states = state_before(model, truth)[:-1]
    store = write_dense(tmp_path / "store", [truth], VOCAB_SIZE, states, model=model_fingerprint(model))
    source = LocalClient(Engine(VOCAB_SIZE, preset="dresd", datastores=[store]))
    found = generate(model, PROMPT, source, max_nodes=16, do_sample=False, max_new_tokens=NEW_TOKENS)
    assert found.token_ids.tolist() == truth
    assert found.mean_acceptance_length > 4


@pytest.mark.parametrize("architecture", ["Llama", "Qwen2", "Gemma2"])
def test_the_body_ends_in_the_states_that_are_listened_to(architecture):
    model = tiny_model(architecture, attention="eager")
    tokens = torch.tensor([PROMPT])
    tap = StateTap(model)
    with torch.inference_mode():
        model(tokens)
        states = body_of(model)(input_ids=tokens, use_cache=False).last_hidden_state
    tap.close()
    assert torch.equal(tap.states, states)


def test_the_fingerprint_tells_weights_and_not_precisions():
    model = copy.deepcopy(tiny_model("Llama"))
    assert model_fingerprint(model) == model_fingerprint(tiny_model("Llama", "float64"))
    with torch.no_grad():
        model.lm_head.weight.mul_(1.05)
    assert model_fingerprint(model) != model_fingerprint(tiny_model("Llama"))
