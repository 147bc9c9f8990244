"""From text to a datastore: read, encode, sort, write.

Memory stays within 12 bytes a token and half a gigabyte: what is read is encoded and put on disk at once.
"""

from __future__ import annotations

import array
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec import __version__
from retrieval_spec.datastore.atomic import check_free, writing
from retrieval_spec.datastore.corpus import Corpus, Document
from retrieval_spec.datastore.manifest import MAX_DEPTH_TOKENS, MAX_TOKENS, SEPARATORS, Facts, check_label
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.recipe import load_recipe
from retrieval_spec.datastore.store import check_replaceable, replace_datastore, write_datastore
from retrieval_spec.datastore.tokenizer import Tokenizer, load_tokenizer
from retrieval_spec.errors import InvalidRequest, LimitExceeded
from retrieval_spec.structures.context_array import DEPTH_TOKENS, ContextArray
from retrieval_spec.tree import TOKEN, Tokens

_BATCH_CHARACTERS = 1 << 20
_CHUNK_TOKENS = 1 << 20
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
        exclude=plan.exclude,
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
    exclude: Collection[str] = (),
    depth_tokens: int = DEPTH_TOKENS,
    threads: int | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Builds a datastore from text; on any error nothing is left behind. Returns its folder.

    Args:
        inputs: files and folders of text, JSONL (plain, gz, zst), parquet or Arrow.
        tokenizer: the target model's `tokenizer.json` or folder.
        out: where the datastore goes.
        name: what it is called; the last part of `out` by default.
        text_field: the JSON field or column that holds the text.
        exclude: names of folders that are not entered.
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
    corpus = Corpus(inputs, text_field, exclude)
    tokens, documents = _encode(corpus, encoder, target, progress)
    progress.start("sorting", len(tokens) - len(documents), "tokens")
    index = ContextArray.build(tokens, threads=threads, depth_tokens=depth_tokens, progress=progress.advance)
    facts = Facts(
        name=label,
        vocab_size=encoder.vocab_size,
        depth_tokens=depth_tokens,
        tokenizer=encoder.facts,
        created_by=f"retrieval-spec {__version__}",
    )
    write = replace_datastore if replace else write_datastore
    write(target, facts, {**index.columns(), "documents": documents}, progress)
    return target


def _check_numbers(depth_tokens: int, threads: int | None) -> None:
    """Refuses at once what would be refused after the corpus was read."""
    if not 1 <= depth_tokens <= MAX_DEPTH_TOKENS:
        raise InvalidRequest(
            "depth_tokens is out of range", got=depth_tokens, expected=f"1 to {MAX_DEPTH_TOKENS}"
        )
    if threads is not None and threads < 1:
        raise InvalidRequest("threads is out of range", got=threads, expected="1 or more")


def _encode(
    corpus: Corpus, encoder: Tokenizer, target: Path, progress: Progress
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    progress.start("encoding", corpus.num_bytes, "B")
    with writing(target), tempfile.TemporaryFile(dir=target.parent) as nameless:
        file = _TokenFile(nameless)
        for batch in _batches(corpus.documents(progress.advance)):
            file.append(encoder.encode_batch(batch))
        if not file.num_documents:
            raise InvalidRequest(
                "no documents found: the inputs hold no text",
                got=f"{corpus.num_skipped_files} files that are no UTF-8 text",
                remedy="name other inputs",
            )
        return file.tokens(), file.documents()


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    """Yields texts by the million characters: enough for all cores, and little memory."""
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document.text)
        characters += len(document.text)
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
