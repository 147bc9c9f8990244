"""Finished parts of long work, kept in a folder beside its result: a build that was killed goes on.

A part lies in one file whose name carries its SHA-256, so it is there whole or not at all, and one that
was altered is made again. Knows arrays and files, nothing of what they mean.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.atomic import check_parent, writing
from retrieval_spec.errors import DatastoreError

_PLAN = "plan.json"


class Shards:
    """The parts of one build; owned by one process at a time. `close` it, or `remove` it when all is done.

    Args:
        target: where the result goes; the folder is called `.NAME.work` and stands beside it.
        plan: what the parts follow from; those of another plan are deleted.
        dtype: of the parts' numbers.
        width: numbers in a row.

    Raises:
        MissingPath: the parent folder does not exist.
        DatastoreError: another process builds there, or the file system refused.
    """

    def __init__(self, target: Path, plan: Mapping[str, object], dtype: Any, width: int) -> None:
        check_parent(target)
        self.folder = target.with_name(f".{target.name}.work")
        self._target = target
        self._dtype = np.dtype(dtype)
        self._width = width
        with writing(target):
            self.folder.mkdir(exist_ok=True)
            self._lock_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._lock()
            self._adopt(json.dumps(plan, sort_keys=True))

    def load(self, number: int, num_rows: int) -> NDArray[Any] | None:
        """Returns a part that was finished and is unaltered, mapped read-only; else None."""
        for path in sorted(self.folder.glob(f"{number:06d}-*.part")):
            if path.stat().st_size == num_rows * self._width * self._dtype.itemsize and num_rows:
                part: NDArray[Any] = np.memmap(path, self._dtype, "r", shape=(num_rows, self._width))
                if path == self._path(number, part):
                    return part
            path.unlink()
        return None

    def save(self, number: int, part: NDArray[Any]) -> None:
        """Puts a finished part on disk, synced."""
        stored = np.ascontiguousarray(part, self._dtype)
        draft = self.folder / f"{number:06d}.tmp"
        with writing(self._target):
            with draft.open("wb") as file:
                file.write(stored.data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._path(number, stored))

    def close(self) -> None:
        """Leaves the parts for the next run."""
        os.close(self._lock_fd)

    def remove(self) -> None:
        """Deletes the parts: the work is done."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def _path(self, number: int, part: NDArray[Any]) -> Path:
        return self.folder / f"{number:06d}-{hashlib.sha256(part.data).hexdigest()}.part"

    def _lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock_fd)
            raise DatastoreError(
                "another process builds the same datastore", got=self._target, remedy="wait for it"
            ) from error

    def _adopt(self, plan: str) -> None:
        path = self.folder / _PLAN
        if path.is_file() and path.read_text(encoding="utf-8", errors="replace") == plan:
            return
        for leftover in self.folder.iterdir():
            leftover.unlink()
        path.write_text(plan, encoding="utf-8")
