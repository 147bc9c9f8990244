from __future__ import annotations

import numpy as np
import pytest

from retrieval_spec.errors import InvalidFeedback
from retrieval_spec.feedback import MAX_TOPK, Feedback

VOCAB_SIZE = 100


def ids(values):
    return np.array(values, np.int32)


def whole() -> dict:
    return {
        "node_token_ids": ids([5, 6, 7]),
        "node_parents": ids([-1, 0, 0]),
        "topk_ids": ids([[6, 7], [1, 2], [3, 99]]),
        "topk_logprobs": np.log(np.array([[0.5, 0.25]] * 3, np.float32)),
        "hidden_state": np.ones(4, np.float32),
        "phrases": ids([[1, 2, 3]]),
    }


def test_all_parts_may_be_there_or_missing():
    Feedback().check(VOCAB_SIZE, state_dimensions=4)
    Feedback(**whole()).check(VOCAB_SIZE, state_dimensions=4)
    for name in ("topk_ids", "hidden_state", "phrases", "topk_logprobs"):
        parts = whole()
        del parts[name]
        if name == "topk_ids":
            del parts["topk_logprobs"]
        Feedback(**parts).check(VOCAB_SIZE, state_dimensions=4)


def test_a_hidden_state_that_nobody_asks_for_is_not_looked_at():
    Feedback(hidden_state=np.full(9, np.nan, np.float32)).check(VOCAB_SIZE)


@pytest.mark.row("C1")
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("node_token_ids", ids([5, 6, 100]), "outside the vocabulary"),
        ("node_token_ids", ids([5, 6]), "node_parents"),
        ("node_token_ids", ids([[5, 6, 7]]), "node_token_ids"),
        ("node_parents", ids([0, 0, 0]), "node 0"),
        ("node_parents", ids([-1, 1, 0]), "node 1"),
        ("node_parents", ids([-1, -1, 0]), "node 1"),
        ("node_parents", np.array([-1.0, 0, 0]), "node_parents"),
        ("topk_ids", ids([[6, 7], [1, 2], [3, -1]]), "outside the vocabulary"),
        ("topk_ids", ids([[6, 7], [1, 2]]), "topk_ids"),
        ("topk_ids", ids([6, 7, 8]), "topk_ids"),
        ("topk_ids", np.zeros((3, MAX_TOPK + 1), np.int32), "too many ids"),
        ("topk_logprobs", np.full((3, 2), np.nan, np.float32), "log-probability"),
        ("topk_logprobs", np.full((3, 2), 0.5, np.float32), "log-probability"),
        ("topk_logprobs", np.zeros((3, 1), np.float32), "topk_logprobs"),
        ("hidden_state", np.ones(5, np.float32), "hidden_state"),
        ("hidden_state", np.ones(4, np.float64), "hidden_state"),
        ("hidden_state", np.array([1, 2, np.nan, 4], np.float32), "not finite"),
        ("hidden_state", np.array([1, 2, np.inf, 4], np.float32), "not finite"),
        ("phrases", ids([[1, 2, 100]]), "outside the vocabulary"),
        ("phrases", ids([1, 2, 3]), "phrases"),
        ("phrases", np.zeros((2000, 2), np.int32), "phrases"),
    ],
)
def test_what_no_source_could_use_is_refused_by_name(name, value, message):
    with pytest.raises(InvalidFeedback, match=message):
        Feedback(**{**whole(), name: value}).check(VOCAB_SIZE, state_dimensions=4)
