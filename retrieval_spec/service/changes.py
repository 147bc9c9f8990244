"""Whether files changed since they were last looked at."""

from __future__ import annotations

import os
from collections.abc import Sequence


class FileChanges:
    """Compares inode, size and time of files: a new file in the place of one is a change too."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths
        self._seen = self._state()

    def seen(self) -> bool:
        """Whether any of them changed since the last call."""
        state = self._state()
        changed, self._seen = state != self._seen, state
        return changed

    def forget(self) -> None:
        """Lets the next call see a change again: what was found could not be used, and may become whole."""
        self._seen = []

    def _state(self) -> list[tuple[int, int, int] | None]:
        return [_state_of(path) for path in self._paths]


def _state_of(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
