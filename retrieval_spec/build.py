"""From text to a datastore: read, encode, sort, write.

Memory stays within 12 bytes a token and half a gigabyte: what is read is encoded and put on disk at once.
"""

from __future__ import annotations

import logging
from pathlib import Path

from retrieval_spec.datastore.atomic import check_free
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.manifest import check_label
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.recipe import Recipe, load_recipe
from retrieval_spec.datastore.store import check_replaceable
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.encoding import (
    Encoder,
    batches_of,
    ids_of,
    near_duplicates_of,
    no_documents,
    segment_tokens_for,
)
from retrieval_spec.indexing import Plan, check_numbers, facts_of, unfinished
from retrieval_spec.near_duplicates import check_threshold
from retrieval_spec.spread import Job, Pool, SpreadBuild
from retrieval_spec.structures.context_array import DEPTH_TOKENS

logger = logging.getLogger(__name__)


def build_recipe(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    threads: int | None = None,
    memory_limit_bytes: int | None = None,
    replace: bool = False,
    progress: Progress | None = None,
    pool: Pool | None = None,
) -> Path:
    """Builds what a recipe describes, at `out` if that is given; returns the datastore's folder.

    Raises:
        RetrievalSpecError: as `build_datastore` and `load_recipe`.
    """
    plan = load_recipe(recipe)
    return build_datastore(
        _corpus_of(plan),
        tokenizer=plan.tokenizer,
        out=plan.out if out is None else out,
        name=plan.name,
        depth_tokens=DEPTH_TOKENS if plan.depth_tokens is None else plan.depth_tokens,
        threads=threads,
        drop_duplicates=plan.drop_duplicates,
        drop_near_duplicates=plan.drop_near_duplicates,
        memory_limit_bytes=memory_limit_bytes,
        prune_ngram_tokens=plan.prune_ngram_tokens,
        replace=replace,
        progress=progress,
        pool=pool,
    )


def _corpus_of(recipe: Recipe) -> Corpus:
    return Corpus(
        recipe.inputs,
        recipe.text_field,
        recipe.exclude,
        include=recipe.include,
        on_error=recipe.on_error,
        skip_licence_headers=recipe.skip_licence_headers,
    )


def build_datastore(
    corpus: Corpus,
    *,
    tokenizer: str | Path,
    out: str | Path,
    name: str | None = None,
    depth_tokens: int = DEPTH_TOKENS,
    threads: int | None = None,
    memory_limit_bytes: int | None = None,
    drop_duplicates: bool = False,
    drop_near_duplicates: float | None = None,
    prune_ngram_tokens: int = 0,
    replace: bool = False,
    progress: Progress | None = None,
    pool: Pool | None = None,
) -> Path:
    """Builds a datastore from text; on any error nothing of it is at `out`. Returns its folder.

    A corpus that is too long for the memory becomes several segments. Finished ones wait beside `out`: a
    build that was killed and is begun again goes on after them.

    Args:
        corpus: the documents.
        tokenizer: the target model's `tokenizer.json` or folder.
        out: where the datastore goes.
        name: what it is called; the last part of `out` by default.
        depth_tokens: how many tokens of a context the order considers.
        threads: threads that sort; all cores by default, and one for a segment on a pool.
        memory_limit_bytes: what the build may take, on a pool for each segment; by default half of what
            the machine has.
        drop_duplicates: whether a document that came before is left out.
        drop_near_duplicates: from which similarity on a document is left out that is nearly one that came
            before, 0.5 to 1.0 (see `near_duplicates.NearDuplicates`); what is the same goes too.
        prune_ngram_tokens: of all places with so many equal tokens in a row one is indexed: smaller, and
            no worse to draft from (see `structures.pruning`); 0 indexes them all.
        replace: whether a datastore that stands at `out` gives way.
        progress: told of the stages.
        pool: does the work in other processes, such as `cluster.RayPool`; the bytes are the same.

    Raises:
        RetrievalSpecError: the class says which: `MissingPath`, `InvalidRequest`, `DatastoreExists`,
            `MissingDependency`, `LimitExceeded`, or `DatastoreError` from the file system.
    """
    progress = progress or NoProgress()
    target = Path(out).absolute()
    label = check_label("the name of the datastore", target.name if name is None else name)
    check_numbers(depth_tokens, threads, prune_ngram_tokens)
    if drop_near_duplicates is not None:
        drop_near_duplicates, drop_duplicates = check_threshold(drop_near_duplicates), True
    (check_replaceable if replace else check_free)(target)
    max_tokens = segment_tokens_for(memory_limit_bytes)
    encoder = load_tokenizer(tokenizer)
    facts = facts_of(label, encoder, depth_tokens, prune_ngram_tokens)
    plan = Plan(target, facts, threads, replace, progress)
    progress.start("encoding", corpus.num_bytes, "B")
    source = {
        **corpus.fingerprint(),
        "max_tokens": max_tokens,
        "drop_duplicates": drop_duplicates,
        "drop_near_duplicates": drop_near_duplicates,
    }
    with unfinished(plan, source) as begun:
        earlier = () if pool else tuple(begun.documents())
        known_ids = ids_of(earlier) if drop_duplicates else None
        near = near_duplicates_of(earlier, drop_near_duplicates)
        encoding = Encoder(encoder, target, max_tokens, known_ids, near)
        if pool is not None:
            job = Job(begun.folder, Path(tokenizer).absolute(), plan.facts, threads or 1)
            entries = SpreadBuild(job, corpus, encoding, pool, progress).run()
            if entries:
                begun.publish(entries)
        else:
            batches = batches_of(corpus.documents(progress.advance, encoder))
            begun.write(encoding.parts(batches, begun.num_read))
    if not begun.is_published:
        raise no_documents(corpus)
    _tell(encoding)
    return target


def _tell(encoding: Encoder) -> None:
    if encoding.num_duplicates or encoding.num_near_duplicates:
        logger.warning(
            "left out %d documents that came before and %d that are nearly one of those",
            encoding.num_duplicates,
            encoding.num_near_duplicates,
        )
