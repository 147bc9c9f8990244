"""Bytes of a file as a stream, decompressed where its suffix says so, and one kind of error for damage."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from retrieval_spec.datastore.readers.reading import Advance, Reading
from retrieval_spec.errors import InvalidRequest, MissingDependency

_BUFFER_BYTES = 1 << 18
# What a buffer holds is lost with the damage behind it, so that it is small.
_DECOMPRESSED_BYTES = 1 << 13
# What damage looks like, in pyarrow's errors too: lengths that cannot be allocated, types that nobody has.
_DAMAGE = (OSError, EOFError, ValueError, LookupError, NotImplementedError, MemoryError)
CODECS = {".gz": "gzip", ".zst": "zstd"}


class _Metered(io.FileIO):
    """A file that tells how many bytes a buffer in front of it has read."""

    def __init__(self, path: Path, advance: Advance) -> None:
        super().__init__(path)
        self._advance = advance

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as there are bytes, and tells how far."""
        num_bytes = super().readinto(buffer) or 0
        self._advance(num_bytes)
        return num_bytes


@contextmanager
def bytes_of(reading: Reading) -> Iterator[BinaryIO]:
    """Opens a file, decompressed if its suffix says so."""
    path = reading.path
    codec = CODECS.get(path.suffix.lower())
    with readable(path), io.BufferedReader(_Metered(path, reading.advance), _BUFFER_BYTES) as file:
        if codec is None:
            yield file
            return
        pyarrow = require_pyarrow()
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), codec) as stream:
            yield io.BufferedReader(stream, _DECOMPRESSED_BYTES)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what the system or pyarrow say about a damaged file into one kind of error."""
    try:
        yield
    except InvalidRequest:
        raise
    except _DAMAGE as error:
        raise InvalidRequest(
            f"cannot read {path}",
            got=error,
            remedy="check that the file is whole and is what its suffix says",
        ) from error


def require_pyarrow() -> Any:
    """Returns the module.

    Raises:
        MissingDependency: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingDependency(
            "pyarrow is not installed", remedy="pip install 'retrieval-spec[server]'"
        ) from error
    return pyarrow
