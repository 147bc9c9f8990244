"""Locks of folders: held by one process, and gone with it however it ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_spec.errors import DatastoreError, MissingPath

_POLL_S = 0.02
CHANGING = "another process is changing the datastore"


@contextmanager
def locked(folder: Path, patience_s: float | None = 0.0, busy: str = CHANGING) -> Iterator[None]:
    """Holds the lock of a folder that exists.

    Args:
        folder: it may be replaced while another process is waited for: then the new one is locked.
        patience_s: how long another process is waited for; None waits until it is done.
        busy: what is said if that was too short.

    Raises:
        MissingPath: no such folder.
        DatastoreError: another process holds it.
    """
    fd = _opened(folder)
    try:
        _lock(fd, folder, patience_s, busy)
        while not _is_current(fd, folder):
            os.close(fd)
            fd = -1
            fd = _opened(folder)
            _lock(fd, folder, patience_s, busy)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def _opened(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingPath("no such datastore", got=folder) from error
    except OSError as error:  # no descriptor left, no permission, a disk that fails: it may well be there
        raise DatastoreError(f"cannot open {folder}", got=error.strerror or error) from error


def _is_current(fd: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.stat(folder), os.fstat(fd))
    except FileNotFoundError:
        return False


def _lock(fd: int, folder: Path, patience_s: float | None, busy: str) -> None:
    if patience_s is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise DatastoreError(busy, got=folder, remedy="try again when it is done") from error
        time.sleep(_POLL_S)
