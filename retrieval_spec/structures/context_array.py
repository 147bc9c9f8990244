"""The context array: a corpus whose positions are sorted by what stands before them.

One binary search finds the occurrences that share the longest context with a query, and equal contexts
are one range. Knows arrays and kernels; nothing of files, sessions or drafts' budgets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.calibration import reliability_by_match_length
from retrieval_spec.errors import DatastoreCorrupt, InvalidRequest, InvalidTokens, LimitExceeded
from retrieval_spec.kernels import context_array as search
from retrieval_spec.kernels import context_sort as sort
from retrieval_spec.kernels.context_draft import SCRATCH_WORDS, draft
from retrieval_spec.tree import Float32s, Int32s, Tokens

DEPTH_TOKENS = 32
MAX_DEPTH_TOKENS = 64
MAX_TOKEN_ID = 2**21 - 2
"""The bucket directory has an entry for each id up to the largest: 8 MiB at this bound."""
MAX_POSITIONS = 2**32 - 2
_DTYPES = {"tokens": (np.uint16, np.int32), "positions": (np.uint32,), "buckets": (np.uint32,)}
_TASKS_PER_THREAD = 32
_CHUNK_TOKENS = 1 << 20
_MIN_TASK_POSITIONS = 1 << 16

Columns = Mapping[str, NDArray[Any]]
TreeColumns = tuple[Tokens, Int32s, Float32s]
Scratch = NDArray[np.int64]


def new_scratch() -> Scratch:
    """Returns memory that `ContextArray.draft` works in."""
    return np.empty(SCRATCH_WORDS, np.int64)


def separator_of(dtype: Any) -> int:
    """Returns the id that ends a document in a corpus of this dtype: its largest value."""
    return int(np.iinfo(dtype).max)


class ContextArray:
    """An immutable index over a corpus; any number of threads may query it at once.

    The arrays are read-only and may be mapped from files. Every position that has a context stands in
    `positions`, also where a document ends there: the number of occurrences of a context is exact.

    Attributes:
        tokens: uint16[n] or int32[n]  the documents, each ended by the dtype's largest value.
        positions: uint32[m]  indices into `tokens`, sorted by the tokens before them, read backwards.
        buckets: uint32[num_ids + 1]  where the positions begin that follow each token id; ends with m.
        depth_tokens: how many tokens of a context the order considers.
    """

    __slots__ = ("__weakref__", "_reliability", "buckets", "depth_tokens", "positions", "tokens")

    def __init__(
        self, tokens: NDArray[Any], positions: NDArray[Any], buckets: NDArray[Any], depth_tokens: int
    ) -> None:
        self.tokens, self.positions, self.buckets = (_read_only(c) for c in (tokens, positions, buckets))
        self.depth_tokens = depth_tokens
        self._reliability = reliability_by_match_length()

    @classmethod
    def build(
        cls,
        token_ids: NDArray[Any],
        *,
        threads: int | None = None,
        depth_tokens: int = DEPTH_TOKENS,
        progress: Callable[[int], None] | None = None,
    ) -> ContextArray:
        """Sorts a corpus; the result does not depend on the number of threads.

        Besides the result it takes 2 bytes a token, and 16 a position of the largest buckets, one for each
        thread.

        Args:
            token_ids: uint16[n] or int32[n]  documents, each ended by the dtype's largest value; kept,
                not copied, and not to be written to any more.
            threads: threads that sort; all cores by default.
            depth_tokens: how many tokens of a context the order considers.
            progress: called with the number of positions sorted since the last call.

        Raises:
            InvalidTokens: another type or shape, or a negative id.
            LimitExceeded: too many tokens for 32-bit positions, or a token id above `MAX_TOKEN_ID`.
        """
        _check_depth(depth_tokens)
        tokens = _read_only(_as_corpus(token_ids))
        threads = max(1, threads or _num_cores())
        with ThreadPoolExecutor(threads) as pool:
            positions, buckets = _bucketed(tokens, _num_ids(tokens), threads, pool)
            ranks, used = _ranked(tokens, buckets)
            _sort(ranks, positions, used, depth_tokens, threads, pool, progress)
        return cls(tokens, positions, buckets, depth_tokens)

    @classmethod
    def from_columns(cls, columns: Columns, *, depth_tokens: int) -> ContextArray:
        """Returns the context array over arrays that `columns` returned once, mapped or not.

        Checks types, shapes and where the buckets begin and end. What stands inside may be damaged:
        queries check it as they go, and then give other drafts but no crash.

        Raises:
            DatastoreCorrupt: the arrays are not those of a context array.
        """
        _check_depth(depth_tokens)
        for name, dtypes in _DTYPES.items():
            _check_column(name, columns.get(name), dtypes)
        array = cls(columns["tokens"], columns["positions"], columns["buckets"], depth_tokens)
        array._check_sizes()
        return array

    def columns(self) -> dict[str, NDArray[Any]]:
        """Returns what belongs on disk, by name."""
        return {"tokens": self.tokens, "positions": self.positions, "buckets": self.buckets}

    @property
    def num_ids(self) -> int:
        """All token ids of the corpus are below this."""
        return int(self.buckets.shape[0]) - 1

    @property
    def num_bytes(self) -> int:
        """The size of all columns."""
        return sum(column.nbytes for column in self.columns().values())

    def count_range(self, context: Tokens) -> tuple[int, int]:
        """Returns the range of `positions` that follow an occurrence of the whole context.

        Raises:
            InvalidRequest: the context is empty or longer than `depth_tokens`.
        """
        if not 0 < context.shape[0] <= self.depth_tokens:
            raise InvalidRequest(
                "occurrences are counted for contexts within the array's depth",
                got=f"{context.shape[0]} tokens",
                expected=f"1 to {self.depth_tokens}",
            )
        first, last = search.equal_range(self.tokens, self.positions, self.buckets, context)
        return int(first), int(last)

    def continuation_counts(self, context: Tokens) -> tuple[Tokens, NDArray[np.int64]]:
        """Returns which tokens follow the context in the corpus and how often, by rising token id.

        Occurrences at the end of a document add to no token.
        """
        first, last = self.count_range(context)
        positions = self.positions[first:last]
        following = self.tokens[positions[positions < self.tokens.shape[0]]]
        drafted = following[(following >= 0) & (following < self.num_ids)]
        token_ids, counts = np.unique(drafted, return_counts=True)
        return token_ids.astype(np.int32), counts.astype(np.int64)

    def draft(
        self, context: Tokens, max_nodes: int, max_depth_nodes: int, scratch: Scratch | None = None
    ) -> TreeColumns:
        """Returns token ids, parents and probabilities of the most probable continuations, best first.

        Args:
            context: int32[c]  the tokens before the draft, the newest last.
            max_nodes: nodes of the tree at most.
            max_depth_nodes: nodes on one path at most.
            scratch: from `new_scratch`, in use by one caller at a time; saves making it.
        """
        token_ids = np.empty(max_nodes, np.int32)
        parents = np.empty(max_nodes, np.int32)
        probs = np.empty(max_nodes, np.float32)
        size = draft(
            self.tokens,
            self.positions,
            self.buckets,
            context,
            self._reliability,
            self.depth_tokens,
            max_depth_nodes,
            new_scratch() if scratch is None else scratch,
            token_ids,
            parents,
            probs,
        )
        if size == max_nodes:
            return token_ids, parents, probs
        return token_ids[:size], parents[:size], probs[:size]

    def _check_sizes(self) -> None:
        ends = (int(self.buckets[0]), int(self.buckets[-1]))
        if ends != (0, self.positions.shape[0]) or bool(np.any(self.buckets[1:] < self.buckets[:-1])):
            raise DatastoreCorrupt(
                "the bucket directory does not cover the positions",
                got=f"{ends[0]} to {ends[1]}",
                expected=f"rising from 0 to {self.positions.shape[0]}",
                remedy="build the datastore again",
            )
        if self.num_ids > MAX_TOKEN_ID + 1:
            raise DatastoreCorrupt(
                "the bucket directory is too long",
                got=f"{self.num_ids} token ids",
                expected=f"at most {MAX_TOKEN_ID + 1}",
                remedy="build the datastore again",
            )
        if self.positions.shape[0] > self.tokens.shape[0]:
            raise DatastoreCorrupt(
                "there are more positions than tokens",
                got=self.positions.shape[0],
                expected=f"at most {self.tokens.shape[0]}",
                remedy="build the datastore again",
            )


def _read_only(column: NDArray[Any]) -> NDArray[Any]:
    # One array type for kernels, whether the column was built or mapped: np.memmap is another type.
    view: NDArray[Any] = np.asarray(column).view()
    view.setflags(write=False)
    return view


def _check_depth(depth_tokens: int) -> None:
    if not 1 <= depth_tokens <= MAX_DEPTH_TOKENS:
        raise InvalidRequest(
            "depth_tokens is out of range", got=depth_tokens, expected=f"1 to {MAX_DEPTH_TOKENS}"
        )


def _check_column(name: str, column: NDArray[Any] | None, dtypes: tuple[Any, ...]) -> None:
    minimum = 1 if name == "buckets" else 0
    right = (
        column is not None
        and column.ndim == 1
        and column.dtype in dtypes
        and column.shape[0] >= minimum
        and column.flags.c_contiguous
        and column.flags.aligned
    )
    if not right:
        raise DatastoreCorrupt(
            f"column {name!r} is not that of a context array",
            got="nothing" if column is None else f"{column.dtype}{list(column.shape)}",
            expected=f"one dimension of {' or '.join(np.dtype(dtype).name for dtype in dtypes)}",
            remedy="build the datastore again",
        )


def _as_corpus(token_ids: NDArray[Any]) -> NDArray[Any]:
    if token_ids.ndim != 1 or token_ids.dtype not in _DTYPES["tokens"]:
        raise InvalidTokens(
            "a corpus needs one dimension of uint16 or int32",
            got=f"{token_ids.dtype}{list(token_ids.shape)}",
        )
    if token_ids.shape[0] > MAX_POSITIONS:
        raise LimitExceeded(
            "the corpus is too long for one context array",
            got=f"{token_ids.shape[0]} tokens",
            expected=f"at most {MAX_POSITIONS}",
            remedy="split it into several datastores",
        )
    return np.ascontiguousarray(token_ids)


def _num_ids(tokens: NDArray[Any]) -> int:
    smallest, largest = sort.id_range(tokens, separator_of(tokens.dtype))
    if smallest < 0:
        raise InvalidTokens("a token id of the corpus is negative", got=int(smallest), expected="0 or more")
    if largest > MAX_TOKEN_ID:
        raise LimitExceeded(
            "a token id of the corpus is too large",
            got=int(largest),
            expected=f"at most {MAX_TOKEN_ID}",
            remedy="use ids of a tokenizer; only the dtype's largest value separates documents",
        )
    return int(largest) + 1


def _num_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _bucketed(
    tokens: NDArray[Any], num_ids: int, threads: int, pool: Executor
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Returns the positions in rising order within the bucket of the token before them, and the buckets."""
    edges = np.linspace(0, tokens.shape[0], threads + 1).astype(np.int64).tolist()
    starts, stops = edges[:-1], edges[1:]
    counts = np.zeros((threads, num_ids), np.int64)
    list(pool.map(partial(sort.count_contexts, tokens), starts, stops, counts))
    buckets = np.zeros(num_ids + 1, np.uint32)
    np.cumsum(counts.sum(axis=0), out=buckets[1:])
    heads = buckets[:-1].astype(np.int64) + np.cumsum(counts, axis=0) - counts
    positions = np.empty(int(buckets[-1]), np.uint32)
    place = partial(sort.bucket_positions, positions, tokens)
    list(pool.map(place, starts, stops, heads))
    return positions, buckets


def _ranked(tokens: NDArray[Any], buckets: NDArray[np.uint32]) -> tuple[NDArray[Any], NDArray[np.uint32]]:
    """Returns tokens and buckets that sort alike, with ids in half the bytes where so few are in use.

    Sorting reads the corpus at random: half the bytes are twice the tokens in the processor's caches.
    """
    used = np.flatnonzero(np.diff(buckets))
    separator = separator_of(np.dtype(np.uint16))
    if tokens.dtype == np.uint16 or used.shape[0] > separator:
        return tokens, buckets
    rank_of = np.zeros(buckets.shape[0], np.uint16)  # an id before no position is in no context
    rank_of[used] = np.arange(used.shape[0])
    rank_of[-1] = separator
    ranks = np.empty(tokens.shape[0], np.uint16)
    for start in range(0, tokens.shape[0], _CHUNK_TOKENS):
        part = slice(start, start + _CHUNK_TOKENS)
        np.take(rank_of, np.minimum(tokens[part], buckets.shape[0] - 1), out=ranks[part])
    return _read_only(ranks), np.append(buckets[used], buckets[-1])


def _sort(
    tokens: NDArray[Any],
    positions: NDArray[np.uint32],
    buckets: NDArray[np.uint32],
    depth_tokens: int,
    threads: int,
    pool: Executor,
    progress: Callable[[int], None] | None,
) -> None:
    buckets = _read_only(buckets)
    sizes = {}
    for first, last in _tasks(buckets, threads):
        task = pool.submit(sort.sort_buckets, tokens, positions, buckets, first, last, depth_tokens)
        sizes[task] = int(buckets[last]) - int(buckets[first])
    try:
        for task in as_completed(sizes):
            task.result()
            if progress is not None:
                progress(sizes[task])
    except BaseException:
        for task in sizes:
            task.cancel()
        raise


def _tasks(buckets: NDArray[np.uint32], threads: int) -> list[tuple[int, int]]:
    """Returns ranges of buckets with about as many positions each, the largest first."""
    total = int(buckets[-1])
    step = max(total // (threads * _TASKS_PER_THREAD), _MIN_TASK_POSITIONS)
    cuts = np.searchsorted(buckets, np.arange(0, total, step)).tolist()
    edges = sorted({0, *cuts, buckets.shape[0] - 1})
    ranges = list(pairwise(edges))
    return sorted(ranges, key=lambda ends: int(buckets[ends[0]]) - int(buckets[ends[1]]))
