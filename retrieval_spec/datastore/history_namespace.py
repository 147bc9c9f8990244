"""What is kept on disk of one namespace: a folder of segments, the last of which is appended to.

Not thread-safe: whoever shares it holds a lock. Knows no other namespaces, and no limits but its own.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from retrieval_spec.datastore.atomic import draft_file
from retrieval_spec.datastore.history_segment import (
    MAX_HEADER_BYTES,
    MAX_RECORD_BYTES,
    Content,
    Text,
    header_bytes,
    read_header,
    read_segment,
)

SEGMENT_BYTES = 256 << 10
"""A segment that is as large gets no more records."""
MAX_SEGMENTS = 16
"""Of one namespace: as much text as sources remember of it."""
MAX_SEGMENT_BYTES = SEGMENT_BYTES + MAX_HEADER_BYTES + MAX_RECORD_BYTES

LEFTOVER = re.compile(r"\..*\.(?:tmp|gone)-[0-9a-f]{16}", re.ASCII)
"""What a writer that crashed leaves behind."""
_SEGMENT_NAME = re.compile(r"([0-9a-f]{8})-([0-9a-f]{10})", re.ASCII)
_LAST_NUMBER = 0xFFFFFFFF
_LAST_SECOND = 0xFFFFFFFFFF


@dataclass(slots=True)
class StoredSegment:
    """One file: its place in the order, when it was begun, and its size."""

    number: int
    created_s: int
    num_bytes: int

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.number:08x}-{self.created_s:010x}"


@dataclass(frozen=True, slots=True)
class Fullness:
    """When a segment gets no more records.

    Attributes:
        max_bytes: as soon as it is as large.
        max_age_s: when it was begun longer ago; None: at any age.
    """

    max_bytes: int
    max_age_s: float | None

    def is_reached(self, segment: StoredSegment, now_s: int) -> bool:
        """Tells whether a segment is full."""
        is_old = self.max_age_s is not None and now_s - segment.created_s > self.max_age_s
        return is_old or segment.num_bytes >= self.max_bytes


class StoredNamespace:
    """The segments of one namespace, oldest first.

    Attributes:
        segments: never empty but before the first `append`.
        num_damaged: segments in which something could not be read.
    """

    __slots__ = ("_is_checked", "_takes_more", "folder", "namespace", "num_damaged", "segments", "vocab_size")

    def __init__(
        self, namespace: str, folder: Path, vocab_size: int, segments: list[StoredSegment] | None = None
    ) -> None:
        self.namespace = namespace
        self.folder = folder
        self.vocab_size = vocab_size
        self.segments = segments or []
        self.num_damaged = 0
        self._takes_more = False  # whether the last segment is known to be whole
        self._is_checked = not self.segments

    @classmethod
    def find(cls, folder: Path, vocab_size: int) -> StoredNamespace | None:
        """Returns what a folder holds, by names, sizes and one header; None if it does not say whose it is.

        What a crashed writer left is removed.
        """
        segments = []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            match = _SEGMENT_NAME.fullmatch(entry.name)
            if LEFTOVER.fullmatch(entry.name):
                discard(Path(entry.path))
            elif match is not None and entry.is_file(follow_symlinks=False):
                size = entry.stat(follow_symlinks=False).st_size
                segments.append(StoredSegment(int(match[1], 16), int(match[2], 16), size))
        for segment in segments:
            header = read_header(read_start(folder / segment.name, MAX_HEADER_BYTES) or b"")
            if header is not None:
                return cls(header[0], folder, vocab_size, segments)
        return None

    @property
    def num_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.num_bytes for segment in self.segments)

    def texts(self) -> Iterator[Text]:
        """Yields what can be read, oldest first."""
        for segment in self.segments:
            content = self._content(segment)
            if content is None or content.num_valid_bytes < segment.num_bytes:
                self.num_damaged += 1
            if content is not None:
                yield from content.texts

    def append(self, records: Sequence[bytes], now_s: int, fullness: Fullness) -> None:
        """Writes records to the disk, in new segments where the last is full; the oldest may have to go.

        Raises:
            OSError: the file system refused; what was written before stays.
        """
        self._cut_torn_end()
        at = 0
        while at < len(records):
            if not self._takes_more or fullness.is_reached(self.segments[-1], now_s):
                self._begin(records[at], now_s)
                at += 1
            else:
                at = self._extend(records, at, fullness.max_bytes)

    def delete_oldest(self) -> None:
        """Deletes the first segment."""
        (self.folder / self.segments[0].name).unlink(missing_ok=True)
        del self.segments[0]

    def _content(self, segment: StoredSegment) -> Content | None:
        data = read_start(self.folder / segment.name, MAX_SEGMENT_BYTES)
        content = None if data is None else read_segment(data, self.vocab_size)
        return content if content is not None and content.namespace == self.namespace else None

    def _cut_torn_end(self) -> None:
        """Cuts off what the last writer could not finish; no reader would go beyond it."""
        if self._is_checked:
            return
        last = self.segments[-1]
        content = self._content(last)
        if content is not None:
            if content.num_valid_bytes < last.num_bytes:
                os.truncate(self.folder / last.name, content.num_valid_bytes)
                last.num_bytes = content.num_valid_bytes
            self._takes_more = True
        self._is_checked = True

    def _begin(self, record: bytes, now_s: int) -> None:
        number = self.segments[-1].number + 1 if self.segments else 0
        data = header_bytes(self.namespace) + record
        segment = StoredSegment(min(number, _LAST_NUMBER), min(max(now_s, 0), _LAST_SECOND), len(data))
        with draft_file(self.folder / segment.name, 0o600) as file:
            file.write(data)
        self.segments.append(segment)
        self._takes_more = True
        if len(self.segments) > MAX_SEGMENTS:
            self.delete_oldest()

    def _extend(self, records: Sequence[bytes], at: int, max_bytes: int) -> int:
        """Appends records to the last segment until it is full; returns which comes next."""
        last = self.segments[-1]
        stop, size = at, last.num_bytes
        while stop < len(records) and size < max_bytes:
            size += len(records[stop])
            stop += 1
        # Unless all goes well the next record begins a segment: nothing stands behind what is torn.
        self._takes_more = False
        append_at(self.folder / last.name, b"".join(records[at:stop]), last.num_bytes)
        last.num_bytes, self._takes_more = size, True
        return stop


def read_start(path: Path, max_bytes: int) -> bytes | None:
    """Returns the first bytes of a regular file; None if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        return file.read(min(max_bytes, status.st_size)) if stat.S_ISREG(status.st_mode) else None


def append_at(path: Path, data: bytes, offset: int) -> None:
    """Writes behind the first `offset` bytes and brings it to the disk, or leaves the file as it was."""
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        written = 0
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)
        os.fsync(fd)
    except BaseException:
        with suppress(OSError):
            os.ftruncate(fd, offset)
        raise
    finally:
        os.close(fd)


def discard(path: Path) -> None:
    """Removes a file or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
