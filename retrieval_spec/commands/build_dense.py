"""`retrieval-spec build --kind dense`: runs a local model over a corpus and indexes its states."""

from __future__ import annotations

import argparse
from typing import Any

from retrieval_spec.commands.build import CHOOSING, ENGINE, refuse, require
from retrieval_spec.commands.generate import load_model
from retrieval_spec.commands.grow import corpus_of
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.store import inspect_datastore
from retrieval_spec.dense_build import build_dense
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.structures.dense_index import RECALL_NEIGHBOURS


def build_dense_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Builds and returns what the datastore holds, with the measured recall of its index."""
    for name in ("recipe", "from_datastore", "from_tokenizer"):
        if getattr(arguments, name):
            raise InvalidRequest(
                "a dense datastore is built from text alone", got=f"--{name.replace('_', '-')}"
            )
    refuse(arguments, *CHOOSING, because="a dense datastore holds every document that it is built from")
    refuse(arguments, *ENGINE, because="a dense datastore is built on this machine")
    require(arguments, "inputs", "model", "out")
    model, _ = load_model(arguments.model)
    with progress_bar() as progress:
        built = build_dense(
            corpus_of(arguments),
            model=model,
            tokenizer=arguments.tokenizer or arguments.model,
            out=arguments.out,
            replace=arguments.replace,
            progress=progress,
        )
    return {
        **inspect_datastore(built.path),
        "num_vectors": built.num_vectors,
        "index_bytes_per_vector": round(built.index_bytes_per_vector, 1),
        f"recall_at_{RECALL_NEIGHBOURS}": round(built.recall_at_10, 4),
    }
