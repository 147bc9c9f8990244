"""Draft steps and draft trees as columns of protobuf messages, and errors as statuses.

Whatever the other side sent is taken as hostile: every column's length is checked before it is read,
every tree before it is handed on. Knows the messages, but no transport, session or engine.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest, InvalidTree, LimitExceeded, RetrievalSpecError
from retrieval_spec.feedback import Feedback
from retrieval_spec.tree import CONTEXT, DraftTree, Forest, Tokens, as_tokens
from retrieval_spec.v1.draft_pb2 import DraftStep, DraftStepResult
from retrieval_spec.wire.columns import (
    FLOAT32,
    INT32,
    UINT16,
    array_of,
    column_bytes,
    read_tokens,
    wrong_length,
)
from retrieval_spec.wire.feedback import read_feedback, write_feedback
from retrieval_spec.wire.statuses import STATUS_NAMES, STATUS_NUMBERS, error_from

# A draft comes once in a millisecond and finds cold caches, where each further function costs several
# times what it costs in a loop: hence one struct for all columns over sessions, and plain loops over nodes.
_ROW_COLUMNS = {"session_ids": 8, "context_lengths": 8, "commit_lengths": 4, "max_nodes": 4}
_ANSWER_COLUMNS = {"statuses": 4, "node_counts": 4}
_NODE_COLUMNS = {"token_ids": 4, "parents": 4, "probs": 4, "sources": 2}
_MAX_INT32 = 2**31 - 1
_MANY_TREES = 4
"""From here on numpy is faster than loops over plain numbers."""


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


def write_step(step: DraftStep, rows: Sequence[SessionStep], total_nodes: int) -> None:
    """Fills the columns of `step`; its number and incarnation are the caller's."""
    ids, lengths, commits, caps, feedbacks = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    count = len(rows)
    numbers = _row_layout(count).pack(
        *ids, *lengths, *map(len, commits), *[max(0, min(cap, _MAX_INT32)) for cap in caps]
    )
    step.session_ids = numbers[: 8 * count]
    step.context_lengths = numbers[8 * count : 16 * count]
    step.commit_lengths = numbers[16 * count : 20 * count]
    step.max_nodes = numbers[20 * count :]
    step.commit_token_ids = b"".join(map(column_bytes, commits))
    step.total_nodes = max(0, min(total_nodes, _MAX_INT32))
    for index, feedback in enumerate(feedbacks):
        if feedback is not None:
            write_feedback(step.feedback.add(session_index=index), feedback)


class StepColumns(NamedTuple):
    """The rows of a step as they came: an entry of each column for each session.

    Attributes:
        session_ids: issued by the server.
        context_lengths: tokens that the server must hold before the commit.
        commit_lengths: tokens to append before drafting.
        token_ids: int32[sum of commit_lengths]  these, session after session; not looked at.
        max_nodes: largest draft tree wanted, in nodes.
    """

    session_ids: Sequence[int]
    context_lengths: Sequence[int]
    commit_lengths: Sequence[int]
    token_ids: Tokens
    max_nodes: Sequence[int]


def read_columns(step: DraftStep, max_sessions: int) -> StepColumns:
    """Returns the columns of a step; token ids are not looked at, the engine's door does that.

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
    commits = read_tokens(step.commit_token_ids, "commit_token_ids", sum(commit_tokens))
    return StepColumns(
        numbers[:count], numbers[count : 2 * count], commit_tokens, commits, numbers[3 * count :]
    )


def read_step(step: DraftStep, columns: StepColumns) -> list[SessionStep]:
    """Returns the rows of a step, with their feedback, which is not checked yet.

    Raises:
        InvalidRequest: feedback that is about no session, or malformed.
    """
    commits = _split(columns.token_ids, columns.commit_lengths)
    known = (columns.session_ids, columns.context_lengths, commits, columns.max_nodes)
    rows = list(map(SessionStep, *known))
    for message in step.feedback:
        index = message.session_index
        if not 0 <= index < len(rows):
            raise InvalidRequest("feedback on no session", got=index, expected=f"0 to {len(rows) - 1}")
        rows[index] = rows[index]._replace(feedback=read_feedback(message))
    return rows


def write_forest(result: DraftStepResult, forest: Forest) -> None:
    """Fills the columns of `result` where no session failed; its number and incarnation are the caller's."""
    count = len(forest.counts)
    numbers = _answer_layout(count).pack(*[0] * count, *forest.counts)
    result.statuses, result.node_counts = numbers[: 4 * count], numbers[4 * count :]
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
    numbers = _answer_layout(len(outcomes)).pack(*statuses, *counts)
    result.statuses = numbers[: 4 * len(outcomes)]
    result.node_counts = numbers[4 * len(outcomes) :]
    result.token_ids, result.parents = b"".join(tokens), b"".join(parents)
    result.probs, result.sources = b"".join(probs), b"".join(sources)


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
    allowed = [0 if status else cap for cap, status in zip(max_nodes, statuses, strict=True)]
    if sum(counts) > total_nodes or any(map(operator.gt, counts, allowed)):
        raise InvalidTree("more nodes than were asked for", got=counts, expected=f"<= {allowed}")
    forest = _read_forest(result, counts, source_names)
    _check_forest(forest, counts, vocab_size)
    outcomes: list[Outcome] = [*_split_forest(forest, counts)]
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


def _read_forest(result: DraftStepResult, counts: Sequence[int], source_names: tuple[str, ...]) -> DraftTree:
    tokens, parents, probs, sources = columns = (
        result.token_ids,
        result.parents,
        result.probs,
        result.sources,
    )
    num_nodes = sum(counts)
    if not len(tokens) == len(parents) == len(probs) == 2 * len(sources) == 4 * num_nodes:
        raise wrong_length(columns, _NODE_COLUMNS, num_nodes)
    return DraftTree(
        array_of(tokens, INT32),
        array_of(parents, INT32),
        array_of(probs, FLOAT32),
        array_of(sources, UINT16),
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
    """Does what `DraftTree.check` does, for all trees of an answer at once."""
    num_masks = 1 << len(forest.source_names)
    if len(counts) >= _MANY_TREES and _are_sound(forest, counts, vocab_size, num_masks):
        return
    columns = [column.tolist() for column in (forest.token_ids, forest.parents, forest.probs, forest.sources)]
    begin = 0
    for count in counts:
        tokens, parents, probs, sources = [column[begin : begin + count] for column in columns]
        if count and not _is_sound(tokens, parents, probs, sources, vocab_size, num_masks):
            as_tokens(forest.token_ids, vocab_size)  # says which one
            raise _tree_error(parents, probs, sources, num_masks)
        begin += count


def _are_sound(forest: DraftTree, counts: Sequence[int], vocab_size: int, num_masks: int) -> bool:
    """Whether all trees are sound, by a fixed number of looks at whole columns."""
    tokens, parents = forest.token_ids, forest.parents
    num_nodes, sizes = tokens.shape[0], np.array(counts, np.int64)
    trees = np.repeat(np.arange(sizes.shape[0]), sizes)
    nodes = np.arange(num_nodes) - (np.cumsum(sizes) - sizes)[trees]
    places = np.sort(((trees * (num_nodes + 1) + parents) << 32) + tokens)  # two alike are siblings
    return bool(
        np.all(
            (tokens >= 0)
            & (tokens < vocab_size)
            & (parents >= CONTEXT)
            & (parents < nodes)
            & (forest.probs >= 0)
            & (forest.probs <= 1)
            & (forest.sources < num_masks)
        )
        and not np.any(places[1:] == places[:-1])
    )


def _is_sound(
    tokens: Sequence[int],
    parents: Sequence[int],
    probs: Sequence[float],
    sources: Sequence[int],
    vocab_size: int,
    num_masks: int,
) -> bool:
    # Without a loop in Python, which would cost more than all the rest of reading an answer.
    return (
        min(tokens) >= 0
        and max(tokens) < vocab_size
        and min(parents) >= CONTEXT
        and all(map(operator.lt, parents, range(len(parents))))
        and min(probs) >= 0
        and max(probs) <= 1
        and not math.isnan(sum(probs))  # least and largest may miss a NaN, the sum does not
        and max(sources) < num_masks
        and len(set(zip(parents, tokens, strict=True))) == len(tokens)
    )


def _tree_error(
    parents: Sequence[int],
    probs: Sequence[float],
    sources: Sequence[int],
    num_masks: int,
) -> InvalidTree:
    for node, (parent, prob, mask) in enumerate(zip(parents, probs, sources, strict=True)):
        if not (CONTEXT <= parent < node and 0 <= prob <= 1 and mask < num_masks):
            return _node_error(node, parent, prob, num_masks)
    return InvalidTree("two siblings carry the same token")


def _node_error(node: int, parent: int, prob: float, num_masks: int) -> InvalidTree:
    if not CONTEXT <= parent < node:
        return InvalidTree(
            "the parent of a node does not precede it", got=parent, expected=f"-1 to {node - 1}"
        )
    if not 0 <= prob <= 1:
        return InvalidTree("a node has no probability", got=prob, expected="probs in [0, 1]")
    return InvalidTree("a node names an unknown source", expected=f"a mask below {num_masks}")
