"""Datastores as folders: opening one read-only in milliseconds, verifying it, writing it whole or not at all.

Knows files and columns; what the columns mean stands in `layout.py` and in the structures.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.atomic import Draft, check_free, check_parent, draft_folder
from retrieval_spec.datastore.checksums import byte_chunks, check_all_sha256, check_sha256
from retrieval_spec.datastore.generation import GENERATION_NAME
from retrieval_spec.datastore.layout import check_columns, check_manifest
from retrieval_spec.datastore.loading import Load, chosen_load, load_column
from retrieval_spec.datastore.manifest import (
    DTYPES,
    MANIFEST_NAME,
    SEPARATORS,
    Facts,
    FileEntry,
    Manifest,
    format_manifest,
    parse_manifest,
)
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.sealed_json import MAX_BYTES, REBUILD
from retrieval_spec.errors import DatastoreCorrupt, DatastoreError, InvalidRequest, MissingPath

_CHUNK_BYTES = 4 << 20
_MAX_TRIES = 8

Column = NDArray[Any]


@dataclass(frozen=True)
class Datastore:
    """An open datastore: one generation of files, read-only, mapped and shared between processes or read.

    What was mapped outlives a rename or a removal of the folder, but nobody may truncate its files in place:
    the system ends a process that reads a page that is gone (`datastore.loading`).
    """

    path: Path
    manifest: Manifest
    columns: Mapping[str, Column]
    manifest_sha256: str

    @property
    def num_bytes(self) -> int:
        """The size of all columns."""
        return sum(column.nbytes for column in self.columns.values())

    def check_sha256(self, column: str) -> None:
        """Compares one column with its checksum, for readers that must trust every byte of it.

        Raises:
            DatastoreCorrupt: a byte was altered.
        """
        for name, entry in self.manifest.files.items():
            if entry.column == column:
                check_sha256(name, entry, self.columns[column])

    def check(self, progress: Progress | None = None) -> None:
        """Reads every byte: compares all checksums, then the structure of the columns.

        Raises:
            DatastoreCorrupt: a byte was altered, or the columns contradict each other.
        """
        progress = progress or NoProgress()
        progress.start("checksums", self.num_bytes, "B")
        check_all_sha256(self.manifest, self.columns, progress.advance)
        check_columns(self.manifest, self.columns, progress)

    def inspect(self) -> dict[str, Any]:
        """Returns what the manifest says as plain values, ready for JSON, with sizes and stray files."""
        manifest = self.manifest
        known = {MANIFEST_NAME, *manifest.files}
        return {
            "path": str(self.path),
            **{name: getattr(manifest, name) for name in _PLAIN_FIELDS},
            "num_bytes": self.num_bytes,
            "bytes_per_token": round(self.num_bytes / max(manifest.num_tokens, 1), 3),
            "tokenizer": {f.name: getattr(manifest.tokenizer, f.name) for f in fields(manifest.tokenizer)},
            "files": {
                name: {
                    "column": e.column,
                    "dtype": e.dtype,
                    "shape": list(e.shape),
                    "bytes": e.num_bytes,
                    "sha256": e.sha256,
                }
                for name, e in manifest.files.items()
            },
            "stray_files": sorted(entry.name for entry in os.scandir(self.path) if entry.name not in known),
        }

    def prefault(self) -> None:
        """Reads one byte a page, so that the first drafts do not wait for the system to map them."""
        for column in self.columns.values():
            column.view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)


def open_datastore(path: str | Path, load: Load = "auto") -> Datastore:
    """Opens a datastore: checks the manifest and every file's size, maps the files, reads no column.

    Changed bytes inside a column are found by `verify_datastore`, which reads everything.

    Raises:
        MissingPath: no such folder.
        DatastoreCorrupt: a file is missing, is no regular file, or has another size than the manifest says.
        DatastoreVersion: a format or a kind that this version does not read.
    """
    folder = Path(path)
    for _ in range(_MAX_TRIES):
        with _folder_fd(folder) as dir_fd:
            try:
                manifest, sha256 = _read_manifest(dir_fd)
                return Datastore(folder, manifest, _load_columns(dir_fd, manifest, load), sha256)
            except DatastoreCorrupt:
                if _is_current(folder, dir_fd):
                    raise
    raise DatastoreError("the datastore was replaced again and again while it was opened", got=folder)


def verify_datastore(path: str | Path, progress: Progress | None = None) -> Manifest:
    """Reads every byte: compares all checksums, then the structure of the columns; returns the manifest.

    Raises:
        MissingPath: no such folder.
        DatastoreCorrupt: a byte was altered, or the columns contradict each other.
        DatastoreVersion: a format or a kind that this version does not read.
    """
    store = open_datastore(path)
    store.check(progress)
    return store.manifest


def inspect_datastore(path: str | Path) -> dict[str, Any]:
    """Returns what the manifest says as plain values, ready for JSON, with sizes and stray files."""
    return open_datastore(path).inspect()


_PLAIN_FIELDS = (
    "name",
    "kind",
    "format_version",
    "created_by",
    "num_tokens",
    "num_documents",
    "vocab_size",
    "token_dtype",
    "separator",
    "depth_tokens",
    "model_fingerprint",
    "pruned_ngram_tokens",
)


def write_datastore(
    path: str | Path, facts: Facts, columns: Mapping[str, Column], progress: Progress | None = None
) -> Manifest:
    """Writes a datastore to a free place; on any error, a crash included, nothing is there.

    Args:
        path: where the folder shall be; its parent exists.
        facts: what the columns do not say.
        columns: arrays of a type in `manifest.DTYPES` by name; see `layout.py` for each kind.
        progress: told the bytes written.

    Raises:
        DatastoreExists: the place is taken.
        MissingPath: the parent folder does not exist.
        InvalidRequest: the columns are not what the kind asks for.
        DatastoreError: the file system refused.
    """
    check_free(Path(path))
    with draft_folder(Path(path)) as draft:
        manifest = _fill(draft, facts, columns, progress or NoProgress())
        draft.publish()
    return manifest


def replace_datastore(
    path: str | Path, facts: Facts, columns: Mapping[str, Column], progress: Progress | None = None
) -> Manifest:
    """Writes a datastore in the place of another one, in one step; who has the old one open keeps it.

    Raises:
        MissingPath: the parent folder does not exist.
        InvalidRequest: the columns are not what the kind asks for.
        DatastoreError: what stands there is no datastore, or the file system refused.
    """
    check_replaceable(Path(path))
    with draft_folder(Path(path)) as draft:
        manifest = _fill(draft, facts, columns, progress or NoProgress())
        draft.exchange()
    return manifest


def check_replaceable(path: Path) -> None:
    """Accepts a place where nothing is or a datastore: a mistyped path must not cost the user's files.

    Raises:
        MissingPath: the parent is no folder.
        DatastoreError: something else is there.
    """
    check_parent(path)
    if os.path.lexists(path) and (path.is_symlink() or not _is_datastore(path)):
        raise DatastoreError("will not replace what is no datastore", got=path, remedy="choose another --out")


def _is_datastore(path: Path) -> bool:
    return (path / MANIFEST_NAME).is_file() or (path / GENERATION_NAME).is_file()


@contextmanager
def _folder_fd(folder: Path) -> Iterator[int]:
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingPath(
            "no such datastore", got=folder, remedy="build it with `retrieval-spec build`"
        ) from error
    except (OSError, ValueError) as error:
        raise DatastoreCorrupt(f"cannot open {folder}", got=error, expected="a folder") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _is_current(folder: Path, dir_fd: int) -> bool:
    """Returns whether the path still leads to the folder that was opened: a new generation may be there."""
    try:
        now = os.stat(folder)
    except FileNotFoundError:
        return False
    return os.path.samestat(now, os.fstat(dir_fd))


@contextmanager
def _regular_file(dir_fd: int, name: str) -> Iterator[int]:
    """Opens a regular file of the folder: no link is followed, no pipe is waited for."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=dir_fd)
    except OSError as error:
        got = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise DatastoreCorrupt(
            f"cannot open {name}", got=got, expected="a regular file", remedy=REBUILD
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise DatastoreCorrupt(f"{name} is no regular file", expected="a regular file", remedy=REBUILD)
        yield fd
    finally:
        os.close(fd)


def _read_manifest(dir_fd: int) -> tuple[Manifest, str]:
    with _regular_file(dir_fd, MANIFEST_NAME) as fd, open(fd, "rb", closefd=False) as file:
        data = file.read(MAX_BYTES + 1)
    manifest = parse_manifest(data)
    check_manifest(manifest)
    return manifest, hashlib.sha256(data).hexdigest()


def _load_columns(dir_fd: int, manifest: Manifest, load: Load) -> dict[str, Column]:
    load = chosen_load(load, dir_fd)
    columns = {}
    for name, entry in manifest.files.items():
        with _regular_file(dir_fd, name) as fd:
            columns[entry.column] = load_column(fd, name, entry, load)
    return columns


def _fill(draft: Draft, facts: Facts, columns: Mapping[str, Column], progress: Progress) -> Manifest:
    """Writes every column and, last, the manifest that describes them."""
    stored = {name: _as_stored(name, column) for name, column in columns.items()}
    files = {f"{name}.bin": _describe_column(name, column) for name, column in stored.items()}
    _check_writable(_describe(facts, files))
    progress.start("writing", sum(column.nbytes for column in stored.values()), "B")
    for name, column in stored.items():
        sha256 = _write_column(draft, f"{name}.bin", column, progress)
        files[f"{name}.bin"] = replace(files[f"{name}.bin"], sha256=sha256)
    manifest = _describe(facts, files)
    data = memoryview(format_manifest(manifest))
    draft.write_file(MANIFEST_NAME, lambda fd: _write_all(fd, data))
    return manifest


def _as_stored(name: str, column: Column) -> Column:
    """Returns the column as it lies on disk: contiguous and little-endian."""
    array = np.ascontiguousarray(column)
    stored = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if stored.ndim != 1 or stored.dtype.str not in DTYPES:
        got = f"{stored.dtype}{list(stored.shape)}"
        raise InvalidRequest(
            f"column {name!r} cannot be stored", got=got, expected=f"a vector of {', '.join(DTYPES)}"
        )
    return stored


def _describe_column(name: str, column: Column) -> FileEntry:
    return FileEntry(name, column.dtype.str, column.shape, column.nbytes, "0" * 64)


def _describe(facts: Facts, files: Mapping[str, FileEntry]) -> Manifest:
    entries = {entry.column: entry for entry in files.values()}
    if "tokens" not in entries or "documents" not in entries:
        raise InvalidRequest("a datastore needs tokens and documents", got=", ".join(entries) or "no column")
    token_dtype = entries["tokens"].dtype
    return Manifest(
        **{field.name: getattr(facts, field.name) for field in fields(Facts)},
        num_tokens=entries["tokens"].shape[0],
        num_documents=entries["documents"].shape[0],
        token_dtype=token_dtype,
        separator=SEPARATORS.get(token_dtype, 0),
        files=files,
    )


def _check_writable(manifest: Manifest) -> None:
    """Refuses what this version could not open again, before anything is written."""
    try:
        check_manifest(parse_manifest(format_manifest(manifest)))
    except DatastoreError as error:
        raise InvalidRequest("this cannot be written as a datastore", got=error) from error


def _write_column(draft: Draft, name: str, column: Column, progress: Progress) -> str:
    digest = hashlib.sha256()

    def write(fd: int) -> None:
        for chunk in byte_chunks(column, _CHUNK_BYTES):
            digest.update(chunk)
            _write_all(fd, chunk)
            progress.advance(chunk.nbytes)

    draft.write_file(name, write)
    return digest.hexdigest()


def _write_all(fd: int, data: memoryview) -> None:
    while data.nbytes:
        data = data[os.write(fd, data) :]  # the system may take less than it was given
