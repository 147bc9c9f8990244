"""Columns: arrays as little-endian bytes. Every length is checked before a column is read."""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.tree import Tokens

MAX_MESSAGE_BYTES = 16 * 2**20
"""Largest message either side takes: a prompt of a million tokens is 4 MiB, gRPC's own limit."""

MAX_ENDED = 256
"""Most sessions that one message says have ended: each may teach, and others wait meanwhile."""

INT32 = np.dtype("<i4")
FLOAT32 = np.dtype("<f4")
FLOAT64 = np.dtype("<f8")
UINT16 = np.dtype("<u2")
_IS_LITTLE_ENDIAN = sys.byteorder == "little"


def token_bytes(token_ids: Tokens) -> bytes:
    """Returns token ids as a column."""
    return column_bytes(token_ids)


def number_bytes(numbers: Sequence[int]) -> bytes:
    """Returns plain numbers, each an int32, as a column; for few ones much faster than by way of numpy."""
    return struct.pack(f"<{len(numbers)}i", *numbers)


def read_tokens(column: bytes, name: str, count: int | None = None) -> Tokens:
    """Returns a column of token ids as an array that may be written to.

    Read-only arrays are another type to compiled kernels, which would compile twice.

    Raises:
        InvalidRequest: not a whole number of token ids, or not `count` of them.
    """
    expected = len(column) // 4 if count is None else count
    if len(column) != 4 * expected:
        raise wrong_length((column,), {name: 4}, expected)
    return array_of(bytearray(column), INT32)


def read_column(column: bytes, name: str, dtype: np.dtype[Any], count: int) -> NDArray[Any]:
    """Returns a column of `count` numbers as an array that may be written to.

    Raises:
        InvalidRequest: it has another length.
    """
    if len(column) != dtype.itemsize * count:
        raise wrong_length((column,), {name: dtype.itemsize}, count)
    return array_of(bytearray(column), dtype)


def wrong_length(columns: Sequence[bytes], item_bytes: dict[str, int], count: int) -> InvalidRequest:
    """Returns the error that names the first column without `count` items."""
    named = zip(columns, item_bytes.items(), strict=True)
    column, name, size = next((data, name, size) for data, (name, size) in named if len(data) != count * size)
    return InvalidRequest(
        f"column {name} has a wrong length", got=f"{len(column)} bytes", expected=count * size
    )


def array_of(column: bytes | bytearray, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns the numbers of a column whose length was checked."""
    array = np.frombuffer(column, dtype)
    return array if _IS_LITTLE_ENDIAN else array.astype(dtype.newbyteorder("="))


def _swapped_bytes(column: NDArray[Any]) -> bytes:
    return column.astype(column.dtype.newbyteorder("<")).tobytes()


column_bytes: Callable[[NDArray[Any]], bytes] = np.ndarray.tobytes if _IS_LITTLE_ENDIAN else _swapped_bytes
