"""What a datastore says, in the files of other programs: llama.cpp's static n-gram lookup cache.

The file is a sequence of records without a header, every number an int32, little-endian: the key, four
token ids of which unused ones are -1; how many continuations it has; and for each its token and its count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.atomic import check_parent, draft_file
from retrieval_spec.datastore.manifest import CORPUS_KIND
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.store import Datastore
from retrieval_spec.errors import DatastoreExists, InvalidRequest
from retrieval_spec.structures.context_array import ContextArray

_KEY_TOKENS = 4
_CONTEXT_TOKENS = 2
"""llama.cpp looks up two tokens in its static cache, whatever it does with its others."""
_NO_TOKEN = -1
_ID_BITS = 21
_ID_MASK = (1 << _ID_BITS) - 1
_CHUNK_POSITIONS = 1 << 22
_MAX_PERCENT_COUNT = (2**31 - 1) // 100
"""llama.cpp multiplies counts by 100 in an int32."""

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Exported:
    """What a file holds: its keys, their continuations, and its size."""

    num_keys: int
    num_continuations: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is left out: continuations that came less often, and those after the most frequent ones."""

    min_count: int = 1
    max_continuations: int | None = None

    def check(self) -> None:
        """Accepts bounds that leave something.

        Raises:
            InvalidRequest: a bound below 1.
        """
        for name, value in (("min_count", self.min_count), ("max_continuations", self.max_continuations)):
            if value is not None and value < 1:
                raise InvalidRequest(f"{name} is out of range", got=value, expected="1 or more")


def export_lookup(
    stores: Sequence[Datastore],
    out: str | Path,
    *,
    bounds: Bounds | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes llama.cpp's static lookup cache: after every two tokens, what followed and how often.

    Counts are exact, of all segments together; what stands across the end of a document is not counted.
    Takes 8 bytes for each position after the most frequent token, a few times over.

    Args:
        stores: the segments of a datastore of kind context_array.
        out: the file; it is there whole or not at all.
        bounds: which continuations are left out; none by default.
        replace: whether a file that stands at `out` gives way.
        progress: told of the stages.

    Raises:
        InvalidRequest: a datastore of another kind, or a bound out of range.
        DatastoreCorrupt: a byte was altered, or the columns contradict each other.
        DatastoreExists: `out` is taken.
        MissingPath: its folder does not exist.
        DatastoreError: the file system refused.
    """
    bounds = bounds or Bounds()
    bounds.check()
    target = Path(out).absolute()
    _check_place(target, replace)
    progress = progress or NoProgress()
    arrays = [_array_of(store, progress) for store in stores]
    progress.start("exporting", sum(len(array.positions) for array in arrays), "positions")
    return _write(target, _records(arrays, bounds, progress.advance))


def _check_place(target: Path, replace: bool) -> None:
    check_parent(target)
    if os.path.lexists(target) and not (replace and target.is_file()):
        raise DatastoreExists(
            "the place of the file is taken", got=target, remedy="choose another --out, or give --replace"
        )


def _array_of(store: Datastore, progress: Progress) -> ContextArray:
    if store.manifest.kind != CORPUS_KIND:
        raise InvalidRequest(
            "only a corpus can be exported",
            got=f"{store.path} of kind {store.manifest.kind}",
            expected=CORPUS_KIND,
            remedy="export the context array of the same text",
        )
    if store.manifest.pruned_ngram_tokens:
        raise InvalidRequest(
            "only a corpus with all its places can be exported: how often what follows is what is written",
            got=f"{store.path}, which holds each {store.manifest.pruned_ngram_tokens}-gram once",
            remedy="build it without --prune",
        )
    store.check(progress)
    return ContextArray.from_columns(store.columns, depth_tokens=store.manifest.depth_tokens)


def _records(
    arrays: Sequence[ContextArray], bounds: Bounds, advance: Callable[[int], None]
) -> Iterator[tuple[int, Int32s]]:
    """Yields numbers of keys and their records, by rising last token of the keys, then by the one before."""
    for first, last in _token_ranges(arrays):
        followed = np.concatenate([_followed(array, first, last) for array in arrays])
        yield _as_records(*_kept(*np.unique(followed, return_counts=True), bounds))
        advance(sum(stop - start for start, stop in (_bucket_range(array, first, last) for array in arrays)))


def _token_ranges(arrays: Sequence[ContextArray]) -> Iterator[tuple[int, int]]:
    """Yields ranges of last tokens with about as many positions each."""
    num_ids = max((array.num_ids for array in arrays), default=0)
    ends = np.zeros(num_ids, np.int64)
    for array in arrays:
        ends[: array.num_ids] += array.buckets[1:]
        ends[array.num_ids :] += int(array.buckets[-1])
    first = 0
    while first < num_ids:
        before = int(ends[first - 1]) if first else 0
        last = max(int(np.searchsorted(ends, before + _CHUNK_POSITIONS, side="right")), first + 1)
        yield first, last
        first = last


def _bucket_range(array: ContextArray, first: int, last: int) -> tuple[int, int]:
    edges = array.buckets[np.minimum([first, last], array.num_ids)]
    return int(edges[0]), int(edges[1])


def _followed(array: ContextArray, first: int, last: int) -> Int64s:
    """Returns every three tokens in a row whose second is in first..last, as a number that sorts by key."""
    start, stop = _bucket_range(array, first, last)
    positions = array.positions[start:stop].astype(np.int64)
    positions = positions[positions >= _CONTEXT_TOKENS]
    older, newer, token = (array.tokens[positions - back].astype(np.int64) for back in (2, 1, 0))
    is_inside = (older < array.num_ids) & (token < array.num_ids)  # separators are above every id
    numbers: Int64s = ((newer << 2 * _ID_BITS) | (older << _ID_BITS) | token)[is_inside]
    return numbers


def _kept(followed: Int64s, counts: Int64s, bounds: Bounds) -> tuple[Int64s, Int64s]:
    """Returns what is within bounds, by key and then by falling count; equal counts by rising token."""
    followed, counts = followed[counts >= bounds.min_count], counts[counts >= bounds.min_count]
    keys = followed >> _ID_BITS
    order = np.lexsort((followed, -counts, keys))
    followed, counts = followed[order], counts[order]
    if bounds.max_continuations is not None:
        starts, group = _groups(followed >> _ID_BITS)
        is_kept = np.arange(len(followed)) - starts[group] < bounds.max_continuations
        followed, counts = followed[is_kept], counts[is_kept]
    return followed, counts


def _groups(keys: Int64s) -> tuple[Int64s, Int64s]:
    """Returns where each run of equal keys starts, and for every key the number of its run."""
    is_first = np.ones(len(keys), bool)
    is_first[1:] = keys[1:] != keys[:-1]
    return np.flatnonzero(is_first), np.cumsum(is_first) - 1


def _as_records(followed: Int64s, counts: Int64s) -> tuple[int, Int32s]:
    """Returns how many keys there are, and int32[5 a key + 2 a continuation]."""
    if not len(followed):
        return 0, np.zeros(0, np.int32)
    keys = followed >> _ID_BITS
    starts, group = _groups(keys)
    counts = _without_overflow(counts, starts, group)
    sizes = np.diff(np.append(starts, len(keys)))
    records = np.full((_KEY_TOKENS + 1) * len(starts) + 2 * len(keys), _NO_TOKEN, "<i4")
    heads = (_KEY_TOKENS + 1) * np.arange(len(starts)) + 2 * starts
    records[heads] = keys[starts] & _ID_MASK
    records[heads + 1] = keys[starts] >> _ID_BITS
    records[heads + _KEY_TOKENS] = sizes
    places = (_KEY_TOKENS + 1) * (group + 1) + 2 * np.arange(len(keys))
    records[places] = followed & _ID_MASK
    records[places + 1] = counts
    return len(starts), records


def _without_overflow(counts: Int64s, starts: Int64s, group: Int64s) -> Int64s:
    """Returns counts that llama.cpp can multiply by 100; those of a key beyond that, in proportion."""
    sums = np.add.reduceat(counts, starts)
    divisors = -(-sums // _MAX_PERCENT_COUNT)
    smaller: Int64s = np.maximum(counts // divisors[group], 1)
    return smaller


def _write(target: Path, parts: Iterator[tuple[int, Int32s]]) -> Exported:
    num_keys = num_values = 0
    with draft_file(target) as file:
        for size, records in parts:
            file.write(records.data)
            num_keys += size
            num_values += len(records)
    num_continuations = (num_values - (_KEY_TOKENS + 1) * num_keys) // 2
    return Exported(num_keys, num_continuations, 4 * num_values)
