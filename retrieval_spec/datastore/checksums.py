"""Checksums of columns: every byte against the manifest, on as many threads as there are cores."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.background import Background
from retrieval_spec.datastore.manifest import FileEntry, Manifest
from retrieval_spec.datastore.sealed_json import REBUILD
from retrieval_spec.errors import DatastoreCorrupt

_HASHED_BYTES = 32 << 20
"""Large: after every chunk the thread waits its turn for the interpreter, while others import."""

Column = NDArray[Any]


def check_all_sha256(
    manifest: Manifest, columns: Mapping[str, Column], advance: Callable[[int], None]
) -> None:
    """Compares every column with its checksum; `advance` is told the bytes, by one thread at a time.

    Raises:
        DatastoreCorrupt: a byte was altered.
    """
    advance_alone = _from_any_thread(advance)
    pending = iter(list(manifest.files.items()))

    def check() -> None:
        for name, entry in pending:  # each thread takes the next file
            check_sha256(name, entry, columns[entry.column], advance_alone)

    num_threads = min(os.cpu_count() or 1, len(manifest.files))
    for thread in [Background(check) for _ in range(num_threads)]:
        thread.result()


def check_sha256(
    name: str, entry: FileEntry, column: Column, advance: Callable[[int], None] = lambda num_bytes: None
) -> None:
    """Compares one column, which lies in the file `name`, with its checksum.

    Raises:
        DatastoreCorrupt: a byte was altered.
    """
    digest = hashlib.sha256()
    for chunk in byte_chunks(column, _HASHED_BYTES):
        digest.update(chunk)
        advance(chunk.nbytes)
    if digest.hexdigest() != entry.sha256:
        raise DatastoreCorrupt(
            f"{name} was altered",
            got=f"SHA-256 {digest.hexdigest()}",
            expected=entry.sha256,
            remedy=REBUILD,
        )


def byte_chunks(column: Column, chunk_bytes: int) -> Iterator[memoryview]:
    """Yields the bytes of a column in pieces of at most `chunk_bytes`."""
    octets = column.view(np.uint8)
    for start in range(0, len(octets), chunk_bytes):
        yield octets[start : start + chunk_bytes].data


def _from_any_thread(advance: Callable[[int], None]) -> Callable[[int], None]:
    lock = threading.Lock()

    def advance_alone(amount: int) -> None:
        with lock:
            advance(amount)

    return advance_alone
