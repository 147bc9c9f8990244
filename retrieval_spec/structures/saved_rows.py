"""Adjacency rows at rest, and the columns of a datastore that hold them. Knows no files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.kernels.adjacency import LEVEL_BITS, MAX_LEVEL, ROW_WORDS, WIDTH
from retrieval_spec.tree import Int32s

NO_TOKEN = -1
MAX_SHORT_ID = np.iinfo(np.uint16).max - 1

Column = NDArray[Any]


class SavedRows(NamedTuple):
    """Rows as they stand in an arena, those of one token first, then those of two, the oldest first.

    Attributes:
        keys: int32[n, 2]  the token before, `NO_TOKEN` for a row of one token; the token.
        rows: int32[n, ROW_WORDS]  ids plus one by rank, 0 where none is known; all levels in a word.
    """

    keys: Int32s
    rows: Int32s

    def to_columns(self) -> dict[str, Column]:
        """Returns `tokens`, `documents`, `orders` and `places`: key tokens, ids and a separator a row."""
        num_rows = self.keys.shape[0]
        is_short = max(self.keys.max(initial=0), self.rows[:, :WIDTH].max(initial=0) - 1) <= MAX_SHORT_ID
        dtype = np.uint16 if is_short else np.int32
        separators = np.full((num_rows, 1), np.iinfo(dtype).max, np.int64)
        ids = self.rows[:, :WIDTH].astype(np.int64) - 1
        values = np.concatenate([self.keys, ids, separators], axis=1)
        levels = self.rows[:, WIDTH:].astype(np.int64) >> _SHIFTS & MAX_LEVEL
        places = np.zeros(values.shape, np.uint16)
        places[:, 2:-1] = np.arange(WIDTH) << LEVEL_BITS | levels
        is_there = values >= 0
        lengths = is_there.sum(axis=1)
        return {
            "tokens": values[is_there].astype(dtype),
            "documents": (np.cumsum(lengths) - lengths).astype(np.int64),
            "orders": (self.keys >= 0).sum(axis=1).astype(np.uint16),
            "places": places[is_there],
        }

    @staticmethod
    def from_columns(columns: Mapping[str, Column]) -> SavedRows:
        """Returns the rows of columns that were found to be sound."""
        tokens, starts = columns["tokens"].astype(np.int32), columns["documents"]
        orders = columns["orders"].astype(np.int64)
        lengths = np.diff(np.append(starts, tokens.shape[0]))
        row = np.repeat(np.arange(starts.shape[0]), lengths)
        at = np.arange(tokens.shape[0]) - starts[row]
        is_id = (at >= orders[row]) & (at < lengths[row] - 1)
        places = columns["places"][is_id].astype(np.int64)
        rows = np.zeros((starts.shape[0], ROW_WORDS), np.int32)
        rows[row[is_id], places >> LEVEL_BITS] = tokens[is_id] + 1
        levels = np.zeros((starts.shape[0], WIDTH), np.int64)
        levels[row[is_id], places >> LEVEL_BITS] = places & MAX_LEVEL
        rows[:, WIDTH] = (levels << _SHIFTS).sum(axis=1).astype(np.uint32).view(np.int32)
        previous = np.where(orders == 2, tokens[starts], NO_TOKEN)
        return SavedRows(np.stack([previous, tokens[starts + orders - 1]], axis=1).astype(np.int32), rows)


_SHIFTS = np.arange(WIDTH) * LEVEL_BITS
