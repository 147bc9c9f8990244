"""Token ids in a numpy file."""

from __future__ import annotations

import ast
import re
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from retrieval_spec.datastore.readers.arrays import TokenArray
from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.datastore.readers.streams import readable
from retrieval_spec.errors import InvalidRequest

# Version 1.0; a vector or matrix of integers needs no newer one.
_START = struct.Struct("<8sH")
_MAGIC = b"\x93NUMPY\x01\x00"
_INTEGER = re.compile(r"[<>|=]?[iu][1248]")


def read_npy(reading: Reading) -> Iterator[Content]:
    """Yields the rows of a matrix of ids, or a vector of ids as one document."""
    with readable(reading.path), reading.path.open("rb") as file:
        shape, dtype = _header(reading, file)
        start_byte, num_bytes = file.tell(), reading.path.stat().st_size
        num_documents, length = shape if len(shape) == 2 else (1, shape[0])
        if start_byte + num_documents * length * dtype.itemsize != num_bytes:
            raise InvalidRequest(
                f"cannot read {reading.path}", got=f"{num_bytes} bytes", expected=f"{shape} of {dtype}"
            )
        reading.advance(start_byte)
        tokens = TokenArray(reading, file, dtype, start_byte)
        for number in range(num_documents if length else 0):
            yield from tokens.document(number, number * length, (number + 1) * length)


def _header(reading: Reading, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    start = file.read(_START.size)
    magic, num_bytes = _START.unpack(start) if len(start) == _START.size else (start, 0)
    if magic != _MAGIC:
        raise InvalidRequest(f"cannot read {reading.path}", got=magic, expected="a .npy file of version 1.0")
    try:
        facts = ast.literal_eval(file.read(num_bytes).decode("ascii").strip())
        descr, is_by_column, shape = facts["descr"], facts["fortran_order"], facts["shape"]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError) as error:
        raise InvalidRequest(
            f"cannot read {reading.path}", got=error, expected="a header of numpy"
        ) from error
    if not (_is_integer(descr) and _is_shape(shape)) or (is_by_column and len(shape) == 2):
        raise InvalidRequest(
            f"{reading.path} holds no token ids",
            got=f"{descr} of shape {shape}{' by column' if is_by_column else ''}"[:200],
            expected="a vector or, by row, a matrix of integers",
        )
    return shape, np.dtype(descr)


def _is_integer(descr: object) -> bool:
    return isinstance(descr, str) and _INTEGER.fullmatch(descr) is not None


def _is_shape(shape: object) -> bool:
    return isinstance(shape, tuple) and len(shape) in (1, 2) and all(type(n) is int and n >= 0 for n in shape)
