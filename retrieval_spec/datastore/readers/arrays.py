"""Token ids that another tool wrote: datatrove and infini-gram files, read in parts.

Sizes are compared before anything is read; a file is never mapped, so one that shrinks meanwhile is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.datastore.readers.streams import readable
from retrieval_spec.errors import InvalidRequest

_PART_ITEMS = 1 << 20
_U64 = np.dtype("<u8")
_WIDTHS: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}


class TokenArray:
    """The ids of a file from `start_byte` on, read in parts, each checked and told to the progress."""

    def __init__(
        self,
        reading: Reading,
        file: BinaryIO,
        dtype: np.dtype[Any],
        start_byte: int = 0,
        separator: int | None = None,
    ) -> None:
        self._reading = reading
        self._file = file
        self._dtype = dtype
        self._start_byte = start_byte
        self._separator = separator

    def document(self, number: int, start: int, stop: int) -> Iterator[Content]:
        """Yields the ids from `start` to `stop`, document `number` of the file, in parts of bounded size."""
        if start == stop:
            self._reading.skipped.num_empty_rows += 1
        for first in range(start, stop, _PART_ITEMS):
            values = self._read(first, min(_PART_ITEMS, stop - first))
            where = f"{self._reading.path}: document {number}"
            content = self._reading.attempt(partial(self._checked, values, where))
            if content is not None:
                yield content

    def _checked(self, values: NDArray[Any], where: str) -> Content:
        if self._separator is not None and (values == self._separator).any():
            raise InvalidRequest(f"{where}: a separator inside", expected="an offset for each document")
        return self._reading.tokens(values, where)

    def _read(self, start: int, count: int) -> NDArray[Any]:
        self._file.seek(self._start_byte + start * self._dtype.itemsize)
        values = np.fromfile(self._file, self._dtype, count)
        if len(values) < count:
            raise InvalidRequest(f"{self._reading.path} became shorter while it was read")
        self._reading.advance(values.nbytes)
        return values


def numbers_of(path: Path, dtype: np.dtype[Any], start_byte: int, count: int) -> Iterator[int]:
    """Yields `count` numbers of an index, read in parts."""
    with path.open("rb") as file:
        file.seek(start_byte)
        while count > 0:
            part = np.fromfile(file, dtype, min(count, _PART_ITEMS))
            if not len(part):
                raise InvalidRequest(f"{path} became shorter while it was read")
            yield from part.tolist()
            count -= len(part)


def index_beside(reading: Reading, name: str) -> Path:
    """Returns the file that says where the documents of the reading's file lie.

    Raises:
        InvalidRequest: it is not there.
    """
    index = reading.path.with_name(name)
    if not index.is_file():
        raise InvalidRequest(f"cannot read {reading.path}", got=f"no {name} beside it", expected="both files")
    return index


def disagreement(reading: Reading, index: Path, got: object, expected: object) -> InvalidRequest:
    """Returns the error for an index that does not fit the file it describes."""
    return InvalidRequest(
        f"cannot read {reading.path}: {index.name} does not fit it",
        got=got,
        expected=expected,
        remedy="check that both files are whole and belong together",
    )


def read_datatrove(reading: Reading) -> Iterator[Content]:
    """Yields the documents of a `.ds`; `.ds.index` says, as uint64, where each of them ends."""
    with readable(reading.path):
        index = index_beside(reading, f"{reading.path.name}.index")
        num_bytes, num_documents = reading.path.stat().st_size, _num_offsets(reading, index)
        total = next(numbers_of(index, _U64, (num_documents - 1) * 8, 1)) if num_documents else 0
        width = next((width for width in _WIDTHS if total * width == num_bytes), None)
        if width is None:
            raise disagreement(reading, index, f"{total} tokens in {num_bytes} bytes", "2 or 4 bytes a token")
        ends = chain([0], numbers_of(index, _U64, 0, num_documents))
        with reading.path.open("rb", buffering=0) as file:
            tokens = TokenArray(reading, file, _WIDTHS[width])
            for number, (start, stop) in enumerate(pairwise(ends)):
                if not start <= stop <= total:
                    raise disagreement(
                        reading, index, f"document {number} from {start} to {stop}", "rising ends"
                    )
                yield from tokens.document(number, start, stop)


def _num_offsets(reading: Reading, index: Path) -> int:
    num_bytes = index.stat().st_size
    if num_bytes % _U64.itemsize:
        raise disagreement(reading, index, f"{num_bytes} bytes", "8 bytes a document")
    return num_bytes // _U64.itemsize


def read_infini_gram(reading: Reading) -> Iterator[Content]:
    """Yields the documents of a `tokenized.N`; `offset.N` says, as uint64, at which byte each begins.

    Each begins with a separator, whose bits are all set; that tells how wide the ids are.
    """
    with readable(reading.path):
        index = index_beside(reading, f"offset{reading.path.suffix}")
        num_bytes, num_documents = reading.path.stat().st_size, _num_offsets(reading, index)
        offsets = chain(numbers_of(index, _U64, 0, num_documents), [num_bytes])
        with reading.path.open("rb", buffering=0) as file:
            dtype = _WIDTHS[_separator_bytes(reading, index, file, num_documents)]
            tokens = TokenArray(reading, file, dtype, separator=np.iinfo(dtype).max)
            for number, (start, stop) in enumerate(pairwise(offsets)):
                _check_document(reading, index, (number, start, stop), dtype, file)
                reading.advance(dtype.itemsize)
                yield from tokens.document(number, start // dtype.itemsize + 1, stop // dtype.itemsize)


def _separator_bytes(reading: Reading, index: Path, file: BinaryIO, num_documents: int) -> int:
    """Returns how wide ids are: 4 bytes if the first separator is, unless the first document has 2 bytes."""
    if (num_documents > 0) != (reading.path.stat().st_size > 0):
        raise disagreement(reading, index, f"{num_documents} documents", "some exactly if there are tokens")
    second = list(numbers_of(index, _U64, 8, 1)) if num_documents > 1 else [reading.path.stat().st_size]
    head = file.read(4)
    return 4 if head == b"\xff" * 4 and second[0] != 2 else 2


def _check_document(
    reading: Reading, index: Path, document: tuple[int, int, int], dtype: np.dtype[Any], file: BinaryIO
) -> None:
    number, start, stop = document
    width, num_bytes = dtype.itemsize, reading.path.stat().st_size
    is_first_at_start = number > 0 or start == 0
    if start % width or stop % width or not start + width <= stop <= num_bytes or not is_first_at_start:
        raise disagreement(
            reading, index, f"document {number} from byte {start} to {stop}", f"rising multiples of {width}"
        )
    file.seek(start)
    if file.read(width) != b"\xff" * width:
        raise disagreement(reading, index, f"no separator at byte {start}, document {number}", "0xff bytes")
