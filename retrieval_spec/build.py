"""From text to a datastore: read, encode, sort, write. The text may be that of another tokenizer's datastore.

Memory stays within 12 bytes a token and half a gigabyte: what is read is encoded and put on disk at once.
"""

from __future__ import annotations

import array
import hashlib
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec import __version__
from retrieval_spec.datastore.atomic import check_free, writing
from retrieval_spec.datastore.corpus import Corpus, Document
from retrieval_spec.datastore.manifest import MAX_DEPTH_TOKENS, MAX_TOKENS, SEPARATORS, Facts, check_label
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.readers.reading import OnError
from retrieval_spec.datastore.recipe import load_recipe
from retrieval_spec.datastore.store import (
    Datastore,
    check_replaceable,
    open_datastore,
    replace_datastore,
    verify_datastore,
    write_datastore,
)
from retrieval_spec.datastore.tokenizer import Tokenizer, check_same_tokenizer, load_tokenizer
from retrieval_spec.errors import DatastoreExists, InvalidRequest, LimitExceeded
from retrieval_spec.structures.context_array import DEPTH_TOKENS, ContextArray
from retrieval_spec.tree import TOKEN, Tokens

_BATCH_CHARACTERS = 1 << 20
_CHUNK_TOKENS = 1 << 20
_BATCH_TOKENS = 1 << 18
_KIND = "context_array"
_SEPARATOR = SEPARATORS["<i4"]


def build_recipe(
    recipe: str | Path,
    *,
    out: str | Path | None = None,
    threads: int | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Builds what a recipe describes, at `out` if that is given; returns the datastore's folder.

    Raises:
        RetrievalSpecError: as `build_datastore` and `load_recipe`.
    """
    plan = load_recipe(recipe)
    return build_datastore(
        plan.inputs,
        tokenizer=plan.tokenizer,
        out=plan.out if out is None else out,
        name=plan.name,
        text_field=plan.text_field,
        include=plan.include,
        exclude=plan.exclude,
        on_error=plan.on_error,
        skip_licence_headers=plan.skip_licence_headers,
        depth_tokens=DEPTH_TOKENS if plan.depth_tokens is None else plan.depth_tokens,
        threads=threads,
        replace=replace,
        progress=progress,
    )


def build_datastore(
    inputs: Sequence[str | Path],
    *,
    tokenizer: str | Path,
    out: str | Path,
    name: str | None = None,
    text_field: str | None = None,
    include: Collection[str] = (),
    exclude: Collection[str] = (),
    on_error: OnError = "stop",
    skip_licence_headers: bool = False,
    depth_tokens: int = DEPTH_TOKENS,
    threads: int | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Builds a datastore from text; on any error nothing is left behind. Returns its folder.

    Args:
        inputs: files and folders of text, JSONL (plain, gz, zst), parquet, Arrow or token arrays.
        tokenizer: the target model's `tokenizer.json` or folder.
        out: where the datastore goes.
        name: what it is called; the last part of `out` by default.
        text_field: the JSON field or column that holds the text.
        include: names or glob patterns of what alone is read in folders.
        exclude: names or glob patterns of what is left out of folders.
        on_error: whether what cannot be read stops the build, or is counted, told and passed over.
        skip_licence_headers: whether source files are read without a licence comment at their top.
        depth_tokens: how many tokens of a context the order considers.
        threads: threads that sort; all cores by default.
        replace: whether a datastore that stands at `out` gives way.
        progress: told of the stages.

    Raises:
        RetrievalSpecError: the class says which: `MissingPath`, `InvalidRequest`, `DatastoreExists`,
            `MissingDependency`, `LimitExceeded`, or `DatastoreError` from the file system.
    """
    progress = progress or NoProgress()
    target = Path(out).absolute()
    label = check_label("the name of the datastore", target.name if name is None else name)
    _check_numbers(depth_tokens, threads)
    (check_replaceable if replace else check_free)(target)
    encoder = load_tokenizer(tokenizer)
    corpus = Corpus(
        inputs,
        text_field,
        exclude,
        include=include,
        on_error=on_error,
        skip_licence_headers=skip_licence_headers,
    )
    tokens, documents = encode_corpus(corpus, encoder, target, progress)
    facts = _facts(label, encoder, depth_tokens)
    _write(target, tokens, documents, facts, threads, replace, progress)
    return target


def encode_corpus(
    corpus: Corpus, encoder: Tokenizer, target: Path, progress: Progress
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Returns the corpus as token ids, a separator behind each document, and where documents start.

    Raises:
        InvalidRequest: the inputs hold no text.
        LimitExceeded: more tokens than one datastore holds.
    """
    progress.start("encoding", corpus.num_bytes, "B")
    batches = _batches(corpus.documents(progress.advance, encoder))
    tokens, documents = _encode((_token_ids(batch, encoder) for batch in batches), target)
    if not len(documents):
        raise InvalidRequest(
            "no documents found: the inputs hold no text",
            got=f"{corpus.num_skipped_files} files that are no UTF-8 text",
            remedy="name other inputs",
        )
    return tokens, documents


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
    store = open_datastore(datastore)
    old, new = _tokenizers_of(store, from_tokenizer, to_tokenizer)
    target = (_place_beside(store, new) if out is None else Path(out)).absolute()
    _check_numbers(store.manifest.depth_tokens, threads)
    if out is None and not replace and target.is_dir():
        return _checked(target, new)
    (check_replaceable if replace else check_free)(target)
    verify_datastore(datastore, progress)
    progress.start("translating", store.manifest.num_tokens, "tokens")
    batches = map(new.encode_batch, _texts(store, old, progress))
    tokens, documents = _encode(batches, target)
    if not len(documents):
        raise InvalidRequest("the datastore holds no text", got=datastore, remedy="translate another one")
    facts = _facts(store.manifest.name, new, store.manifest.depth_tokens)
    try:
        _write(target, tokens, documents, facts, threads, replace, progress)
    except DatastoreExists:
        if out is not None:
            raise
        _checked(target, new)  # another process was faster
    return target


def _tokenizers_of(
    store: Datastore, from_tokenizer: str | Path, to_tokenizer: str | Path
) -> tuple[Tokenizer, Tokenizer]:
    if store.manifest.kind != _KIND:
        raise InvalidRequest(
            "only a corpus can be translated",
            got=f"{store.path} of kind {store.manifest.kind}",
            expected=_KIND,
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


def _place_beside(store: Datastore, new: Tokenizer) -> Path:
    """Returns where the translation goes that nobody named: another one for each content and tokenizer."""
    manifest = store.manifest
    contents = [entry.sha256 for _, entry in sorted(manifest.files.items())]
    keys = [manifest.tokenizer.fingerprint, new.fingerprint, str(manifest.depth_tokens), *contents]
    path = store.path.absolute()
    return path.with_name(f"{path.name}.{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:16]}")


def _checked(target: Path, new: Tokenizer) -> Path:
    check_same_tokenizer(new, open_datastore(target).manifest, target, remedy="remove it, then build again")
    return target


def _texts(store: Datastore, old: Tokenizer, progress: Progress) -> Iterator[list[str]]:
    """Yields the documents as texts, so many at once that the tokenizers' threads have work."""
    tokens = store.columns["tokens"]
    edges = [*store.columns["documents"].tolist(), len(tokens)]
    batch: list[NDArray[Any]] = []
    num_tokens = 0
    for start, stop in pairwise(edges):
        batch.append(tokens[start : stop - 1])
        num_tokens += stop - start
        if num_tokens >= _BATCH_TOKENS:
            yield old.decode_batch(batch)
            progress.advance(num_tokens)
            batch, num_tokens = [], 0
    if batch:
        yield old.decode_batch(batch)
        progress.advance(num_tokens)


def _facts(label: str, encoder: Tokenizer, depth_tokens: int) -> Facts:
    return Facts(
        name=label,
        vocab_size=encoder.vocab_size,
        depth_tokens=depth_tokens,
        tokenizer=encoder.facts,
        created_by=f"retrieval-spec {__version__}",
    )


def _write(
    target: Path,
    tokens: NDArray[Any],
    documents: NDArray[np.int64],
    facts: Facts,
    threads: int | None,
    replace: bool,
    progress: Progress,
) -> None:
    progress.start("sorting", len(tokens) - len(documents), "tokens")
    index = ContextArray.build(
        tokens, threads=threads, depth_tokens=facts.depth_tokens, progress=progress.advance
    )
    write = replace_datastore if replace else write_datastore
    write(target, facts, {**index.columns(), "documents": documents}, progress)


def _check_numbers(depth_tokens: int, threads: int | None) -> None:
    """Refuses at once what would be refused after the corpus was read."""
    if not 1 <= depth_tokens <= MAX_DEPTH_TOKENS:
        raise InvalidRequest(
            "depth_tokens is out of range", got=depth_tokens, expected=f"1 to {MAX_DEPTH_TOKENS}"
        )
    if threads is not None and threads < 1:
        raise InvalidRequest("threads is out of range", got=threads, expected="1 or more")


def _encode(batches: Iterable[Iterable[Tokens]], target: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Returns the corpus and where its documents start."""
    with writing(target), tempfile.TemporaryFile(dir=target.parent) as nameless:
        file = _TokenFile(nameless)
        for batch in batches:
            file.append(batch)
        return file.tokens(), file.documents()


def _token_ids(batch: Sequence[Document], encoder: Tokenizer) -> Iterator[Tokens]:
    """Yields the ids of each document, encoding those that are texts."""
    encoded = iter(encoder.encode_batch([document.text for document in batch if document.text is not None]))
    for document in batch:
        yield next(encoded) if document.token_ids is None else document.token_ids


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yields documents by the million characters: enough for all cores, and little memory."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text or ()) + 4 * len(
            () if document.token_ids is None else document.token_ids
        )
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _TokenFile:
    """The corpus as it grows, in a nameless file: how wide its ids must be is known at the end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._starts = array.array("q")
        self._num_tokens = 0
        self._largest_id = 0

    @property
    def num_documents(self) -> int:
        return len(self._starts)

    def append(self, documents: Iterable[Tokens]) -> None:
        """Adds documents, each with a separator behind it; those without a token are left out."""
        for token_ids in documents:
            if not len(token_ids):
                continue
            self._starts.append(self._num_tokens)
            self._num_tokens += len(token_ids) + 1
            self._largest_id = max(self._largest_id, int(token_ids.max()))
            self._file.write(np.append(token_ids, TOKEN(_SEPARATOR)).tobytes())
        if self._num_tokens > MAX_TOKENS:
            raise LimitExceeded(
                "the corpus is too long for one datastore",
                got=f"more than {MAX_TOKENS} tokens",
                remedy="build several datastores and serve them together",
            )

    def tokens(self) -> NDArray[Any]:
        """Returns the whole corpus, uint16[n] if every id leaves its largest value free, else int32[n]."""
        self._file.flush()
        self._file.seek(0, os.SEEK_SET)
        if self._largest_id >= SEPARATORS["<u2"]:
            return np.fromfile(self._file, TOKEN, self._num_tokens)
        tokens = np.empty(self._num_tokens, np.uint16)
        for start in range(0, self._num_tokens, _CHUNK_TOKENS):
            chunk = np.fromfile(self._file, TOKEN, min(_CHUNK_TOKENS, self._num_tokens - start))
            tokens[start : start + len(chunk)] = np.where(chunk == _SEPARATOR, SEPARATORS["<u2"], chunk)
        return tokens

    def documents(self) -> NDArray[np.int64]:
        """Returns int64[d], where each document starts."""
        return np.frombuffer(self._starts, np.int64) if self._starts else np.zeros(0, np.int64)
