"""`retrieval-spec verify`: every byte against its checksum, the structure, and the order of contexts."""

from __future__ import annotations

import argparse
from typing import Any

from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.manifest import CORPUS_KIND
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.segments import Segments, open_segments
from retrieval_spec.datastore.store import Datastore
from retrieval_spec.errors import DatastoreCorrupt
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_order import check_order, sampled_order, whole_order
from retrieval_spec.structures.pruning import check_pruned

_PIECES = {"sampled": sampled_order, "whole": whole_order}


def verify_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Verifies all segments of a datastore; returns what was found to be intact, ready for JSON.

    Raises:
        DatastoreCorrupt: a byte was altered, columns contradict each other, or contexts are out of order.
    """
    segments = open_segments(arguments.datastore)
    with progress_bar() as progress:
        num_checked = sum(_verify(segments, store, arguments.order, progress) for store in segments.stores)
    found = {"datastore": arguments.datastore, "intact": True, "num_tokens": segments.manifest.num_tokens}
    if segments.generation:
        found |= {"generation": segments.generation, "num_segments": len(segments.stores)}
    if segments.manifest.kind == CORPUS_KIND:
        found |= {"order": arguments.order, "num_positions_checked": num_checked}
    return found


def _verify(segments: Segments, store: Datastore, order: str, progress: Progress) -> int:
    """Verifies one segment; returns how many positions were found in order."""
    try:
        store.check(progress)
        return _check_order(store, order, progress) if store.manifest.kind == CORPUS_KIND else 0
    except DatastoreCorrupt as error:
        if len(segments.stores) == 1:
            raise
        raise DatastoreCorrupt(f"{store.path} is damaged", got=error) from error


def _check_order(store: Datastore, order: str, progress: Progress) -> int:
    array = ContextArray.from_columns(store.columns, depth_tokens=store.manifest.depth_tokens)
    pieces = _PIECES[order](len(array.positions))
    progress.start("order", sum(stop - start for start, stop in pieces), "positions")
    num_checked = check_order(array, pieces, progress.advance)
    if store.manifest.pruned_ngram_tokens:
        progress.start("pruning", num_checked, "positions")
        check_pruned(array, store.manifest.pruned_ngram_tokens, pieces, progress.advance)
    return num_checked
