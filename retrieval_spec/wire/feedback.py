"""Feedback as columns of its message. Only shapes are checked here: the engine's door looks at the values."""

from __future__ import annotations

import numpy as np

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.feedback import Feedback
from retrieval_spec.v1.draft_pb2 import SessionFeedback
from retrieval_spec.wire.columns import FLOAT32, INT32, column_bytes, read_column, read_tokens


def write_feedback(message: SessionFeedback, feedback: Feedback) -> None:
    """Fills the columns of `message`; its session index is the caller's."""
    message.node_token_ids = column_bytes(feedback.node_token_ids)
    message.node_parents = column_bytes(feedback.node_parents)
    message.topk_ids = column_bytes(feedback.topk_ids)
    message.topk_logprobs = column_bytes(feedback.topk_logprobs)
    message.hidden_state = column_bytes(feedback.hidden_state)
    message.phrase_length = feedback.phrases.shape[1]
    message.phrases = column_bytes(feedback.phrases)


def read_feedback(message: SessionFeedback) -> Feedback:
    """Returns what a message says.

    Raises:
        InvalidRequest: a column has another length than the number of nodes demands.
    """
    tokens = read_tokens(message.node_token_ids, "node_token_ids")
    num_nodes = tokens.shape[0]
    width = _width(len(message.topk_ids) // 4, num_nodes, "topk_ids")
    length = max(message.phrase_length, 0)
    num_phrases = len(message.phrases) // max(4 * length, 1)
    topk_ids = read_column(message.topk_ids, "topk_ids", INT32, num_nodes * width)
    num_logprobs = topk_ids.shape[0] if message.topk_logprobs else 0
    logprobs = read_column(message.topk_logprobs, "topk_logprobs", FLOAT32, num_logprobs)
    hidden_state = read_column(message.hidden_state, "hidden_state", FLOAT32, len(message.hidden_state) // 4)
    phrases = read_column(message.phrases, "phrases", INT32, num_phrases * length)
    return Feedback(
        tokens,
        read_column(message.node_parents, "node_parents", INT32, num_nodes),
        topk_ids.reshape(num_nodes if width else 0, width),
        logprobs.reshape((num_nodes, width) if num_logprobs else (0, 0)),
        hidden_state.astype(np.float32, copy=False),
        phrases.reshape(num_phrases, length),
    )


def _width(num_ids: int, num_nodes: int, name: str) -> int:
    if num_nodes == 0:
        if num_ids:
            raise InvalidRequest(f"column {name} is about no node", got=num_ids, expected=0)
        return 0
    return num_ids // num_nodes
