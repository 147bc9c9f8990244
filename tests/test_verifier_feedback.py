"""What the verifier tells its source of every step: the target's own words at every verified node."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.errors import InvalidFeedback
from retrieval_spec.verifier import NoDrafts, generate
from tests.exactness.sources import FakeSession, FakeSource, bushy
from tests.tiny_models import VOCAB_SIZE, tiny_model

PROMPT = [5, 9, 17, 3]
TOPK = 3


class Listener(FakeSource):
    """Keeps every commit with its feedback; may refuse feedback."""

    wanted_topk = TOPK

    def __init__(self, truth, *, refuses=False):
        super().__init__(VOCAB_SIZE, bushy(truth, VOCAB_SIZE))
        self.heard = []
        self.refuses = refuses

    def open_session(self, prompt_ids, namespace="default"):
        session = super().open_session(prompt_ids, namespace)
        session.listener = self
        session.__class__ = ListeningSession
        return session


class ListeningSession(FakeSession):
    def commit(self, token_ids, feedback=None):
        if feedback is not None and self.listener.refuses:
            raise InvalidFeedback("not like this")
        self.listener.heard.append((list(self.context), list(token_ids), feedback))
        super().commit(token_ids)


@pytest.fixture(scope="module")
def model():
    return tiny_model("Llama", "float64")


@pytest.fixture(scope="module")
def truth(model):
    return generate(
        model, PROMPT, NoDrafts(VOCAB_SIZE), do_sample=False, max_new_tokens=30
    ).token_ids.tolist()


def topk_after(model, tokens):
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1).topk(TOPK)


def test_every_verified_node_comes_with_what_the_target_says_after_it(model, truth):
    source = Listener(truth)
    generate(model, PROMPT, source, max_nodes=9, do_sample=False, max_new_tokens=30)
    num_nodes = 0
    for context, tokens, feedback in source.heard[:-1]:  # no draft was asked for before the last one
        feedback.check(VOCAB_SIZE)
        assert feedback.node_token_ids[0] == context[-1]
        assert feedback.topk_ids[0, 0] == tokens[0]
        paths = [context]
        for node in range(1, len(feedback.node_token_ids)):
            paths.append([*paths[feedback.node_parents[node]], int(feedback.node_token_ids[node])])
        expected = [topk_after(model, path) for path in paths]
        assert feedback.topk_ids.tolist() == [best.indices.tolist() for best in expected]
        told = [best.values.tolist() for best in expected]
        np.testing.assert_allclose(feedback.topk_logprobs, told, rtol=1e-5, atol=1e-6)
        num_nodes += len(paths)
    assert num_nodes > 60


def test_a_source_that_asks_for_nothing_is_told_nothing(model, truth):
    source = Listener(truth)
    source.wanted_topk = 0
    generate(model, PROMPT, source, max_nodes=9, do_sample=False, max_new_tokens=30)
    assert len(source.heard) > 3
    assert all(feedback is None for _, _, feedback in source.heard)


def test_refused_feedback_costs_no_token_and_no_draft(model, truth):
    source = Listener(truth, refuses=True)
    found = generate(model, PROMPT, source, max_nodes=9, do_sample=False, max_new_tokens=30)
    assert found.token_ids.tolist() == truth
    assert found.accepted_tokens > 10
    assert np.concatenate([tokens for _, tokens, _ in source.heard]).tolist() == truth[len(PROMPT) :]
