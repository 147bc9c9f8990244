"""Checks of a context array's order, whole or in samples: what checksums cannot say about who wrote it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from retrieval_spec.errors import DatastoreCorrupt
from retrieval_spec.kernels.context_order import IN_ORDER, first_out_of_order
from retrieval_spec.structures.context_array import ContextArray

_CHUNK_POSITIONS = 1 << 20
_SAMPLED_PIECES = 256
_PIECE_POSITIONS = 256

Pieces = list[tuple[int, int]]


def whole_order(num_positions: int) -> Pieces:
    """Returns the ranges of all positions, in chunks."""
    starts = range(0, num_positions, _CHUNK_POSITIONS)
    return [(start, min(start + _CHUNK_POSITIONS, num_positions)) for start in starts]


def sampled_order(num_positions: int) -> Pieces:
    """Returns short ranges, spread evenly: always the same ones, and all positions of a small array."""
    if num_positions <= _SAMPLED_PIECES * _PIECE_POSITIONS:
        return whole_order(num_positions)
    starts = np.linspace(0, num_positions - _PIECE_POSITIONS, _SAMPLED_PIECES).astype(np.int64).tolist()
    return [(start, start + _PIECE_POSITIONS) for start in starts]


def check_order(array: ContextArray, pieces: Pieces, advance: Callable[[int], None]) -> int:
    """Accepts positions that stand in the order of their contexts; returns how many were looked at.

    Args:
        array: the positions, and what they are sorted by.
        pieces: the ranges to look at; `whole_order` leaves no other content than the right one.
        advance: told the number of positions after every range.

    Raises:
        DatastoreCorrupt: a position stands in the wrong place.
    """
    for start, stop in pieces:
        found = first_out_of_order(
            array.tokens, array.positions, array.buckets, array.depth_tokens, start, stop
        )
        if found != IN_ORDER:
            raise DatastoreCorrupt(
                f"column 'positions' is out of order at index {found}",
                got=int(array.positions[found]),
                expected="positions sorted by the tokens before them",
                remedy="build the datastore again",
            )
        advance(stop - start)
    return sum(stop - start for start, stop in pieces)
