"""Draft steps, draft trees, feedback and costs as columns of protobuf messages, and errors as statuses.

Whatever the other side sent is taken as hostile. Knows the messages, but no transport, session or engine.
"""

from __future__ import annotations

from retrieval_spec.wire.ahead import MAX_AHEAD_BYTES, ahead_bytes, read_ahead, write_ahead
from retrieval_spec.wire.columns import MAX_ENDED, MAX_MESSAGE_BYTES, number_bytes, read_tokens, token_bytes
from retrieval_spec.wire.costs import read_cost_curve, write_cost_curve
from retrieval_spec.wire.feedback import write_feedback
from retrieval_spec.wire.frames import HEAD_BYTES, MESSAGE, OTHER, frame, parsed, read_head
from retrieval_spec.wire.padding import pad, unpad
from retrieval_spec.wire.projection import read_projection, write_projection
from retrieval_spec.wire.statuses import ERROR_TYPE_KEY, STATUS_NAMES, STATUS_NUMBERS, error_from
from retrieval_spec.wire.steps import (
    Outcome,
    SessionStep,
    StepColumns,
    read_columns,
    read_commits,
    read_result,
    read_step,
    write_columns,
    write_forest,
    write_result,
    write_step,
)
from retrieval_spec.wire.suffixes import Suffix, read_missing, read_suffixes, write_missing, write_suffixes

__all__ = [
    "ERROR_TYPE_KEY",
    "HEAD_BYTES",
    "MAX_AHEAD_BYTES",
    "MAX_ENDED",
    "MAX_MESSAGE_BYTES",
    "MESSAGE",
    "OTHER",
    "STATUS_NAMES",
    "STATUS_NUMBERS",
    "Outcome",
    "SessionStep",
    "StepColumns",
    "Suffix",
    "ahead_bytes",
    "error_from",
    "frame",
    "number_bytes",
    "pad",
    "parsed",
    "read_ahead",
    "read_columns",
    "read_commits",
    "read_cost_curve",
    "read_head",
    "read_missing",
    "read_projection",
    "read_result",
    "read_step",
    "read_suffixes",
    "read_tokens",
    "token_bytes",
    "unpad",
    "write_ahead",
    "write_columns",
    "write_cost_curve",
    "write_feedback",
    "write_forest",
    "write_missing",
    "write_projection",
    "write_result",
    "write_step",
    "write_suffixes",
]
