"""How a column comes into memory: mapped from its file, or read into memory of the process's own.

Processes that map a file share its pages, and opening it takes no time. But whoever may write to the file
can truncate it, and the system ends a process that reads a page that is gone: files of a folder that others
may change are better read.
"""

from __future__ import annotations

import mmap
import os
import stat
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.manifest import DTYPES, FileEntry
from retrieval_spec.datastore.sealed_json import REBUILD
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest

Load = Literal["auto", "mmap", "memory"]
"""Mapped, read, or mapped unless others may change the folder."""
LOADS: tuple[Load, ...] = ("auto", "mmap", "memory")

_OTHERS_MAY_WRITE = stat.S_IWOTH
_ROOT = 0


def chosen_load(load: Load, dir_fd: int) -> Load:
    """Returns how the columns of an open folder are to be loaded: `mmap` or `memory`.

    Raises:
        InvalidRequest: there is no such way.
    """
    if load not in LOADS:
        raise InvalidRequest("unknown way to load a datastore", got=load, expected=" or ".join(LOADS))
    if load != "auto":
        return load
    status = os.fstat(dir_fd)
    is_ours = status.st_uid in (_ROOT, os.geteuid()) and not status.st_mode & _OTHERS_MAY_WRITE
    return "mmap" if is_ours else "memory"


def load_column(fd: int, name: str, entry: FileEntry, load: Load) -> NDArray[Any]:
    """Returns the column of a regular file, read-only, after its size was compared with what it should be.

    Raises:
        DatastoreCorrupt: the file has another size, or cannot be read.
    """
    num_bytes = os.fstat(fd).st_size
    if num_bytes != entry.num_bytes:
        raise _another_size(name, num_bytes, entry)
    if num_bytes == 0:
        column: NDArray[Any] = np.zeros(entry.shape, DTYPES[entry.dtype])
    else:
        data = _mapped(fd, name, num_bytes) if load == "mmap" else _read(fd, name, entry)
        column = np.frombuffer(data, DTYPES[entry.dtype]).reshape(entry.shape)
    column.flags.writeable = False
    return column


def _mapped(fd: int, name: str, num_bytes: int) -> mmap.mmap:
    try:
        mapping = mmap.mmap(fd, num_bytes, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise DatastoreCorrupt(f"cannot map {name}", got=error, expected=f"{num_bytes} bytes") from error
    # Only starts the reading ahead: mapping every page here would take longer the larger the file is.
    mapping.madvise(mmap.MADV_WILLNEED)
    return mapping


def _read(fd: int, name: str, entry: FileEntry) -> NDArray[np.uint8]:
    data = np.empty(entry.num_bytes, np.uint8)
    view, filled = data.data, 0
    try:
        while filled < entry.num_bytes:
            count = os.preadv(fd, [view[filled : filled + (1 << 30)]], filled)
            if not count:
                raise _another_size(name, filled, entry)
            filled += count
    except OSError as error:
        raise DatastoreCorrupt(
            f"cannot read {name}", got=error, expected=f"{entry.num_bytes} bytes"
        ) from error
    return data


def _another_size(name: str, num_bytes: int, entry: FileEntry) -> DatastoreCorrupt:
    return DatastoreCorrupt(
        f"{name} has another size",
        got=f"{num_bytes} bytes",
        expected=f"{entry.num_bytes} bytes",
        remedy=REBUILD,
    )
