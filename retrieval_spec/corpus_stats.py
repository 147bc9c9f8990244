"""What a corpus holds: lengths of documents, what repeats in it, and how long its repeats are.

Reads the columns of open datastores, several segments as one corpus; draws samples that are always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.manifest import CORPUS_KIND
from retrieval_spec.datastore.sealed_json import REBUILD
from retrieval_spec.datastore.store import Datastore
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest
from retrieval_spec.kernels.corpus_stats import count_repeats, longest_repeats
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.tree import Tokens

NGRAM_TOKENS = (4, 8, 16)
_QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_NUM_KEPT = 256
"""N-grams that are kept of each size and segment: the shifts of a few long repeats fill the first places."""
_CHUNK_POSITIONS = 1 << 20
_NUM_SAMPLED_POSITIONS = 20_000

Int64s = NDArray[np.int64]
Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Part:
    """A segment of a corpus: its index, where its documents start, and how many tokens each has."""

    array: ContextArray
    starts: Int64s
    lengths: Int64s


@dataclass(frozen=True, slots=True)
class NGram:
    """Tokens in a row, and how often they occur."""

    token_ids: tuple[int, ...]
    count: int


def open_parts(stores: Sequence[Datastore]) -> list[Part]:
    """Returns the segments of a corpus.

    Raises:
        InvalidRequest: a datastore of another kind.
        DatastoreCorrupt: columns that are not those of a corpus.
    """
    return [_open_part(store) for store in stores]


def _open_part(store: Datastore) -> Part:
    manifest = store.manifest
    if manifest.kind != CORPUS_KIND:
        raise InvalidRequest(
            f"datastore {store.path} holds no corpus", got=manifest.kind, expected=CORPUS_KIND
        )
    array = ContextArray.from_columns(store.columns, depth_tokens=manifest.depth_tokens)
    starts = store.columns["documents"]
    lengths = np.diff(np.append(starts, manifest.num_tokens)) - 1
    if len(starts) and (int(starts[0]) != 0 or int(lengths.min()) < 1):
        raise DatastoreCorrupt(
            f"column 'documents' of {store.path} does not rise from 0 to its end", remedy=REBUILD
        )
    return Part(array, starts, lengths)


def quantiles(numbers: NDArray[np.int64] | NDArray[np.float64]) -> dict[str, float]:
    """Returns the smallest, the largest and what lies between, by name; nothing of no numbers."""
    if not len(numbers):
        return {}
    values = np.quantile(numbers, list(_QUANTILES.values())).tolist()
    return {name: round(value, 3) for name, value in zip(_QUANTILES, values, strict=True)}


def num_distinct_ids(parts: Sequence[Part]) -> int:
    """Returns how many token ids occur."""
    used = np.zeros(max((part.array.num_ids for part in parts), default=0), bool)
    for part in parts:
        used[: part.array.num_ids] |= np.diff(part.array.buckets) > 0
    return int(np.count_nonzero(used))


def frequent_ngrams(
    parts: Sequence[Part], sizes: Sequence[int], num_ngrams: int, advance: Advance
) -> dict[int, list[NGram]]:
    """Returns the most frequent n-grams of each size that occur twice or more, the most frequent first.

    Of n-grams that overlap by half or more, as the shifts of a longer repeat do, the first one stands for
    all. Counts are exact, and overlapping occurrences of one n-gram count each. One that is not among the
    256 most frequent of any segment is not seen.

    Args:
        parts: the segments.
        sizes: tokens of an n-gram, each at most the depth of the order.
        num_ngrams: how many of each size.
        advance: told the number of positions that were looked at.

    Raises:
        InvalidRequest: a size that the order does not reach.
    """
    depth = min((part.array.depth_tokens for part in parts), default=0)
    for size in sizes:
        if not 1 <= size <= depth:
            raise InvalidRequest("n-grams are counted within the depth", got=size, expected=f"1 to {depth}")
    found: dict[int, set[tuple[int, ...]]] = {size: set() for size in sizes}
    for part in parts:
        for token_ids in _most_frequent(part.array, sizes, advance):
            found[len(token_ids)].add(token_ids)
    return {size: _without_shifts(_counted(parts, found[size]), num_ngrams) for size in sizes}


def _most_frequent(array: ContextArray, sizes: Sequence[int], advance: Advance) -> Iterator[tuple[int, ...]]:
    """Yields the most frequent n-grams of one segment, of every size."""
    runs = np.zeros(len(sizes), np.int64)
    counts = np.ones((len(sizes), _NUM_KEPT), np.int64)
    starts = np.zeros_like(counts)
    num_positions = len(array.positions)
    for start in range(0, num_positions + 1, _CHUNK_POSITIONS):
        stop = min(start + _CHUNK_POSITIONS, num_positions + 1)
        wanted = np.array(sizes, np.int64)
        count_repeats(array.tokens, array.positions, array.num_ids, wanted, start, stop, runs, counts, starts)
        advance(min(stop, num_positions) - start)
    for row, size in enumerate(sizes):
        for index in starts[row, counts[row] > 1].tolist():
            position = int(array.positions[index])
            yield tuple(array.tokens[position - size : position].tolist())


def _counted(parts: Sequence[Part], found: set[tuple[int, ...]]) -> list[NGram]:
    """Returns the n-grams with their counts in all segments, the most frequent first, then by tokens."""
    counted = [NGram(token_ids, _count(parts, np.array(token_ids, np.int32))) for token_ids in found]
    return sorted(counted, key=lambda ngram: (-ngram.count, ngram.token_ids))


def _count(parts: Sequence[Part], ngram: Tokens) -> int:
    ranges = [part.array.count_range(ngram) for part in parts]
    return sum(last - first for first, last in ranges)


def _without_shifts(ngrams: list[NGram], num_ngrams: int) -> list[NGram]:
    shown: list[NGram] = []
    for ngram in ngrams:
        if len(shown) == num_ngrams:
            break
        if not any(_overlap(ngram.token_ids, other.token_ids) for other in shown):
            shown.append(ngram)
    return shown


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Says whether one begins as the other ends, with half of its tokens or more."""
    size = len(one)
    shifts = range(1, size // 2 + 1)
    return any(
        one[shift:] == other[: size - shift] or other[shift:] == one[: size - shift] for shift in shifts
    )


def repeat_lengths(parts: Sequence[Part], num_positions: int = _NUM_SAMPLED_POSITIONS) -> Int64s:
    """Returns int64[depth + 1], of how many sampled positions the longest repeat has each length.

    The longest repeat of a position are the last tokens before it that stand elsewhere too, as many as
    occur together; the depth of the order is the most that is seen.
    """
    depth = max((part.array.depth_tokens for part in parts), default=0)
    lengths = [_longest(parts, source, sample) for source, sample in _sampled(parts, num_positions)]
    return np.bincount(np.concatenate([*lengths, np.zeros(0, np.int64)]), minlength=depth + 1)


def _sampled(parts: Sequence[Part], num_positions: int) -> Iterator[tuple[Part, Int64s]]:
    """Yields sampled positions of every segment, in proportion to its size."""
    ends = np.cumsum([0, *(len(part.array.positions) for part in parts)])
    chosen = sample(int(ends[-1]), num_positions)
    for part, start, stop in zip(parts, ends[:-1], ends[1:], strict=True):
        inside = chosen[(chosen >= start) & (chosen < stop)] - start
        yield part, part.array.positions[inside].astype(np.int64)


def _longest(parts: Sequence[Part], source: Part, positions: Int64s) -> Int64s:
    lengths = np.zeros(len(positions), np.int64)
    for part in parts:
        array, own = part.array, source.array
        longest_repeats(
            own.tokens,
            own.num_ids,
            positions,
            array.tokens,
            array.positions,
            array.buckets,
            array.depth_tokens,
            part is source,
            lengths,
        )
    return lengths


def sample(population: int, num_sampled: int) -> Int64s:
    """Returns numbers below `population`, rising, without repeats: always the same ones."""
    rng = np.random.default_rng(0)
    chosen = rng.choice(population, min(num_sampled, population), replace=False, shuffle=False)
    return np.sort(chosen).astype(np.int64)
