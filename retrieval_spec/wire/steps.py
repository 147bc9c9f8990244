"""Draft steps and draft trees as columns of protobuf messages, and errors as statuses.

Whatever the other side sent is taken as hostile: every column's length is checked before it is read,
every tree before it is handed on. Knows the messages, but no transport, session or engine.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest, InvalidTree, LimitExceeded, RetrievalSpecError
from retrieval_spec.feedback import Feedback
from retrieval_spec.tree import DraftTree, Forest, Tokens
from retrieval_spec.v1.draft_pb2 import DraftStep, DraftStepResult
from retrieval_spec.wire.columns import (
    column_bytes,
    read_tokens,
    wrong_length,
)
from retrieval_spec.wire.feedback import read_feedback, write_feedback
from retrieval_spec.wire.forest import read_trees
from retrieval_spec.wire.statuses import STATUS_NAMES, STATUS_NUMBERS, error_from

# A draft comes once in a millisecond and finds cold caches, where each further function costs several
# times what it costs in a loop: hence one struct for all columns over sessions.
_ROW_COLUMNS = {"session_ids": 8, "context_lengths": 8, "commit_lengths": 4, "max_nodes": 4}
_ANSWER_COLUMNS = {"statuses": 4, "node_counts": 4}
_MAX_INT32 = 2**31 - 1

Outcome = DraftTree | RetrievalSpecError
"""What one session gets out of a step."""


class SessionStep(NamedTuple):
    """One session's row of a step.

    Attributes:
        session_id: issued by the server.
        context_length: tokens that the server must hold before the commit.
        commit: int32[n]  tokens to append before drafting.
        max_nodes: largest draft tree wanted, in nodes.
        feedback: what the verification that decided the commit taught, if told; not checked yet.
    """

    session_id: int
    context_length: int
    commit: Tokens
    max_nodes: int
    feedback: Feedback | None = None


class StepColumns(NamedTuple):
    """The numbers of a step's rows: an entry of each column for each session.

    Attributes:
        session_ids: issued by the server.
        context_lengths: tokens that the server must hold before the commit.
        commit_lengths: tokens to append before drafting.
        max_nodes: largest draft tree wanted, in nodes.
    """

    session_ids: Sequence[int]
    context_lengths: Sequence[int]
    commit_lengths: Sequence[int]
    max_nodes: Sequence[int]


def write_step(step: DraftStep, rows: Sequence[SessionStep], total_nodes: int) -> None:
    """Fills the columns of `step`; its number and incarnation are the caller's."""
    ids, lengths, commits, caps, feedbacks = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    tokens = b"".join(map(column_bytes, commits))
    write_columns(step, StepColumns(ids, lengths, [*map(len, commits)], caps), tokens, total_nodes)
    for index, feedback in enumerate(feedbacks):
        if feedback is not None:
            write_feedback(step.feedback.add(session_index=index), feedback)


def write_columns(step: DraftStep, columns: StepColumns, tokens: bytes, total_nodes: int) -> None:
    """Does what `write_step` does, but for feedback, for whoever has columns."""
    ids, lengths, commit_lengths, caps = columns
    count = len(ids)
    if count and not 0 <= min(caps) <= max(caps) <= _MAX_INT32:
        caps = [max(0, min(cap, _MAX_INT32)) for cap in caps]
    numbers = _row_layout(count).pack(*ids, *lengths, *commit_lengths, *caps)
    step.session_ids = numbers[: 8 * count]
    step.context_lengths = numbers[8 * count : 16 * count]
    step.commit_lengths = numbers[16 * count : 20 * count]
    step.max_nodes = numbers[20 * count :]
    step.commit_token_ids = tokens
    step.total_nodes = max(0, min(total_nodes, _MAX_INT32))


def read_columns(step: DraftStep, max_sessions: int) -> StepColumns:
    """Returns the numbers of a step's rows.

    Raises:
        InvalidRequest: a column has another length than the number of sessions demands.
        LimitExceeded: more than `max_sessions` rows.
    """
    ids, lengths, commit_lengths, caps = columns = (
        step.session_ids,
        step.context_lengths,
        step.commit_lengths,
        step.max_nodes,
    )
    count = len(ids) // 8
    if count > max_sessions:
        raise LimitExceeded("too many sessions in one step", got=count, expected=f"<= {max_sessions}")
    if not len(ids) == len(lengths) == 2 * len(commit_lengths) == 2 * len(caps) == 8 * count:
        raise wrong_length(columns, _ROW_COLUMNS, count)
    numbers = _row_layout(count).unpack(b"".join(columns))
    commit_tokens = _not_negative(numbers[2 * count : 3 * count], "commit_lengths")
    return StepColumns(numbers[:count], numbers[count : 2 * count], commit_tokens, numbers[3 * count :])


def read_commits(step: DraftStep, columns: StepColumns) -> Tokens:
    """Returns the tokens that a step commits, session after session; the engine's door looks at them.

    Raises:
        InvalidRequest: not as many as the columns say.
    """
    return read_tokens(step.commit_token_ids, "commit_token_ids", sum(columns.commit_lengths))


def read_step(step: DraftStep, columns: StepColumns, tokens: Tokens) -> list[SessionStep]:
    """Returns the rows of a step, with their feedback, which is not checked yet.

    Raises:
        InvalidRequest: feedback that is about no session, or malformed.
    """
    commits = _split(tokens, columns.commit_lengths)
    rows = list(map(SessionStep, columns.session_ids, columns.context_lengths, commits, columns.max_nodes))
    for message in step.feedback:
        index = message.session_index
        if not 0 <= index < len(rows):
            raise InvalidRequest("feedback on no session", got=index, expected=f"0 to {len(rows) - 1}")
        rows[index] = rows[index]._replace(feedback=read_feedback(message))
    return rows


def write_forest(result: DraftStepResult, forest: Forest) -> None:
    """Fills the columns of `result` where no session failed; its number and incarnation are the caller's."""
    _write_counts(result, [0] * len(forest.counts), forest.counts)
    result.token_ids, result.parents = column_bytes(forest.token_ids), column_bytes(forest.parents)
    result.probs, result.sources = column_bytes(forest.probs), column_bytes(forest.sources)


def write_result(result: DraftStepResult, outcomes: Sequence[Outcome]) -> None:
    """Fills the columns of `result`; its number and incarnation are the caller's."""
    statuses, counts = [0] * len(outcomes), [0] * len(outcomes)
    tokens, parents, probs, sources = [], [], [], []
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, DraftTree):
            counts[index] = len(outcome)
            tokens.append(column_bytes(outcome.token_ids))
            parents.append(column_bytes(outcome.parents))
            probs.append(column_bytes(outcome.probs))
            sources.append(column_bytes(outcome.sources))
        else:
            statuses[index] = STATUS_NUMBERS[outcome.grpc_status]
            result.errors.add(session_index=index, type=type(outcome).__name__, message=str(outcome))
    _write_counts(result, statuses, counts)
    result.token_ids, result.parents = b"".join(tokens), b"".join(parents)
    result.probs, result.sources = b"".join(probs), b"".join(sources)


def _write_counts(result: DraftStepResult, statuses: Sequence[int], counts: Sequence[int]) -> None:
    numbers = _answer_layout(len(counts)).pack(*statuses, *counts)
    result.statuses, result.node_counts = numbers[: 4 * len(counts)], numbers[4 * len(counts) :]


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
    num_sessions = len(max_nodes)
    columns = (result.statuses, result.node_counts)
    if not len(columns[0]) == len(columns[1]) == 4 * num_sessions:
        raise wrong_length(columns, _ANSWER_COLUMNS, num_sessions)
    numbers = _answer_layout(num_sessions).unpack(b"".join(columns))
    statuses = numbers[:num_sessions]
    counts = _not_negative(numbers[num_sessions:], "node_counts")
    allowed = max_nodes
    if any(statuses):
        allowed = [0 if status else cap for cap, status in zip(max_nodes, statuses, strict=True)]
    if sum(counts) > total_nodes or any(map(operator.gt, counts, allowed)):
        raise InvalidTree("more nodes than were asked for", got=counts, expected=f"<= {allowed}")
    outcomes: list[Outcome] = [*read_trees(result, counts, vocab_size, source_names)]
    if any(statuses):
        for index, error in _session_errors(result, statuses).items():
            outcomes[index] = error
    return outcomes


def _session_errors(result: DraftStepResult, statuses: Sequence[int]) -> dict[int, RetrievalSpecError]:
    said = {error.session_index: error for error in result.errors}
    errors = {}
    for index, number in enumerate(statuses):
        if number:
            status = STATUS_NAMES.get(number, "UNKNOWN")
            type_name, message = (said[index].type, said[index].message) if index in said else ("", status)
            errors[index] = error_from(type_name, status, message)
    return errors


@lru_cache(maxsize=256)
def _row_layout(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}Q{count}q{count}i{count}i")


@lru_cache(maxsize=256)
def _answer_layout(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}i{count}i")


def _not_negative(lengths: tuple[int, ...], name: str) -> tuple[int, ...]:
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
