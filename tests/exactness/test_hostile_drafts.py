"""A draft tree is a hint: whatever a source answers, the output stays the target's own."""

from __future__ import annotations

import functools
import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
# ruff: noqa: E402
from retrieval_spec.errors import (
    ContextMismatch,
    InvalidRequest,
    InvalidTokens,
    LimitExceeded,
    ServiceUnavailable,
)
from retrieval_spec.tree import DraftTree
from retrieval_spec.verifier import generate
from tests.exactness.sources import FakeSource, oracle
from tests.strategies import draft_trees
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.row("V3")

VOCAB_SIZE = 13
PROMPT = [5, 9, 7, 3]
OPTIONS = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": 12}


@functools.cache
def model():
    return tiny_model("Llama", vocab_size=VOCAB_SIZE, initializer_range=0.15)


@functools.cache
def truth() -> list[int]:
    return model().generate(torch.tensor([PROMPT]), **OPTIONS)[0].tolist()


@pytest.mark.quick
@pytest.mark.row("L1", "V3")
@settings(max_examples=60, deadline=None)
@given(st.lists(draft_trees(max_nodes=12, vocab_size=VOCAB_SIZE), min_size=1, max_size=6), st.integers(1, 12))
def test_any_trees(trees, max_nodes):
    source = FakeSource(VOCAB_SIZE, lambda context, _: trees[len(context) % len(trees)])
    found = generate(model(), PROMPT, source, max_nodes=max_nodes, **OPTIONS)
    assert found.token_ids.tolist() == truth()
    assert found.drafted_nodes <= max_nodes * found.steps


def columns(token_ids, parents, probs=None):
    count = len(token_ids)
    return DraftTree(
        np.array(token_ids),
        np.array(parents, np.int32),
        np.ones(count, np.float32) if probs is None else np.array(probs, np.float32),
        np.ones(count, np.uint16),
    )


BROKEN = {
    "token past the vocabulary": DraftTree.chain([VOCAB_SIZE]),
    "negative token": DraftTree.chain([-1, 5]),
    "huge token": DraftTree.chain([2**31 - 1]),
    "parent after child": DraftTree.from_lists([1, 2], [1, -1]),
    "parent of itself": DraftTree.from_lists([1, 2], [-1, 1]),
    "parent below -1": DraftTree.from_lists([1, 2], [-1, -2]),
    "twin siblings": DraftTree.from_lists([1, 1], [-1, -1]),
    "not a number": DraftTree.chain([1, 2], [float("nan"), 0.5]),
    "wrong type": columns([1.0, 2.0], [-1, 0]),
    "columns of two lengths": columns(np.array([1, 2, 3], np.int32), [-1, 0]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_tree_that_breaks_the_contract_is_an_empty_tree_and_one_warning(name, caplog):
    source = FakeSource(VOCAB_SIZE, lambda context, max_nodes: BROKEN[name])
    with caplog.at_level(logging.WARNING, logger="retrieval_spec"):
        found = generate(model(), PROMPT, source, **OPTIONS)
    assert found.token_ids.tolist() == truth()
    assert found.drafted_nodes == 0
    assert len([record for record in caplog.records if record.name.startswith("retrieval_spec")]) == 1


class Failing(FakeSource):
    """Raises `error` from the calls named, every time, or `times` times."""

    def __init__(self, error, calls, times=10**9):
        super().__init__(VOCAB_SIZE, oracle(truth(), VOCAB_SIZE))
        self.error, self.calls, self.times = error, calls, times

    def trip(self, call):
        if call in self.calls and self.times > 0:
            self.times -= 1
            raise self.error

    def open_session(self, prompt_ids, namespace="default"):
        self.trip("open_session")
        session = super().open_session(prompt_ids, namespace)
        for call in ("draft", "commit", "close"):
            setattr(session, call, functools.partial(self.tripping, call, getattr(session, call)))
        return session

    def tripping(self, call, real, *arguments):
        self.trip(call)
        return real(*arguments)


ERRORS = [
    ServiceUnavailable("gone"),
    ContextMismatch("lost"),
    LimitExceeded("full"),
    InvalidTokens("what is that"),
]


@pytest.mark.row("V1")
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["open_session", "draft", "commit", "close"])
def test_a_source_that_fails_costs_speed_alone(call, error, caplog):
    source = Failing(error, {call})
    with caplog.at_level(logging.WARNING, logger="retrieval_spec"):
        found = generate(model(), PROMPT, source, **OPTIONS)
    assert found.token_ids.tolist() == truth()
    assert len([record for record in caplog.records if record.name.startswith("retrieval_spec")]) == 1


@pytest.mark.row("V4")
@pytest.mark.parametrize("call", ["draft", "commit"])
def test_drafts_come_back_with_the_source_and_no_token_is_lost(call):
    source = Failing(ServiceUnavailable("for a moment"), {call}, times=2)
    found = generate(model(), PROMPT, source, **OPTIONS)
    assert found.token_ids.tolist() == truth()
    assert found.accepted_tokens > 0
    assert source.sessions[0].context == truth()


class Unreachable(FakeSource):
    """A client whose server has never answered."""

    def __init__(self):
        self.sessions = []

    @property
    def vocab_size(self):
        raise ServiceUnavailable("nobody listens")

    def open_session(self, prompt_ids, namespace="default"):
        raise ServiceUnavailable("nobody listens")


@pytest.mark.row("V1")
def test_a_server_that_never_answered():
    assert generate(model(), PROMPT, Unreachable(), **OPTIONS).token_ids.tolist() == truth()


def test_an_error_that_is_not_ours_is_not_hidden():
    source = Failing(TypeError("a bug"), {"draft"})
    with pytest.raises(TypeError, match="a bug"):
        generate(model(), PROMPT, source, **OPTIONS)
    assert source.sessions[0].is_closed


def test_a_larger_vocabulary_than_the_model_s_is_refused():
    with pytest.raises(InvalidRequest, match="larger vocabulary"):
        generate(model(), PROMPT, FakeSource(VOCAB_SIZE + 1, oracle([], 1)), **OPTIONS)
