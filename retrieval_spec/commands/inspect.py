"""`retrieval-spec inspect`: what a datastore's manifest says, and what was measured of its corpus."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from retrieval_spec.commands.documents import tokenizer_of
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.corpus_stats import (
    NGRAM_TOKENS,
    NGram,
    Part,
    frequent_ngrams,
    num_distinct_ids,
    open_parts,
    quantiles,
    repeat_lengths,
)
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.manifest import CORPUS_KIND, DOCUMENT_KINDS
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.segments import inspect_segments, open_segments
from retrieval_spec.datastore.store import Datastore
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.leave_one_out import MAX_NODES, predict_acceptance

_NUM_NGRAMS = 10
_NUM_ORIGINS = 20
_LAST = ("files", "stray_files", "segments")
_EDGES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_BAR_CHARACTERS = 60


def inspect_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns what there is to say of a datastore, ready for JSON.

    A corpus is measured too, unless no document shall be replayed; of a pruned one less.

    Raises:
        InvalidRequest: a number out of range.
        TokenizerMismatch: `--tokenizer` is not the one that the datastore was built with.
    """
    if arguments.origin:
        raise InvalidRequest("--origin chooses documents", remedy="give --documents too, or leave it out")
    if arguments.sample < 0:
        raise InvalidRequest("--sample is out of range", got=arguments.sample, expected="0 or more")
    segments = open_segments(arguments.datastore)
    tokenizer = tokenizer_of(segments, arguments.tokenizer)
    facts = inspect_segments(segments)
    if segments.manifest.kind in DOCUMENT_KINDS:
        facts["origins"] = _origins(segments.stores)
    if segments.manifest.kind != CORPUS_KIND or not arguments.sample:
        return facts
    with progress_bar() as progress:
        measured = _measured(segments.stores, arguments, tokenizer, progress)
    return {**facts, **measured}


def _origins(stores: Sequence[Datastore]) -> dict[str, int]:
    """Returns how many documents came from each file, the largest numbers first; older stores do not say."""
    counts: Counter[str] = Counter()
    for store in stores:
        if "origins" in store.columns:
            documents = Documents.from_columns(store.columns)
            numbers = np.bincount(documents.origins, minlength=len(documents.origin_names)).tolist()
            counts.update(dict(zip(documents.origin_names, numbers, strict=True)))
    return {name: count for name, count in counts.most_common(_NUM_ORIGINS) if count}


def _measured(
    stores: Sequence[Datastore],
    arguments: argparse.Namespace,
    tokenizer: Tokenizer | None,
    progress: Progress,
) -> dict[str, Any]:
    parts = open_parts(stores)
    lengths = np.concatenate([part.lengths for part in parts])
    measured = {"num_distinct_ids": num_distinct_ids(parts), "document_tokens": quantiles(lengths)}
    if stores[0].manifest.pruned_ngram_tokens:
        return measured
    depth = min(part.array.depth_tokens for part in parts)
    sizes = arguments.ngrams or [size for size in NGRAM_TOKENS if size <= depth]
    progress.start("repeats", sum(len(part.array.positions) for part in parts), "positions")
    ngrams = frequent_ngrams(parts, sizes, _NUM_NGRAMS, progress.advance)
    num_replayed = min(arguments.sample, sum(len(part.starts) for part in parts))
    progress.start("replay", num_replayed, "documents")
    predicted = predict_acceptance(parts, arguments.sample, MAX_NODES, progress.advance)
    return {
        **measured,
        "repeated_ngrams": {str(size): _described(ngrams[size], tokenizer) for size in sizes},
        "longest_repeats": _histogram(parts),
        "predicted_acceptance": predicted,
    }


def _described(ngrams: list[NGram], tokenizer: Tokenizer | None) -> list[dict[str, Any]]:
    described: list[dict[str, Any]] = [
        {"count": ngram.count, "token_ids": list(ngram.token_ids)} for ngram in ngrams
    ]
    if tokenizer is not None:
        texts = tokenizer.decode_batch([np.array(ngram.token_ids, np.int32) for ngram in ngrams])
        for one, text in zip(described, texts, strict=True):
            one["text"] = text
    return described


def _histogram(parts: Sequence[Part]) -> dict[str, Any]:
    """Returns the shares of positions by the length of their longest repeat, and its mean."""
    counts = repeat_lengths(parts)
    total = max(int(counts.sum()), 1)
    shares = {str(length): round(count / total, 4) for length, count in enumerate(counts.tolist()) if count}
    mean = float(counts @ np.arange(len(counts))) / total
    return {"num_positions": int(counts.sum()), "mean_tokens": round(mean, 3), "share_by_tokens": shares}


def readable(facts: dict[str, Any]) -> dict[str, Any]:
    """Returns the same for people: a line for each n-gram, bars for lengths, files at the end."""
    if "repeated_ngrams" not in facts:
        return facts
    shown = {key: value for key, value in facts.items() if key not in _LAST}
    shown["repeated_ngrams"] = {
        f"{size}_tokens": {str(rank): _line(ngram) for rank, ngram in enumerate(ngrams, 1)}
        for size, ngrams in facts["repeated_ngrams"].items()
    }
    repeats = facts["longest_repeats"]
    shown["longest_repeats"] = {**repeats, "share_by_tokens": _bars(repeats["share_by_tokens"])}
    return {**shown, **{key: facts[key] for key in _LAST if key in facts}}


def _line(ngram: dict[str, Any]) -> str:
    said = repr(ngram["text"]) if "text" in ngram else " ".join(map(str, ngram["token_ids"]))
    return f"{ngram['count']:,} x {said}"


def _bars(shares: dict[str, float]) -> dict[str, str]:
    """Returns a bar for each range of lengths, up to the next edge."""
    sums = dict.fromkeys((edge for edge in _EDGES if edge <= max(map(int, shares), default=0)), 0.0)
    for length, share in shares.items():
        sums[max(edge for edge in sums if edge <= int(length))] += share
    return {
        f"from {edge}": f"{share:6.1%} {'#' * round(_BAR_CHARACTERS * share)}" for edge, share in sums.items()
    }
