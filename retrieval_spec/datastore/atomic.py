"""Publishing a folder so that it is there whole or not at all, whatever happens in between.

A folder is filled under a temporary name beside its place, every file is synced, then it is renamed into
place and the parent folder is synced. Knows folders and files, nothing of what is in them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retrieval_spec.errors import DatastoreError, DatastoreExists, MissingPath

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


class Draft:
    """A folder under a temporary name, owned by one writer; `publish` or `exchange` makes it final."""

    def __init__(self, target: Path, path: Path, dir_fd: int) -> None:
        self.target = target
        self.path = path
        self._dir_fd = dir_fd

    def write_file(self, name: str, write: Callable[[int], None]) -> None:
        """Creates the file `name`, lets `write` fill its descriptor, and syncs it."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(self.path / name, flags, 0o666)
        try:
            write(fd)
            os.fsync(fd)
        finally:
            os.close(fd)

    def publish(self) -> None:
        """Renames the folder into its place, which must be free.

        Raises:
            DatastoreExists: somebody took the place meanwhile.
        """
        os.fsync(self._dir_fd)
        check_free(self.target)
        try:
            os.rename(self.path, self.target)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise _taken(self.target) from error
            raise
        sync_folder(self.target.parent)

    def exchange(self) -> None:
        """Puts the folder in its place; what was there before is removed once that is on disk."""
        os.fsync(self._dir_fd)
        if not os.path.lexists(self.target):
            self.publish()
            return
        old = self.path if _swap(self.path, self.target) else self._move_in()
        try:
            sync_folder(self.target.parent)
        finally:
            _remove(old)

    def _move_in(self) -> Path:
        """Takes the place in two renames and returns where the old folder is now.

        Between them the place is empty; after a crash there, `sweep` puts the old folder back.
        """
        # Else a half-deleted older one may come back, and pass for the old one.
        sync_folder(self.target.parent)
        old = _sibling(self.target, "old")
        os.rename(self.target, old)
        try:
            os.rename(self.path, self.target)
        except BaseException:
            os.rename(old, self.target)
            raise
        return old


@contextmanager
def draft_folder(target: Path) -> Iterator[Draft]:
    """Yields a fresh folder beside `target`; unless it was published, nothing of it remains.

    Raises:
        MissingPath: the parent folder does not exist.
        DatastoreError: the file system refused, for want of space or of permission.
    """
    target = target.absolute()
    with writing(target):
        sweep(target)
        path, dir_fd = _new_folder(target)
        try:
            yield Draft(target, path, dir_fd)
        except BaseException:  # KeyboardInterrupt too: nothing half-written stays
            _remove(path)
            raise
        finally:
            os.close(dir_fd)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns a refusal of the file system into one line about `target`.

    Raises:
        DatastoreError: no space, no permission, a failing disk.
    """
    try:
        yield
    except OSError as error:
        # Since Python 3.12 its traceback would be a cycle with frames that hold what a writer has open.
        raise DatastoreError(
            f"cannot write {target}",
            got=error.strerror or error,
            remedy="free space or choose another place, then build again",
        ) from error.with_traceback(None)


@contextmanager
def draft_file(target: Path, mode: int = 0o666) -> Iterator[IO[bytes]]:
    """Yields a file to fill; it takes the place of `target` once it is on disk, or nothing of it remains.

    Args:
        target: where it goes.
        mode: who may read and write it, as far as the process's own mask lets them.

    Raises:
        DatastoreError: the file system refused, for want of space or of permission.
    """
    target = target.absolute()
    draft = _sibling(target, "tmp")
    with writing(target):
        try:
            with open(draft, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, target)
        finally:
            draft.unlink(missing_ok=True)
        sync_folder(target.parent)


def check_free(target: Path) -> None:
    """Accepts a place where nothing is and whose parent is a folder; long work asks before it begins.

    Raises:
        DatastoreExists: something is there.
        MissingPath: the parent is no folder.
    """
    if os.path.lexists(target):
        raise _taken(target)
    check_parent(target)


def check_parent(target: Path) -> None:
    """Accepts a place whose parent folder exists.

    Raises:
        MissingPath: it does not.
    """
    parent = target.absolute().parent
    if not parent.is_dir():
        raise MissingPath("no such folder", got=parent, remedy="create it first")


def sweep(target: Path) -> None:
    """Removes what crashed writers of `target` left beside it; folders of living writers stay."""
    check_parent(target)
    leftover = re.compile(re.escape(f".{target.name}.") + r"(tmp|old)-[0-9a-f]{16}")
    found = [
        (path, match) for path in sorted(target.parent.iterdir()) if (match := leftover.fullmatch(path.name))
    ]
    if found:
        # A writer may have been killed before it synced its renames. What is deleted now may be what a disk
        # that loses power still calls by the name of the datastore.
        sync_folder(target.parent)
    for path, match in found:
        if match[1] == "old" and not os.path.lexists(target):
            os.rename(path, target)  # the crash came between the two renames of an exchange
        elif match[1] == "old" or not _is_alive(path):
            _remove(path)


def _is_alive(path: Path) -> bool:
    """Returns whether a writer holds the lock on `path`; the lock goes with the writer's process."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or nothing that a writer of ours made
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _new_folder(target: Path) -> tuple[Path, int]:
    while True:
        path = _sibling(target, "tmp")
        os.mkdir(path)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            _remove(path)
            raise
        fcntl.flock(fd, fcntl.LOCK_EX)
        if path.is_dir():
            return path, fd
        os.close(fd)  # another writer swept the folder before it was locked


def _sibling(target: Path, role: str) -> Path:
    return target.with_name(f".{target.name}.{role}-{secrets.token_hex(8)}")


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # leaves a link, and where it leads, alone


def _swap(first: Path, second: Path) -> bool:
    """Exchanges two names in one step; False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    arguments = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    if rename(*arguments) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(first))


def _taken(target: Path) -> DatastoreExists:
    return DatastoreExists(
        "the place of the datastore is taken",
        got=target,
        remedy="choose another --out, or replace it with --replace",
    )
