"""Draft steps and draft trees as columns of protobuf messages, and errors as statuses.

Whatever the other side sent is taken as hostile: every column's length is checked before it is read,
every tree before it is handed on. Knows the messages, but no transport, session or engine.
"""

from __future__ import annotations

import math
import operator
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import (
    ContextMismatch,
    DatastoreCorrupt,
    DatastoreError,
    DatastoreExists,
    InvalidRequest,
    InvalidTree,
    LimitExceeded,
    NotFound,
    RetrievalSpecError,
    ServiceUnavailable,
    error_types,
)
from retrieval_spec.tree import CONTEXT, DraftTree, Tokens, as_tokens
from retrieval_spec.v1.draft_pb2 import DraftStep, DraftStepResult

MAX_MESSAGE_BYTES = 16 * 2**20
"""Largest message either side takes: a prompt of a million tokens is 4 MiB, gRPC's own limit."""

ERROR_TYPE_KEY = "retrieval-spec-error"
"""The trailing metadata that names the error class of a failed call."""

# Columns over sessions are short and become Python numbers: struct beats numpy there by far.
_UINT64, _INT64, _INT32S = "Q", "q", "i"
# Columns over tokens and nodes are arrays.
_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
_UINT16 = np.dtype("<u2")
_MAX_INT32 = 2**31 - 1
_IS_LITTLE_ENDIAN = sys.byteorder == "little"

# The numbers of the gRPC protocol, by the names that the error classes carry.
_STATUS_NUMBERS = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
# For statuses that come without the name of a class: from a proxy, or from gRPC itself.
_ERROR_OF_STATUS: dict[str, type[RetrievalSpecError]] = {
    "CANCELLED": ServiceUnavailable,
    "INVALID_ARGUMENT": InvalidRequest,
    "DEADLINE_EXCEEDED": ServiceUnavailable,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": DatastoreExists,
    "RESOURCE_EXHAUSTED": LimitExceeded,
    "FAILED_PRECONDITION": DatastoreError,
    "ABORTED": ContextMismatch,
    "UNIMPLEMENTED": ServiceUnavailable,
    "UNAVAILABLE": ServiceUnavailable,
    "DATA_LOSS": DatastoreCorrupt,
}
_STATUS_NAMES = {number: name for name, number in _STATUS_NUMBERS.items()}

Outcome = DraftTree | RetrievalSpecError
"""What one session gets out of a step."""


class SessionStep(NamedTuple):
    """One session's row of a step.

    Attributes:
        session_id: issued by the server.
        context_length: tokens that the server must hold before the commit.
        commit: int32[n]  tokens to append before drafting.
        max_nodes: largest draft tree wanted, in nodes.
    """

    session_id: int
    context_length: int
    commit: Tokens
    max_nodes: int


def write_step(step: DraftStep, rows: Sequence[SessionStep], total_nodes: int) -> None:
    """Fills the columns of `step`; its number and incarnation are the caller's."""
    ids, lengths, commits, caps = zip(*rows, strict=True) if rows else ((), (), (), ())
    step.session_ids = _packed(ids, _UINT64)
    step.context_lengths = _packed(lengths, _INT64)
    step.commit_lengths = _packed([len(commit) for commit in commits], _INT32S)
    step.commit_token_ids = _joined(commits, _INT32)
    step.max_nodes = _packed([_clamped(cap) for cap in caps], _INT32S)
    step.total_nodes = _clamped(total_nodes)


def read_step(step: DraftStep, max_sessions: int) -> list[SessionStep]:
    """Returns the rows of a step; token ids are not looked at, the engine's door does that.

    Raises:
        InvalidRequest: a column has another length than the number of sessions demands.
        LimitExceeded: more than `max_sessions` rows.
    """
    count = len(step.session_ids) // 8
    if count > max_sessions:
        raise LimitExceeded("too many sessions in one step", got=count, expected=f"<= {max_sessions}")
    ids = _unpacked(step.session_ids, _UINT64, count, "session_ids")
    lengths = _unpacked(step.context_lengths, _INT64, count, "context_lengths")
    commit_lengths = _lengths(step.commit_lengths, count, "commit_lengths")
    caps = _unpacked(step.max_nodes, _INT32S, count, "max_nodes")
    commits = read_tokens(step.commit_token_ids, "commit_token_ids", sum(commit_lengths))
    return list(map(SessionStep, ids, lengths, _split(commits, commit_lengths), caps))


def token_bytes(token_ids: Tokens) -> bytes:
    """Returns token ids as a column."""
    return _joined([token_ids], _INT32)


def read_tokens(column: bytes, name: str, count: int | None = None) -> Tokens:
    """Returns a column of token ids as an array that may be written to.

    Read-only arrays are another type to compiled kernels, which would compile twice.

    Raises:
        InvalidRequest: not a whole number of token ids, or not `count` of them.
    """
    expected = len(column) // _INT32.itemsize if count is None else count
    return _column(column, _INT32, expected, name).astype(np.int32)


def write_result(result: DraftStepResult, outcomes: Sequence[Outcome]) -> None:
    """Fills the columns of `result`; its number and incarnation are the caller's."""
    trees = [_NO_TREE if isinstance(outcome, RetrievalSpecError) else outcome for outcome in outcomes]
    result.node_counts = _packed([len(tree) for tree in trees], _INT32S)
    result.token_ids = _joined([tree.token_ids for tree in trees], _INT32)
    result.parents = _joined([tree.parents for tree in trees], _INT32)
    result.probs = _joined([tree.probs for tree in trees], _FLOAT32)
    result.sources = _joined([tree.sources for tree in trees], _UINT16)
    statuses = [0] * len(outcomes)
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, RetrievalSpecError):
            statuses[index] = _STATUS_NUMBERS[outcome.grpc_status]
            result.errors.add(session_index=index, type=type(outcome).__name__, message=str(outcome))
    result.statuses = _packed(statuses, _INT32S)


def read_result(
    result: DraftStepResult,
    max_nodes: Sequence[int],
    total_nodes: int,
    vocab_size: int,
    source_names: tuple[str, ...],
) -> list[Outcome]:
    """Returns one draft tree or error a session, checked as if an attacker had sent them.

    Args:
        result: the answer.
        max_nodes: what each session of the question asked for at most.
        total_nodes: what they asked for together.
        vocab_size: token ids lie below it.
        source_names: the drafter behind each bit of the source masks.

    Raises:
        InvalidRequest: columns that do not fit the question or each other.
        InvalidTree, InvalidTokens: a tree that breaks the contract of `DraftTree`.
    """
    statuses = _unpacked(result.statuses, _INT32S, len(max_nodes), "statuses")
    counts = _lengths(result.node_counts, len(max_nodes), "node_counts")
    allowed = [0 if status else cap for cap, status in zip(max_nodes, statuses, strict=True)]
    if sum(counts) > total_nodes or any(map(operator.gt, counts, allowed)):
        raise InvalidTree("more nodes than were asked for", got=counts, expected=f"<= {allowed}")
    forest = _read_forest(result, counts, source_names)
    _check_forest(forest, counts, vocab_size)
    outcomes: list[Outcome] = list(_split_forest(forest, counts))
    for index, error in _session_errors(result, statuses).items():
        outcomes[index] = error
    return outcomes


def error_from(type_name: str, status: str, message: str) -> RetrievalSpecError:
    """Returns the error that the other side raised: its own class, else the one its status stands for."""
    error_type = error_types().get(type_name) or _ERROR_OF_STATUS.get(status, RetrievalSpecError)
    return error_type(message)


def _session_errors(result: DraftStepResult, statuses: Sequence[int]) -> dict[int, RetrievalSpecError]:
    if not any(statuses):
        return {}
    said = {error.session_index: error for error in result.errors}
    errors = {}
    for index, number in enumerate(statuses):
        if number:
            status = _STATUS_NAMES.get(number, "UNKNOWN")
            type_name, message = (said[index].type, said[index].message) if index in said else ("", status)
            errors[index] = error_from(type_name, status, message)
    return errors


def _clamped(nodes: int) -> int:
    return max(0, min(nodes, _MAX_INT32))


@lru_cache(maxsize=256)
def _layout(kind: str, count: int) -> struct.Struct:
    return struct.Struct(f"<{count}{kind}")


def _packed(numbers: Sequence[int], kind: str) -> bytes:
    return _layout(kind, len(numbers)).pack(*numbers)


def _unpacked(data: bytes, kind: str, count: int, name: str) -> tuple[int, ...]:
    layout = _layout(kind, count)
    _check_length(data, layout.size, name)
    return layout.unpack(data)


def _joined(columns: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> bytes:
    if not _IS_LITTLE_ENDIAN:
        columns = [column.astype(dtype) for column in columns]
    if len(columns) == 1:
        return columns[0].tobytes()
    return b"".join([column.tobytes() for column in columns])


def _column(data: bytes, dtype: np.dtype[Any], count: int, name: str) -> NDArray[Any]:
    _check_length(data, count * dtype.itemsize, name)
    column = np.frombuffer(data, dtype)
    return column if _IS_LITTLE_ENDIAN else column.astype(dtype.newbyteorder("="))


def _check_length(data: bytes, num_bytes: int, name: str) -> None:
    if len(data) != num_bytes:
        raise InvalidRequest(
            f"column {name} has a wrong length", got=f"{len(data)} bytes", expected=num_bytes
        )


def _lengths(data: bytes, count: int, name: str) -> tuple[int, ...]:
    lengths = _unpacked(data, _INT32S, count, name)
    if lengths and min(lengths) < 0:
        raise InvalidRequest(f"column {name} holds a negative length", got=min(lengths), expected=">= 0")
    return lengths


def _split(array: NDArray[Any], lengths: Sequence[int]) -> list[NDArray[Any]]:
    if len(lengths) == 1:
        return [array]
    parts, start = [], 0
    for length in lengths:
        parts.append(array[start : start + length])
        start += length
    return parts


def _read_forest(result: DraftStepResult, counts: Sequence[int], source_names: tuple[str, ...]) -> DraftTree:
    num_nodes = sum(counts)
    return DraftTree(
        _column(result.token_ids, _INT32, num_nodes, "token_ids"),
        _column(result.parents, _INT32, num_nodes, "parents"),
        _column(result.probs, _FLOAT32, num_nodes, "probs"),
        _column(result.sources, _UINT16, num_nodes, "sources"),
        source_names,
    )


def _split_forest(forest: DraftTree, counts: Sequence[int]) -> list[DraftTree]:
    if len(counts) == 1:
        return [forest]
    parts = zip(
        _split(forest.token_ids, counts),
        _split(forest.parents, counts),
        _split(forest.probs, counts),
        _split(forest.sources, counts),
        strict=True,
    )
    return [DraftTree(*part, forest.source_names) for part in parts]


def _check_forest(forest: DraftTree, counts: Sequence[int], vocab_size: int) -> None:
    """Does what `DraftTree.check` does, for all trees of an answer at once.

    On lists: a tree has so few nodes that calls into numpy would cost ten times as much.
    """
    if not len(forest):
        return
    tokens, parents = forest.token_ids.tolist(), forest.parents.tolist()
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        as_tokens(forest.token_ids, vocab_size)  # says which one
    if min(parents) < CONTEXT:
        raise InvalidTree("a node has no parent", got=min(parents), expected=">= -1")
    start = 0
    for count in counts:
        _check_edges(tokens[start : start + count], parents[start : start + count])
        start += count
    _check_estimates(forest)


def _check_edges(tokens: list[int], parents: list[int]) -> None:
    if not all(map(operator.lt, parents, range(len(parents)))):
        raise InvalidTree("the parent of a node does not precede it")
    if len(set(zip(parents, tokens, strict=True))) < len(tokens):
        raise InvalidTree("two siblings carry the same token")


def _check_estimates(forest: DraftTree) -> None:
    probs = forest.probs.tolist()
    # One NaN makes the sum NaN; minimum and maximum may pass it over.
    if math.isnan(sum(probs)) or min(probs) < 0 or max(probs) > 1:
        raise InvalidTree("a node has no probability", expected="probs in [0, 1]")
    if max(forest.sources.tolist()) >> len(forest.source_names):
        raise InvalidTree("a node names an unknown source", expected=f"{len(forest.source_names)} sources")


_NO_TREE = DraftTree.empty()
