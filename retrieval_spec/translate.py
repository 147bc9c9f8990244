"""A corpus of one tokenizer's ids, made again of another's: from a datastore to a datastore."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retrieval_spec.datastore.atomic import check_free
from retrieval_spec.datastore.corpus import Document
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.manifest import CORPUS_KIND
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.segments import Segments, open_segments
from retrieval_spec.datastore.store import check_replaceable
from retrieval_spec.datastore.tokenizer import Tokenizer, check_same_tokenizer, load_tokenizer
from retrieval_spec.encoding import MAX_SEGMENT_TOKENS, Encoder, only_part
from retrieval_spec.errors import DatastoreExists, InvalidRequest
from retrieval_spec.indexing import Plan, check_numbers, facts_of, write_alone

_BATCH_TOKENS = 1 << 18


def translate_datastore(
    datastore: str | Path,
    *,
    from_tokenizer: str | Path,
    to_tokenizer: str | Path,
    out: str | Path | None = None,
    threads: int | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Builds a datastore for another tokenizer from the text of one that exists; returns its folder.

    The text is what the old tokenizer makes of the ids, special tokens included. Where that is not quite
    what was encoded once (a token that is half a character, a normaliser), it is a corpus all the same.

    Args:
        datastore: the folder of the datastore that exists; it stays as it is.
        from_tokenizer: the `tokenizer.json` or folder that it was built with.
        to_tokenizer: the target model's.
        out: where the datastore goes. By default a place beside the old one whose name says which ids were
            translated from which tokenizer to which; what was built there before is then used again.
        threads: threads that sort; all cores by default.
        replace: whether a datastore that stands at that place gives way.
        progress: told of the stages.

    Raises:
        TokenizerMismatch: `from_tokenizer` is not the one that the datastore was built with.
        RetrievalSpecError: as `build_datastore`, and `InvalidRequest` if there is nothing to translate.
    """
    progress = progress or NoProgress()
    store = open_segments(datastore)
    old, new = _tokenizers_of(store, from_tokenizer, to_tokenizer)
    target = (_place_beside(store, new) if out is None else Path(out)).absolute()
    check_numbers(store.manifest.depth_tokens, threads)
    if out is None and not replace and target.is_dir():
        return _checked(target, new)
    (check_replaceable if replace else check_free)(target)
    store.check(progress)
    progress.start("translating", store.manifest.num_tokens, "tokens")
    documents = only_part(Encoder(new, target, MAX_SEGMENT_TOKENS).parts(_texts(store, old, progress)))
    if documents is None:
        raise InvalidRequest("the datastore holds no text", got=datastore, remedy="translate another one")
    manifest = store.manifest
    facts = facts_of(manifest.name, new, manifest.depth_tokens, manifest.pruned_ngram_tokens)
    plan = Plan(target, facts, threads, replace, progress)
    try:
        write_alone(plan, documents)
    except DatastoreExists:
        if out is not None:
            raise
        _checked(target, new)  # another process was faster
    return target


def _tokenizers_of(
    store: Segments, from_tokenizer: str | Path, to_tokenizer: str | Path
) -> tuple[Tokenizer, Tokenizer]:
    if store.manifest.kind != CORPUS_KIND:
        raise InvalidRequest(
            "only a corpus can be translated",
            got=f"{store.path} of kind {store.manifest.kind}",
            expected=CORPUS_KIND,
            remedy="build it again from its text",
        )
    old, new = load_tokenizer(from_tokenizer), load_tokenizer(to_tokenizer)
    check_same_tokenizer(old, store.manifest, store.path, remedy="name the tokenizer that it was built with")
    if new.fingerprint == old.fingerprint:
        raise InvalidRequest(
            "both tokenizers give the same ids",
            got=to_tokenizer,
            remedy=f"use {store.path} as it is",
        )
    return old, new


def _place_beside(store: Segments, new: Tokenizer) -> Path:
    """Returns where the translation goes that nobody named: another one for each content and tokenizer."""
    manifest = store.manifest
    contents = [
        entry.sha256 for segment in store.stores for _, entry in sorted(segment.manifest.files.items())
    ]
    keys = [manifest.tokenizer.fingerprint, new.fingerprint, str(manifest.depth_tokens), *contents]
    path = store.path.absolute()
    return path.with_name(f"{path.name}.{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}")


def _checked(target: Path, new: Tokenizer) -> Path:
    check_same_tokenizer(new, open_segments(target).manifest, target, remedy="remove it, then build again")
    return target


def _texts(store: Segments, old: Tokenizer, progress: Progress) -> Iterator[list[Document]]:
    """Yields the documents as texts, so many at once that the tokenizers' threads have work."""
    batch: list[tuple[NDArray[Any], str]] = []
    num_tokens = 0
    every = chain.from_iterable(Documents.from_columns(part.columns).each() for part in store.stores)
    for token_ids, origin in every:
        batch.append((token_ids, origin))
        num_tokens += len(token_ids) + 1
        if num_tokens >= _BATCH_TOKENS:
            yield _decoded(batch, old)
            progress.advance(num_tokens)
            batch, num_tokens = [], 0
    if batch:
        yield _decoded(batch, old)
        progress.advance(num_tokens)


def _decoded(batch: list[tuple[NDArray[Any], str]], old: Tokenizer) -> list[Document]:
    texts = old.decode_batch([token_ids for token_ids, _ in batch])
    return [Document(text, None, origin) for text, (_, origin) in zip(texts, batch, strict=True)]
