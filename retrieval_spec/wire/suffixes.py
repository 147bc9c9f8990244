"""Rows without sessions as columns of their messages. Every length is checked before a column is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retrieval_spec.errors import InvalidRequest, LimitExceeded
from retrieval_spec.tree import Tokens
from retrieval_spec.v1.draft_pb2 import DraftSuffixesRequest, DraftSuffixesResponse
from retrieval_spec.wire.columns import INT32, column_bytes, read_column, read_tokens

_INT64 = np.dtype("<i8")
_MAX_INT32 = 2**31 - 1


class Suffix(NamedTuple):
    """One row.

    Attributes:
        token_ids: int32[n]  its context's last tokens.
        context_length: how many there are in all.
        max_nodes: largest draft tree wanted.
    """

    token_ids: Tokens
    context_length: int
    max_nodes: int


def write_suffixes(request: DraftSuffixesRequest, rows: Sequence[Suffix], total_nodes: int) -> None:
    """Fills the columns of `request`; its namespace and costs are the caller's."""
    request.context_lengths = column_bytes(np.array([row.context_length for row in rows], _INT64))
    request.suffix_lengths = column_bytes(np.array([row.token_ids.size for row in rows], INT32))
    request.suffix_token_ids = b"".join(column_bytes(row.token_ids) for row in rows)
    caps = [max(0, min(row.max_nodes, _MAX_INT32)) for row in rows]
    request.max_nodes = column_bytes(np.array(caps, INT32))
    request.total_nodes = max(0, min(total_nodes, _MAX_INT32))


def read_suffixes(request: DraftSuffixesRequest, max_rows: int) -> list[Suffix]:
    """Returns the rows of a request; token ids are not looked at, the engine's door does that.

    Raises:
        InvalidRequest: a column has another length than the number of rows demands, or a row is shorter than
            what stands here of it.
        LimitExceeded: more than `max_rows` rows.
    """
    count = len(request.context_lengths) // 8
    if count > max_rows:
        raise LimitExceeded("too many rows in one step", got=count, expected=f"<= {max_rows}")
    contexts = read_column(request.context_lengths, "context_lengths", _INT64, count)
    lengths = read_column(request.suffix_lengths, "suffix_lengths", INT32, count)
    caps = read_column(request.max_nodes, "max_nodes", INT32, count).tolist()
    if count and (lengths.min() < 0 or (contexts < lengths).any()):
        raise InvalidRequest(
            "a row is shorter than its end", expected="0 <= suffix_lengths <= context_lengths"
        )
    num_tokens = int(lengths.sum(dtype=np.int64))
    tokens = read_tokens(request.suffix_token_ids, "suffix_token_ids", num_tokens)
    ends = lengths.cumsum(dtype=np.int64).tolist()
    parts = [tokens[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
    return list(map(Suffix, parts, contexts.tolist(), caps))


def write_missing(response: DraftSuffixesResponse, missing_tokens: Sequence[int]) -> None:
    """Says what is not held of each row."""
    response.missing_tokens = column_bytes(np.array(missing_tokens, _INT64))


def read_missing(response: DraftSuffixesResponse, num_rows: int) -> list[int]:
    """Returns what the server does not hold of each row.

    Raises:
        InvalidRequest: the column has another length.
    """
    missing: list[int] = read_column(response.missing_tokens, "missing_tokens", _INT64, num_rows).tolist()
    return missing
