"""`retrieval-spec build`: from text, from a recipe, or from the text of another tokenizer's datastore."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_spec.build import build_datastore, build_recipe
from retrieval_spec.commands.grow import corpus_of, size_of
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.spread import Pool
from retrieval_spec.translate import translate_datastore

READING = ("text_field", "include", "exclude", "on_error", "skip_licence_headers")
"""Options of how a corpus is read."""
CHOOSING = ("drop_duplicates", "drop_near_duplicates", "prune")
"""Options of what is left out."""
ENGINE = ("engine", "address")
"""Options of where the work is done."""


def build_command(arguments: argparse.Namespace) -> Path:
    """Builds what the arguments describe; returns the datastore's folder."""
    with progress_bar() as progress:
        if arguments.from_datastore or arguments.from_tokenizer:
            return _from_datastore(arguments, progress)
        with _pool_of(arguments) as pool:
            if arguments.recipe:
                return _from_recipe(arguments, progress, pool)
            return _from_text(arguments, progress, pool)


@contextmanager
def _pool_of(arguments: argparse.Namespace) -> Iterator[Pool | None]:
    if arguments.engine == "local":
        refuse(arguments, "address", because="only a build with --engine ray goes to a cluster")
        yield None
        return
    from retrieval_spec.cluster import RayPool

    with RayPool(arguments.address) as pool:
        yield pool


def _from_datastore(arguments: argparse.Namespace, progress: Progress) -> Path:
    if arguments.inputs or arguments.recipe:
        raise InvalidRequest("a datastore is translated alone", remedy="leave inputs and recipe out")
    refuse(arguments, *READING, *CHOOSING, because="a datastore is translated as it is")
    refuse(arguments, *ENGINE, because="a datastore is translated on this machine")
    require(arguments, "from_datastore", "from_tokenizer", "tokenizer")
    return translate_datastore(
        arguments.from_datastore,
        from_tokenizer=arguments.from_tokenizer,
        to_tokenizer=arguments.tokenizer,
        out=arguments.out,
        threads=arguments.threads,
        replace=arguments.replace,
        progress=progress,
    )


def _from_recipe(arguments: argparse.Namespace, progress: Progress, pool: Pool | None) -> Path:
    if arguments.inputs or arguments.tokenizer:
        raise InvalidRequest("a recipe names its own inputs and tokenizer", remedy="leave the others out")
    refuse(arguments, *READING, *CHOOSING, because="a recipe says itself how its inputs are read")
    return build_recipe(
        arguments.recipe,
        out=arguments.out,
        threads=arguments.threads,
        memory_limit_bytes=size_of(arguments.memory_limit),
        replace=arguments.replace,
        progress=progress,
        pool=pool,
    )


def _from_text(arguments: argparse.Namespace, progress: Progress, pool: Pool | None) -> Path:
    require(arguments, "inputs", "tokenizer", "out")
    return build_datastore(
        corpus_of(arguments),
        tokenizer=arguments.tokenizer,
        out=arguments.out,
        threads=arguments.threads,
        memory_limit_bytes=size_of(arguments.memory_limit),
        drop_duplicates=arguments.drop_duplicates,
        drop_near_duplicates=arguments.drop_near_duplicates,
        prune_ngram_tokens=0 if arguments.prune is None else arguments.prune,
        replace=arguments.replace,
        progress=progress,
        pool=pool,
    )


def refuse(arguments: argparse.Namespace, *names: str, because: str) -> None:
    """Accepts arguments only if none of `names` was given.

    Raises:
        InvalidRequest: one was.
    """
    for name in names:
        if getattr(arguments, name) not in (None, [], False, "stop", "local"):
            raise InvalidRequest(because, got=f"--{name.replace('_', '-')}", remedy="leave it out")


def require(arguments: argparse.Namespace, *names: str) -> None:
    """Accepts arguments only if all of `names` were given.

    Raises:
        InvalidRequest: one is missing.
    """
    for name in names:
        if not getattr(arguments, name):
            option = name.upper() if name == "inputs" else f"--{name.replace('_', '-')}"
            raise InvalidRequest(f"{option} is missing", remedy="see --help")
