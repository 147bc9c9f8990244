"""`retrieval-spec serve`: opens an engine and serves it until SIGTERM."""

from __future__ import annotations

import argparse
from pathlib import Path

from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.manifest import Manifest
from retrieval_spec.datastore.store import open_datastore, verify_datastore
from retrieval_spec.datastore.tokenizer import check_same_tokenizer, load_tokenizer
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.service.server import serve


def serve_command(arguments: argparse.Namespace) -> None:
    """Checks the datastores, opens the engine and serves; prints one line when it is ready."""
    if not arguments.trust_datastores:
        with progress_bar() as progress:
            for path in arguments.datastore:
                verify_datastore(path, progress)
    manifests = {path: open_datastore(path).manifest for path in arguments.datastore}
    if arguments.model:
        check_tokenizers(arguments.model, manifests)
    engine = Engine(
        vocab_size_for(arguments.vocab_size, arguments.model, list(manifests.values())),
        preset=arguments.preset,
        datastores=arguments.datastore,
    )
    serve(engine, arguments.listen, on_ready=announce)


def announce(address: str) -> None:
    """Prints the line that scripts wait for."""
    print(f"serving on {address}", flush=True)


def check_tokenizers(model: str | Path, manifests: dict[str, Manifest]) -> None:
    """Refuses datastores whose ids mean other text to the model.

    Raises:
        TokenizerMismatch: a datastore was built with another tokenizer.
    """
    tokenizer = load_tokenizer(model)
    for path, manifest in manifests.items():
        check_same_tokenizer(tokenizer, manifest, path)


def vocab_size_for(asked: int | None, model: str | Path | None, manifests: list[Manifest]) -> int:
    """Returns the vocabulary size to serve: the one asked for, else the largest that is known.

    Raises:
        InvalidRequest: nothing says how large the vocabulary is.
    """
    if asked is not None:
        return asked
    sizes = [manifest.vocab_size for manifest in manifests]
    if model:
        sizes.append(load_tokenizer(model).vocab_size)
    if not sizes:
        raise InvalidRequest(
            "nothing says how large the vocabulary is", remedy="give --vocab-size, --model or a --datastore"
        )
    return max(sizes)
