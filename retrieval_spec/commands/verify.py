"""`retrieval-spec verify`: every byte against its checksum, the structure, and the order of contexts."""

from __future__ import annotations

import argparse
from typing import Any

from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.store import Datastore, open_datastore
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.context_order import check_order, sampled_order, whole_order

_PIECES = {"sampled": sampled_order, "whole": whole_order}


def verify_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Verifies a datastore; returns what was found to be intact, ready for JSON.

    Raises:
        DatastoreCorrupt: a byte was altered, columns contradict each other, or contexts are out of order.
    """
    store = open_datastore(arguments.datastore)
    with progress_bar() as progress:
        store.check(progress)
        found = {"datastore": arguments.datastore, "intact": True, "num_tokens": store.manifest.num_tokens}
        if store.manifest.kind != "context_array":
            return found
        num_checked = _check_order(store, arguments.order, progress)
    return {**found, "order": arguments.order, "num_positions_checked": num_checked}


def _check_order(store: Datastore, order: str, progress: Progress) -> int:
    array = ContextArray.from_columns(store.columns, depth_tokens=store.manifest.depth_tokens)
    pieces = _PIECES[order](len(array.positions))
    progress.start("order", sum(stop - start for start, stop in pieces), "positions")
    return check_order(array, pieces, progress.advance)
