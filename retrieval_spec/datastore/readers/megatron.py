r"""Megatron's indexed dataset: ids in a `.bin`, and an `.idx` that says where each sequence lies.

The index, little-endian: `MMIDIDX\0\0`, uint64 version (1), uint8 code of the ids' type, uint64 number `n` of
sequences, uint64 number `d` of document edges; int32[n] lengths, int64[n] first bytes, int64[d] the first
sequence of each document, and `n` at the end; a multimodal one has int8[n] more, which is not read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_spec.datastore.readers.arrays import TokenArray, disagreement, index_beside, numbers_of
from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.datastore.readers.streams import readable

_HEADER = struct.Struct("<9sQBQQ")
_MAGIC = b"MMIDIDX\0\0"
_VERSION = 1
_DTYPES = {code: np.dtype(name) for code, name in {1: "u1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}.items()}
_LENGTH, _POSITION = np.dtype("<i4"), np.dtype("<i8")


@dataclass(frozen=True, slots=True)
class _Index:
    path: Path
    dtype: np.dtype[Any]
    num_sequences: int
    num_edges: int

    def lengths(self) -> Iterator[int]:
        return numbers_of(self.path, _LENGTH, _HEADER.size, self.num_sequences)

    def first_bytes(self) -> Iterator[int]:
        start = _HEADER.size + self.num_sequences * _LENGTH.itemsize
        return numbers_of(self.path, _POSITION, start, self.num_sequences)

    def edges(self) -> Iterator[int]:
        start = _HEADER.size + self.num_sequences * (_LENGTH.itemsize + _POSITION.itemsize)
        return numbers_of(self.path, _POSITION, start, self.num_edges)


def read_megatron(reading: Reading) -> Iterator[Content]:
    """Yields the documents, each of one or more sequences."""
    with readable(reading.path):
        index = _open_index(reading)
        ends = _ends(reading, index)
        start = 0
        with reading.path.open("rb", buffering=0) as file:
            tokens = TokenArray(reading, file, index.dtype)
            for number, num_sequences in enumerate(_sequences_of_documents(reading, index)):
                stop = start
                for _ in range(num_sequences):
                    stop = next(ends)
                yield from tokens.document(number, start, stop)
                start = stop


def _open_index(reading: Reading) -> _Index:
    path = index_beside(reading, f"{reading.path.stem}.idx")
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_MAGIC):
        raise disagreement(reading, path, f"{header[:9]!r}", f"{_MAGIC!r} and a header")
    _, version, code, num_sequences, num_edges = _HEADER.unpack(header)
    if version != _VERSION or code not in _DTYPES:
        raise disagreement(
            reading,
            path,
            f"version {version}, type {code}",
            f"version 1, type {', '.join(map(str, _DTYPES))}",
        )
    num_bytes = path.stat().st_size
    size = (
        _HEADER.size
        + num_sequences * (_LENGTH.itemsize + _POSITION.itemsize)
        + num_edges * _POSITION.itemsize
    )
    if num_bytes not in (size, size + num_sequences):
        raise disagreement(
            reading, path, f"{num_sequences} sequences, {num_edges} edges", f"as fit {num_bytes} bytes"
        )
    index = _Index(path, _DTYPES[code], num_sequences, num_edges)
    _check_size(reading, index)
    return index


def _check_size(reading: Reading, index: _Index) -> None:
    """Accepts the two files only if the last sequence ends where the file of ids does."""
    end, num_bytes = 0, reading.path.stat().st_size
    if index.num_sequences:
        last = index.num_sequences - 1
        (length,) = numbers_of(index.path, _LENGTH, _HEADER.size + last * _LENGTH.itemsize, 1)
        start = _HEADER.size + index.num_sequences * _LENGTH.itemsize + last * _POSITION.itemsize
        (first_byte,) = numbers_of(index.path, _POSITION, start, 1)
        end = first_byte + length * index.dtype.itemsize
    if end != num_bytes:
        raise disagreement(reading, index.path, f"a last sequence that ends at byte {end}", f"{num_bytes}")


def _ends(reading: Reading, index: _Index) -> Iterator[int]:
    """Yields where each sequence ends, in tokens: one begins where the one before ended."""
    width, num_bytes, end = index.dtype.itemsize, reading.path.stat().st_size, 0
    for number, (length, first_byte) in enumerate(zip(index.lengths(), index.first_bytes(), strict=True)):
        if length < 0 or first_byte != end * width or (end + length) * width > num_bytes:
            raise disagreement(
                reading,
                index.path,
                f"sequence {number} of {length} tokens at byte {first_byte}",
                f"one at byte {end * width} that ends at byte {num_bytes} or before",
            )
        end += length
        yield end


def _sequences_of_documents(reading: Reading, index: _Index) -> Iterator[int]:
    last = 0
    for number, (first, last) in enumerate(pairwise(index.edges())):
        if not 0 <= first <= last <= index.num_sequences or (number == 0 and first != 0):
            raise disagreement(
                reading,
                index.path,
                f"document {number} of sequences {first} to {last}",
                f"rising up to {index.num_sequences}",
            )
        yield last - first
    if last != index.num_sequences:
        raise disagreement(reading, index.path, f"documents of {last} sequences", index.num_sequences)
