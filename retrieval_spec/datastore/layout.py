"""What the columns of each kind of datastore are, and whether they agree with the manifest and each other.

Works on arrays in chunks, so that memory stays small whatever the size; knows no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.manifest import CORPUS_KIND, DENSE_KIND, DOCUMENT_KINDS, FileEntry, Manifest
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.sealed_json import REBUILD
from retrieval_spec.errors import DatastoreCorrupt, DatastoreVersion

Column = NDArray[Any]

KINDS: dict[str, dict[str, tuple[str, ...]]] = {
    CORPUS_KIND: {
        "tokens": ("<u2", "<i4"),
        "positions": ("<u4",),
        "buckets": ("<u4",),
        "documents": ("<i8",),
    },
    DENSE_KIND: {
        "tokens": ("<u2", "<i4"),
        "positions": ("<u4",),
        "documents": ("<i8",),
        "index": ("|u1",),
        "mean": ("<f4",),
        "scale": ("<f4",),
        "components": ("<f4",),
    },
    "adjacency_rows": {
        "tokens": ("<u2", "<i4"),
        "documents": ("<i8",),
        "orders": ("<u2",),
        "places": ("<u2",),
        "offered": ("<i8",),
        "right": ("<i8",),
    },
}
"""Kind -> column -> the types it may have; every column is a vector. Other columns are left alone."""

DOCUMENT_COLUMNS: dict[str, tuple[str, ...]] = {
    "ids": ("<i8",),
    "origins": ("<u4",),
    "origin_names": ("|u1",),
}
"""What a segment of documents may know of them beside where they are: all of it or none."""

ROW_IDS = 8
"""Ids that a document of adjacency rows has behind its key tokens at most."""
ROW_LEVELS = 16
ROW_CLASSES = 3 * (ROW_IDS + ROW_LEVELS - 1)
"""By two tokens, by one, by one behind those by two: ids without a level by their rank, others by it."""
_MAX_OFFERED = 1 << 48

_CHUNK = 1 << 20


def check_manifest(manifest: Manifest) -> None:
    """Accepts a manifest whose files are the columns that its kind needs, with matching lengths.

    Raises:
        DatastoreVersion: a kind that this version does not know.
        DatastoreCorrupt: a column is missing or has another type or length.
    """
    if manifest.kind not in KINDS:
        raise DatastoreVersion(
            "the datastore is of a kind that this version does not read",
            got=manifest.kind,
            expected=" or ".join(KINDS),
            remedy="upgrade retrieval-spec",
        )
    entries = {entry.column: entry for entry in manifest.files.values()}
    for column, dtypes in KINDS[manifest.kind].items():
        if column not in entries:
            raise _corrupt("the datastore lacks a column", ", ".join(sorted(entries)) or "none", column)
        entry = entries[column]
        allowed = (manifest.token_dtype,) if column == "tokens" else dtypes
        if entry.dtype not in allowed or len(entry.shape) != 1:
            got = f"{entry.dtype}{list(entry.shape)}"
            raise _corrupt(
                f"column {column!r} is of another type", got, f"a vector of {' or '.join(allowed)}"
            )
    found = {name: entries[name].shape[0] for name in KINDS[manifest.kind]}
    for column, length in _lengths(manifest, found).items():
        if found[column] != length:
            raise _corrupt(f"column {column!r} has another length", found[column], length)
    if manifest.kind in DOCUMENT_KINDS:
        _check_document_entries(manifest, entries)
    if manifest.kind == DENSE_KIND and not manifest.model_fingerprint:
        raise _corrupt("the datastore does not say which model its states are of", None, "model_fingerprint")


def _check_document_entries(manifest: Manifest, entries: Mapping[str, FileEntry]) -> None:
    present = [name for name in DOCUMENT_COLUMNS if name in entries]
    if present and len(present) < len(DOCUMENT_COLUMNS):
        raise _corrupt("some columns about documents are missing", present, list(DOCUMENT_COLUMNS))
    for name in present:
        allowed, entry = DOCUMENT_COLUMNS[name], entries[name]
        if entry.dtype not in allowed:
            raise _corrupt(f"column {name!r} is of another type", entry.dtype, " or ".join(allowed))
        if name != "origin_names" and entry.shape[0] != manifest.num_documents:
            raise _corrupt(f"column {name!r} has another length", entry.shape[0], manifest.num_documents)


def _lengths(manifest: Manifest, found: Mapping[str, int]) -> dict[str, int]:
    """Returns the length of every column whose length follows from the manifest or another column."""
    corpus = {"tokens": manifest.num_tokens, "documents": manifest.num_documents}
    return {**corpus, **_LENGTHS[manifest.kind](manifest, found)}


def _context_array_lengths(manifest: Manifest, found: Mapping[str, int]) -> dict[str, int]:
    most = manifest.num_tokens - manifest.num_documents  # a separator is no context
    return {"positions": min(found["positions"], most) if manifest.pruned_ngram_tokens else most}


def _dense_lengths(manifest: Manifest, found: Mapping[str, int]) -> dict[str, int]:
    hidden_size = max(found["mean"], 1)
    dimensions = max(found["components"] // hidden_size, 1)
    return {"mean": hidden_size, "scale": hidden_size, "components": hidden_size * dimensions}


def _row_lengths(manifest: Manifest, found: Mapping[str, int]) -> dict[str, int]:
    counts = {"offered": ROW_CLASSES, "right": ROW_CLASSES}
    return {"orders": manifest.num_documents, "places": manifest.num_tokens, **counts}


_LENGTHS: dict[str, Callable[[Manifest, Mapping[str, int]], dict[str, int]]] = {
    CORPUS_KIND: _context_array_lengths,
    DENSE_KIND: _dense_lengths,
    "adjacency_rows": _row_lengths,
}


def check_columns(manifest: Manifest, columns: Mapping[str, Column], progress: Progress) -> None:
    """Accepts columns that no query can be led astray by; `manifest` has passed `check_manifest`.

    Raises:
        DatastoreCorrupt: the first contradiction found.
    """
    checked = [name for name in KINDS[manifest.kind] if name != "index"]
    progress.start("structure", sum(len(columns[name]) for name in checked), "values")
    _check_documents(manifest, columns["documents"], progress)
    _check_tokens(manifest, columns["tokens"], columns["documents"], progress)
    _CHECKS[manifest.kind](manifest, columns, progress)


def _check_context_array(manifest: Manifest, columns: Mapping[str, Column], progress: Progress) -> None:
    _check_positions(manifest, columns["positions"], progress)
    _check_buckets(columns["buckets"], len(columns["positions"]), progress)
    _check_origins(columns)


def _check_origins(columns: Mapping[str, Column]) -> None:
    if "origins" not in columns:
        return
    origins, origin_names = columns["origins"], columns["origin_names"]
    num_names = 1 + int(np.count_nonzero(origin_names == 0))
    for start in range(0, len(origins), _CHUNK):
        chunk = origins[start : start + _CHUNK]
        _refuse_first("origins", "names no origin", start, chunk, chunk >= num_names)
    try:
        origin_names.tobytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise _corrupt("column 'origin_names' is no text", error, "UTF-8") from error


def _check_dense(manifest: Manifest, columns: Mapping[str, Column], progress: Progress) -> None:
    _check_positions(manifest, columns["positions"], progress)
    for name in ("mean", "scale", "components"):
        _check_finite(name, columns[name], progress)
    _check_origins(columns)


def _check_adjacency_rows(manifest: Manifest, columns: Mapping[str, Column], progress: Progress) -> None:
    rows_a_chunk = max(_CHUNK // 16, 1)
    for start in range(0, manifest.num_documents, rows_a_chunk):
        orders = columns["orders"][start : start + rows_a_chunk].astype(np.int64)
        ends = columns["documents"][start + 1 : start + 1 + len(orders)]
        bounds = np.concatenate([columns["documents"][start : start + 1], ends, [manifest.num_tokens]])
        bounds = bounds[: len(orders) + 1]
        _refuse_first("orders", "is neither 1 nor 2", start, orders, (orders < 1) | (orders > 2))
        num_ids = np.diff(bounds) - orders - 1
        how = f"begins a row of no key or of more than {ROW_IDS} ids"
        _refuse_first("documents", how, start, bounds[:-1], (num_ids < 0) | (num_ids > ROW_IDS))
        inside = slice(int(bounds[0]), int(bounds[-1]))
        _check_rows(columns["tokens"][inside], columns["places"][inside], orders, num_ids, inside.start)
        progress.advance(len(orders) + inside.stop - inside.start)
    _check_counts(columns["offered"], columns["right"], progress)


def _check_rows(tokens: Column, places: Column, orders: Column, num_ids: Column, start: int) -> None:
    """Checks rows of proven lengths: ranks rise, no id stands twice, key and separator have no place."""
    lengths = orders + num_ids + 1
    row = np.repeat(np.arange(len(orders)), lengths)
    at = np.arange(len(tokens)) - (np.cumsum(lengths) - lengths)[row] - orders[row]
    is_id = (at >= 0) & (at < num_ids[row])
    outside = np.where(is_id, places >= ROW_IDS * ROW_LEVELS, places != 0)
    _refuse_first("places", "holds no place", start, places, outside)
    same_row = row[1:] == row[:-1]
    falls = same_row & is_id[1:] & is_id[:-1] & (places[1:] // ROW_LEVELS <= places[:-1] // ROW_LEVELS)
    _refuse_first("places", "does not rise within a row", start + 1, places[1:], falls)
    ids, owners = tokens[is_id], row[is_id]
    order = np.lexsort((ids, owners))
    twice = (np.diff(owners[order]) == 0) & (np.diff(ids[order].astype(np.int64)) == 0)
    if twice.any():
        raise _corrupt("a row holds an id twice", int(ids[order][int(np.argmax(twice))]), None)


def _check_counts(offered: Column, right: Column, progress: Progress) -> None:
    _refuse_first("offered", "is out of range", 0, offered, (offered < 0) | (offered > _MAX_OFFERED))
    _refuse_first("right", "is out of range", 0, right, (right < 0) | (right > offered))
    progress.advance(len(offered) + len(right))


_CHECKS: dict[str, Callable[[Manifest, Mapping[str, Column], Progress], None]] = {
    CORPUS_KIND: _check_context_array,
    DENSE_KIND: _check_dense,
    "adjacency_rows": _check_adjacency_rows,
}


def _check_documents(manifest: Manifest, documents: Column, progress: Progress) -> None:
    if manifest.num_documents == 0:
        if manifest.num_tokens:
            raise _corrupt("column 'documents' is empty", f"{manifest.num_tokens} tokens", "a document")
        return
    if int(documents[0]) != 0:
        raise _corrupt("column 'documents' does not begin at the first token", int(documents[0]), 0)
    for start, chunk in _overlapping_chunks(documents, progress):
        _refuse_first("documents", "does not rise", start + 1, chunk[1:], chunk[1:] <= chunk[:-1])
    if int(documents[-1]) >= manifest.num_tokens:
        raise _corrupt(
            "column 'documents' leaves the corpus", int(documents[-1]), f"below {manifest.num_tokens}"
        )


def _check_tokens(manifest: Manifest, tokens: Column, documents: Column, progress: Progress) -> None:
    num_separators = 0
    for start, chunk in _chunks(tokens, progress):
        separators = chunk == manifest.separator
        num_separators += int(np.count_nonzero(separators))
        outside = ((chunk >= manifest.vocab_size) | (chunk < 0)) & ~separators
        _refuse_first("tokens", "holds an id outside the vocabulary", start, chunk, outside)
    if num_separators != manifest.num_documents:
        raise _corrupt(
            "column 'tokens' has another number of separators", num_separators, manifest.num_documents
        )
    for start in range(0, manifest.num_documents, _CHUNK):
        ends = documents[start + 1 : start + 1 + _CHUNK]
        if np.any(tokens[ends - 1] != manifest.separator):
            raise _corrupt("a document does not end with the separator", None, manifest.separator)
    if manifest.num_tokens and int(tokens[-1]) != manifest.separator:
        raise _corrupt(
            "the last document does not end with the separator", int(tokens[-1]), manifest.separator
        )


def _check_positions(manifest: Manifest, positions: Column, progress: Progress) -> None:
    for start, chunk in _chunks(positions, progress):
        _refuse_first("positions", "leaves the corpus", start, chunk, chunk >= manifest.num_tokens)


def _check_buckets(buckets: Column, num_positions: int, progress: Progress) -> None:
    if not len(buckets) or int(buckets[0]) != 0 or int(buckets[-1]) != num_positions:
        got = f"{int(buckets[0])} to {int(buckets[-1])}" if len(buckets) else "nothing"
        raise _corrupt("column 'buckets' does not span the positions", got, f"0 to {num_positions}")
    for start, chunk in _overlapping_chunks(buckets, progress):
        _refuse_first("buckets", "falls", start + 1, chunk[1:], chunk[1:] < chunk[:-1])


def _check_finite(name: str, numbers: Column, progress: Progress) -> None:
    for start, chunk in _chunks(numbers, progress):
        _refuse_first(name, "holds a number that is not finite", start, chunk, ~np.isfinite(chunk))


def _chunks(column: Column, progress: Progress) -> Iterator[tuple[int, Column]]:
    for start in range(0, len(column), _CHUNK):
        chunk = column[start : start + _CHUNK]
        yield start, chunk
        progress.advance(len(chunk))


def _overlapping_chunks(column: Column, progress: Progress) -> Iterator[tuple[int, Column]]:
    """Yields chunks that begin with the last value of the one before, to compare neighbours."""
    for start in range(0, len(column), _CHUNK):
        chunk = column[start : start + _CHUNK + 1]
        yield start, chunk
        progress.advance(min(len(chunk), _CHUNK))


def _refuse_first(name: str, how: str, start: int, chunk: Column, wrong: NDArray[np.bool_]) -> None:
    if wrong.any():
        offset = int(np.argmax(wrong))
        raise _corrupt(f"column {name!r} {how} at index {start + offset}", chunk[offset].item(), None)


def _corrupt(what: str, got: object, expected: object) -> DatastoreCorrupt:
    return DatastoreCorrupt(what, got=got, expected=expected, remedy=REBUILD)
