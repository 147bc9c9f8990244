"""Drafts ahead as columns: outcomes of a step, and one tree for each. Taken as hostile like all else."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.tree import DraftTree, Tokens
from retrieval_spec.v1.draft_pb2 import DraftAhead
from retrieval_spec.wire.columns import INT32, array_of, column_bytes
from retrieval_spec.wire.padding import NODE_BYTES
from retrieval_spec.wire.steps import read_result, write_result

MAX_AHEAD_BYTES = 1 << 18
"""Larger messages are not sent, and not looked at."""

MAX_OUTCOMES = 64

_ROW_BYTES = 12


def write_ahead(message: DraftAhead, outcomes: Sequence[Tokens], trees: Sequence[DraftTree]) -> None:
    """Fills a message; the step's number and incarnation are the caller's."""
    write_result(message.trees, trees)
    message.outcome_lengths = b"".join([len(outcome).to_bytes(4, "little") for outcome in outcomes])
    message.outcome_token_ids = b"".join(map(column_bytes, outcomes))


def ahead_bytes(outcome: Tokens, tree: DraftTree) -> int:
    """Returns about how large one outcome and its tree are in a message."""
    return _ROW_BYTES + 4 * len(outcome) + len(tree) * sum(NODE_BYTES.values())


def read_ahead(
    message: DraftAhead, max_nodes: int, vocab_size: int, source_names: tuple[str, ...]
) -> dict[bytes, DraftTree]:
    """Returns the tree for each outcome, by the column of its tokens, checked as in `read_result`.

    Raises:
        InvalidRequest: columns that do not fit each other, or too many outcomes.
        InvalidTree, InvalidTokens: a tree that breaks the contract of `DraftTree`.
    """
    column, tokens = message.outcome_lengths, message.outcome_token_ids
    count = len(column) // 4
    if len(column) != 4 * count or count > MAX_OUTCOMES:
        raise InvalidRequest("not so many outcomes", got=f"{len(column)} bytes", expected=4 * MAX_OUTCOMES)
    lengths = array_of(column, INT32).tolist()
    if min(lengths, default=1) < 1 or 4 * sum(lengths) != len(tokens):
        raise InvalidRequest("outcomes have other lengths than said", got=f"{len(tokens)} bytes")
    trees = read_result(message.trees, [max_nodes] * count, count * max_nodes, vocab_size, source_names)
    found: dict[bytes, DraftTree] = {}
    begin = 0
    for length, tree in zip(lengths, trees, strict=True):
        if isinstance(tree, DraftTree):
            found.setdefault(tokens[begin : begin + 4 * length], tree)
        begin += 4 * length
    return found
