"""Draft steps and draft trees as columns of protobuf messages, and errors as statuses.

Whatever the other side sent is taken as hostile: every column's length is checked before it is read,
every tree before it is handed on. Knows the messages, but no transport, session or engine.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from retrieval_spec.tree import CONTEXT, DraftTree, Int32s, Tokens, as_tokens
from retrieval_spec.v1.draft_pb2 import DraftStep, DraftStepResult

MAX_MESSAGE_BYTES = 16 * 2**20
"""Largest message either side takes: a prompt of a million tokens is 4 MiB, gRPC's own limit."""

ERROR_TYPE_KEY = "retrieval-spec-error"
"""The trailing metadata that names the error class of a failed call."""

_UINT64 = np.dtype("<u8")
_INT64 = np.dtype("<i8")
_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")
_UINT16 = np.dtype("<u2")
_MAX_INT32 = 2**31 - 1

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
    step.session_ids = np.array(ids, _UINT64).tobytes()
    step.context_lengths = np.array(lengths, _INT64).tobytes()
    step.commit_lengths = np.array([len(commit) for commit in commits], _INT32).tobytes()
    step.commit_token_ids = _joined(commits, _INT32)
    step.max_nodes = np.array([_clamped(cap) for cap in caps], _INT32).tobytes()
    step.total_nodes = _clamped(total_nodes)


def read_step(step: DraftStep) -> list[SessionStep]:
    """Returns the rows of a step; token ids are not looked at, the engine's door does that.

    Raises:
        InvalidRequest: a column has another length than the number of sessions demands.
    """
    count = len(step.session_ids) // _UINT64.itemsize
    ids = _column(step.session_ids, _UINT64, count, "session_ids")
    lengths = _column(step.context_lengths, _INT64, count, "context_lengths")
    commit_lengths = _lengths(step.commit_lengths, count, "commit_lengths")
    caps = _column(step.max_nodes, _INT32, count, "max_nodes")
    commits = read_tokens(step.commit_token_ids, "commit_token_ids", sum(commit_lengths))
    return [
        SessionStep(*row)
        for row in zip(
            ids.tolist(), lengths.tolist(), _split(commits, commit_lengths), caps.tolist(), strict=True
        )
    ]


def token_bytes(token_ids: Tokens) -> bytes:
    """Returns token ids as a column."""
    return token_ids.astype(_INT32, copy=False).tobytes()


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
    result.node_counts = np.array([len(tree) for tree in trees], _INT32).tobytes()
    result.token_ids = _joined([tree.token_ids for tree in trees], _INT32)
    result.parents = _joined([tree.parents for tree in trees], _INT32)
    result.probs = _joined([tree.probs for tree in trees], _FLOAT32)
    result.sources = _joined([tree.sources for tree in trees], _UINT16)
    statuses = [0] * len(outcomes)
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, RetrievalSpecError):
            statuses[index] = _STATUS_NUMBERS[outcome.grpc_status]
            result.errors.add(session_index=index, type=type(outcome).__name__, message=str(outcome))
    result.statuses = np.array(statuses, _INT32).tobytes()


def read_result(
    result: DraftStepResult,
    max_nodes: Sequence[int],
    vocab_size: int,
    source_names: tuple[str, ...],
) -> list[Outcome]:
    """Returns one draft tree or error a session, checked as if an attacker had sent them.

    Args:
        result: the answer.
        max_nodes: what each session of the question asked for at most.
        vocab_size: token ids lie below it.
        source_names: the drafter behind each bit of the source masks.

    Raises:
        InvalidRequest: columns that do not fit the question or each other.
        InvalidTree, InvalidTokens: a tree that breaks the contract of `DraftTree`.
    """
    statuses = _column(result.statuses, _INT32, len(max_nodes), "statuses").tolist()
    counts = _lengths(result.node_counts, len(max_nodes), "node_counts")
    for count, cap, status in zip(counts, max_nodes, statuses, strict=True):
        if count > (0 if status else max(cap, 0)):
            raise InvalidTree("more nodes than were asked for", got=count, expected=f"<= {cap}")
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


def _session_errors(result: DraftStepResult, statuses: list[int]) -> dict[int, RetrievalSpecError]:
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


def _joined(columns: Sequence[NDArray[Any]], dtype: np.dtype[Any]) -> bytes:
    return b"".join([column.astype(dtype, copy=False).tobytes() for column in columns])


def _column(data: bytes, dtype: np.dtype[Any], count: int, name: str) -> NDArray[Any]:
    if len(data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"column {name} has a wrong length",
            got=f"{len(data)} bytes",
            expected=f"{count * dtype.itemsize}",
        )
    return np.frombuffer(data, dtype)


def _lengths(data: bytes, count: int, name: str) -> list[int]:
    lengths: list[int] = _column(data, _INT32, count, name).tolist()
    if lengths and min(lengths) < 0:
        raise InvalidRequest(f"column {name} holds a negative length", got=min(lengths), expected=">= 0")
    return lengths


def _split(array: NDArray[Any], lengths: list[int]) -> list[NDArray[Any]]:
    if len(lengths) == 1:
        return [array]
    parts, start = [], 0
    for length in lengths:
        parts.append(array[start : start + length])
        start += length
    return parts


def _read_forest(result: DraftStepResult, counts: list[int], source_names: tuple[str, ...]) -> DraftTree:
    num_nodes = sum(counts)
    return DraftTree(
        _column(result.token_ids, _INT32, num_nodes, "token_ids").astype(np.int32, copy=False),
        _column(result.parents, _INT32, num_nodes, "parents").astype(np.int32, copy=False),
        _column(result.probs, _FLOAT32, num_nodes, "probs").astype(np.float32, copy=False),
        _column(result.sources, _UINT16, num_nodes, "sources").astype(np.uint16, copy=False),
        source_names,
    )


def _split_forest(forest: DraftTree, counts: list[int]) -> list[DraftTree]:
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


def _check_forest(forest: DraftTree, counts: list[int], vocab_size: int) -> None:
    """Does what `DraftTree.check` does, for all trees of an answer at once."""
    num_nodes = len(forest)
    if num_nodes == 0:
        return
    as_tokens(forest.token_ids, vocab_size)
    nodes = np.arange(num_nodes, dtype=np.int64)
    starts = _starts(counts)
    if not ((forest.parents < nodes - starts) & (forest.parents >= CONTEXT)).all():
        raise InvalidTree("the parent of a node does not precede it")
    if not ((forest.probs >= 0) & (forest.probs <= 1)).all():  # NaN fails the comparison too
        raise InvalidTree("a node has no probability", expected="probs in [0, 1]")
    if int(forest.sources.max()) >> len(forest.source_names):
        raise InvalidTree("a node names an unknown source", expected=f"{len(forest.source_names)} sources")
    # A tree's context gets the negative of its first node, which no other tree can have.
    owners = np.where(forest.parents >= 0, starts + forest.parents, CONTEXT - starts)
    edges = np.sort((owners << 32) | forest.token_ids)
    if (edges[1:] == edges[:-1]).any():
        raise InvalidTree("two siblings carry the same token")


def _starts(counts: list[int]) -> Int32s | int:
    """Returns the index of the first node of each node's tree; one number for a single tree."""
    if len(counts) == 1:
        return 0
    lengths = np.array(counts, np.int64)
    return np.repeat(np.cumsum(lengths) - lengths, lengths)


_NO_TREE = DraftTree.empty()
