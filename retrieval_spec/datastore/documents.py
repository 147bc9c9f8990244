"""Documents as token ids, with their ids and origins: what a segment is built from.

An id is made of a document's tokens alone, so equal documents have equal ids in every store.
"""

from __future__ import annotations

import array
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.manifest import SEPARATORS
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.tree import TOKEN, Tokens

_CHUNK_TOKENS = 1 << 20
_CHUNK_DOCUMENTS = 1 << 12
_SHOWN_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_SEPARATOR = SEPARATORS["<i4"]

Column = NDArray[Any]


def document_id(token_ids: NDArray[Any]) -> int:
    """Returns the first 8 bytes of the SHA-256 of a document's ids (int32, little-endian), signed."""
    data = np.ascontiguousarray(token_ids, np.dtype("<i4"))
    return int.from_bytes(hashlib.sha256(data.data).digest()[:8], "little", signed=True)


def shown_id(number: int) -> str:
    """Returns an id as people see it: the first 16 hexadecimal digits of the SHA-256."""
    return number.to_bytes(8, "little", signed=True).hex()


def id_of(shown: str) -> int:
    """Returns the id that people see as these 16 hexadecimal digits.

    Raises:
        InvalidRequest: they are something else.
    """
    if not _SHOWN_ID.fullmatch(shown):
        raise InvalidRequest(
            "no document's id",
            got=shown[:40],
            expected="16 hexadecimal digits",
            remedy="`retrieval-spec inspect DIR --documents` shows them",
        )
    return int.from_bytes(bytes.fromhex(shown), "little", signed=True)


@dataclass(frozen=True, slots=True)
class Documents:
    """A corpus, or a part of one.

    Attributes:
        tokens: uint16[n] or int32[n]  the documents, each ended by the dtype's largest value.
        starts: int64[d]  where each document starts.
        ids: int64[d]  see `document_id`.
        origins: uint32[d]  index into `origin_names`.
        origin_names: the files that documents came from.
    """

    tokens: NDArray[Any]
    starts: NDArray[np.int64]
    ids: NDArray[np.int64]
    origins: NDArray[np.uint32]
    origin_names: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.starts.shape[0])

    def each(self) -> Iterator[tuple[NDArray[Any], str]]:
        """Yields each document's ids, without the separator, and what it came from."""
        for first in range(0, len(self), _CHUNK_DOCUMENTS):
            starts = self.starts[first : first + _CHUNK_DOCUMENTS + 1].tolist()
            edges = starts if first + _CHUNK_DOCUMENTS < len(self) else [*starts, len(self.tokens)]
            origins = self.origins[first : first + _CHUNK_DOCUMENTS].tolist()
            for (start, stop), origin in zip(pairwise(edges), origins, strict=True):
                yield self.tokens[start : stop - 1], self.origin_names[origin]

    def come_from(self, patterns: Collection[str]) -> NDArray[np.bool_]:
        """Returns bool[d], which documents came from files so named; `*` and `?` stand for anything."""
        names = self.origin_names
        numbers = [at for at, name in enumerate(names) if any(fnmatchcase(name, other) for other in patterns)]
        return np.isin(self.origins, np.array(numbers, np.uint32))

    def columns(self) -> dict[str, Column]:
        """Returns what belongs on disk beside the index."""
        names = "\0".join(self.origin_names).encode("utf-8", "replace")
        return {
            "documents": self.starts,
            "ids": self.ids,
            "origins": self.origins,
            "origin_names": np.frombuffer(names, np.uint8),
        }

    @classmethod
    def from_columns(cls, columns: Mapping[str, Column]) -> Documents:
        """Returns the documents of an open segment; of an older one, with ids made now and no origin."""
        tokens, starts = columns["tokens"], columns["documents"]
        if "ids" in columns:
            names = columns["origin_names"].tobytes().decode("utf-8", "replace").split("\0")
            return cls(tokens, starts, columns["ids"], columns["origins"], tuple(names))
        without = cls(
            tokens, starts, np.zeros(len(starts), np.int64), np.zeros(len(starts), np.uint32), ("",)
        )
        ids = np.array([document_id(token_ids) for token_ids, _ in without.each()], np.int64)
        return replace(without, ids=ids)

    def kept(self, is_kept: NDArray[np.bool_]) -> Documents:
        """Returns those documents that are to be kept, in their order."""
        lengths = np.diff(self.starts, append=len(self.tokens))
        tokens = np.ascontiguousarray(self.tokens[np.repeat(is_kept, lengths)])
        starts = _starts_of(lengths[is_kept])
        return Documents(tokens, starts, self.ids[is_kept], self.origins[is_kept], self.origin_names)


def joined(parts: Sequence[Documents]) -> Documents:
    """Returns the documents of all parts, one after the other; origins of one name become one."""
    dtype = np.dtype(np.uint16 if all(part.tokens.dtype == np.uint16 for part in parts) else np.int32)
    numbers: dict[str, int] = {}
    origins = []
    for part in parts:
        mapped = [numbers.setdefault(name, len(numbers)) for name in part.origin_names]
        origins.append(np.array(mapped, np.uint32)[part.origins])
    lengths = [np.diff(part.starts, append=len(part.tokens)) for part in parts]
    return Documents(
        np.concatenate([_as_dtype(part.tokens, dtype) for part in parts]),
        _starts_of(np.concatenate(lengths)),
        np.concatenate([part.ids for part in parts]),
        np.concatenate(origins),
        tuple(numbers),
    )


def _starts_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])[: len(lengths)]


def _as_dtype(tokens: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns tokens in a type that holds them all, the separator being its own."""
    if tokens.dtype == dtype:
        return tokens
    separator, other = SEPARATORS[tokens.dtype.newbyteorder("<").str], SEPARATORS[dtype.newbyteorder("<").str]
    wide = tokens.astype(dtype)
    wide[tokens == separator] = other
    return wide


class DocumentFile:
    """Documents as they come, in a nameless file: how wide their ids must be is known at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._starts = array.array("q")
        self._ids = array.array("q")
        self._origins = array.array("I")
        self._origin_numbers: dict[str, int] = {}
        self._largest_id = 0
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._starts)

    def append(self, token_ids: Tokens, origin: str, number: int) -> None:
        """Adds a document that is not empty, with a separator behind it; `number` is its `document_id`."""
        self._starts.append(self.num_tokens)
        self._ids.append(number)
        self._origins.append(self._origin_numbers.setdefault(origin, len(self._origin_numbers)))
        self.num_tokens += len(token_ids) + 1
        self._largest_id = max(self._largest_id, int(token_ids.max()))
        self._file.write(np.append(token_ids, TOKEN(_SEPARATOR)).tobytes())

    def documents(self) -> Documents:
        """Returns all of them, as uint16 if every id leaves its largest value free, else int32."""
        return Documents(
            self._tokens(),
            np.array(self._starts, np.int64),
            np.array(self._ids, np.int64),
            np.array(self._origins, np.uint32),
            tuple(self._origin_numbers) or ("",),
        )

    def _tokens(self) -> NDArray[Any]:
        self._file.flush()
        self._file.seek(0, os.SEEK_SET)
        if self._largest_id >= SEPARATORS["<u2"]:
            return np.fromfile(self._file, TOKEN, self.num_tokens)
        tokens = np.empty(self.num_tokens, np.uint16)
        filled = 0
        for chunk in self._chunks():
            tokens[filled : filled + len(chunk)] = np.where(chunk == _SEPARATOR, SEPARATORS["<u2"], chunk)
            filled += len(chunk)
        return tokens

    def _chunks(self) -> Iterator[Tokens]:
        left = self.num_tokens
        while left:
            chunk = np.fromfile(self._file, TOKEN, min(_CHUNK_TOKENS, left))
            left -= len(chunk)
            yield chunk
