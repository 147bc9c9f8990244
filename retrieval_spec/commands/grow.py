"""`retrieval-spec append | remove | compact`: changes to a datastore that exists."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import id_of
from retrieval_spec.datastore.manifest import DENSE_KIND
from retrieval_spec.datastore.segments import open_segments
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.grow import MAX_RATIO, Changed, append_documents, compact, remove_documents

_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def append_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Adds documents; returns what that did.

    Raises:
        InvalidRequest: what the kind of the datastore needs is missing.
    """
    kind = open_segments(arguments.datastore).manifest.kind
    if kind == DENSE_KIND:
        return asdict(_append_states(arguments))
    if arguments.model or not arguments.tokenizer:
        raise InvalidRequest(
            f"a datastore of kind {kind} is added to by its tokenizer",
            remedy="give --tokenizer and no --model",
        )
    with progress_bar() as progress:
        changed = append_documents(
            arguments.datastore,
            corpus_of(arguments),
            tokenizer=arguments.tokenizer,
            threads=arguments.threads,
            memory_limit_bytes=size_of(arguments.memory_limit),
            drop_near_duplicates=arguments.drop_near_duplicates,
            progress=progress,
        )
    return asdict(changed)


def _append_states(arguments: argparse.Namespace) -> Changed:
    from retrieval_spec.commands.generate import load_model
    from retrieval_spec.dense_grow import append_states

    if not arguments.model:
        raise InvalidRequest(
            "a dense datastore is added to by its model", remedy="give the --model that it was built with"
        )
    for name in ("drop_near_duplicates", "memory_limit", "threads"):
        if getattr(arguments, name) is not None:
            option = f"--{name.replace('_', '-')}"
            raise InvalidRequest("not for a dense datastore", got=option, remedy="leave it out")
    corpus = corpus_of(arguments)
    model, _ = load_model(arguments.model)
    with progress_bar() as progress:
        return append_states(
            arguments.datastore,
            corpus,
            model=model,
            tokenizer=arguments.tokenizer or arguments.model,
            progress=progress,
        )


def corpus_of(arguments: argparse.Namespace) -> Corpus:
    """Returns the corpus that the arguments name.

    Raises:
        RetrievalSpecError: as `Corpus`.
    """
    return Corpus(
        arguments.inputs,
        arguments.text_field,
        arguments.exclude,
        include=arguments.include,
        on_error=arguments.on_error,
        skip_licence_headers=arguments.skip_licence_headers,
    )


def remove_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes documents out; returns what that did."""
    ids = [id_of(text) for text in arguments.id]
    with progress_bar() as progress:
        changed = remove_documents(
            arguments.datastore,
            ids=ids,
            origins=arguments.origin,
            threads=arguments.threads,
            progress=progress,
        )
    return asdict(changed)


def compact_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes one of neighbouring segments; returns what that did."""
    with progress_bar() as progress:
        changed = compact(
            arguments.datastore,
            max_ratio=math.inf if arguments.all else MAX_RATIO,
            threads=arguments.threads,
            memory_limit_bytes=size_of(arguments.memory_limit),
            progress=progress,
        )
    return asdict(changed)


CHANGES: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "append": append_command,
    "remove": remove_command,
    "compact": compact_command,
}


def size_of(text: str | None) -> int | None:
    """Returns the bytes of a size such as `2G` or `512M`.

    Raises:
        InvalidRequest: it is none.
    """
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest("no size", got=text[:40], expected="a number with K, M, G or T, such as 4G")
    return int(float(match[1]) * _UNITS[match[2].upper()])
