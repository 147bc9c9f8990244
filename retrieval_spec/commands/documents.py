"""`retrieval-spec inspect --documents`: every document of a datastore with the id that `remove` takes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.documents import Documents, shown_id
from retrieval_spec.datastore.manifest import DOCUMENT_KINDS
from retrieval_spec.datastore.segments import Segments, open_segments
from retrieval_spec.datastore.tokenizer import Tokenizer, check_same_tokenizer, load_tokenizer
from retrieval_spec.errors import InvalidRequest

_FIRST_TOKENS = 24
_SHOWN_CHARACTERS = 60
_AT_A_TIME = 256


class Listed(NamedTuple):
    """One document as it is listed; the fields are those of a line of JSON.

    Attributes:
        id: 16 hexadecimal digits; equal documents, equal ids.
        num_tokens: without the separator.
        origin: the file that it came from; empty where an older store does not say.
        text: how it begins, on one line; None without a tokenizer.
    """

    id: str
    num_tokens: int
    origin: str
    text: str | None = None

    def line(self) -> str:
        """Returns the same for people."""
        parts = [
            self.id,
            f"{self.num_tokens:>9,}",
            self.origin if self.origin.isprintable() else ascii(self.origin),
        ]
        return "  ".join(parts if self.text is None else [*parts, self.text])


def list_documents(arguments: argparse.Namespace) -> Iterator[Listed]:
    """Yields the documents in their order, a few at a time in memory.

    Raises:
        InvalidRequest: the datastore holds no documents that people wrote.
        TokenizerMismatch: `--tokenizer` is not the one that the datastore was built with.
    """
    segments = open_segments(arguments.datastore)
    if segments.manifest.kind not in DOCUMENT_KINDS:
        raise InvalidRequest(
            "only a corpus has documents",
            got=f"a datastore of kind {segments.manifest.kind}",
            expected=" or ".join(DOCUMENT_KINDS),
        )
    tokenizer = tokenizer_of(segments, arguments.tokenizer)
    for store in segments.stores:
        yield from _listed(Documents.from_columns(store.columns), arguments.origin, tokenizer)


def tokenizer_of(segments: Segments, path: str | None) -> Tokenizer | None:
    """Returns the tokenizer that shows tokens as text.

    Raises:
        TokenizerMismatch: it is not the one that the datastore was built with.
    """
    if path is None:
        return None
    tokenizer = load_tokenizer(path)
    check_same_tokenizer(
        tokenizer, segments.manifest, segments.path, remedy="name the tokenizer that it was built with"
    )
    return tokenizer


def _listed(documents: Documents, origins: Sequence[str], tokenizer: Tokenizer | None) -> Iterator[Listed]:
    is_listed = documents.come_from(origins) if origins else np.ones(len(documents), np.bool_)
    chosen = (
        (number, token_ids, origin)
        for number, (token_ids, origin) in enumerate(documents.each())
        if is_listed[number]
    )
    while group := list(islice(chosen, _AT_A_TIME)):
        texts = _beginnings([token_ids for _, token_ids, _ in group], tokenizer)
        for (number, token_ids, origin), text in zip(group, texts, strict=True):
            yield Listed(shown_id(int(documents.ids[number])), len(token_ids), origin, text)


def _beginnings(
    documents: Sequence[NDArray[np.generic]], tokenizer: Tokenizer | None
) -> Sequence[str | None]:
    if tokenizer is None:
        return [None] * len(documents)
    texts = tokenizer.decode_batch([token_ids[:_FIRST_TOKENS] for token_ids in documents])
    return [_one_line(text) for text in texts]


def _one_line(text: str) -> str:
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain if len(plain) <= _SHOWN_CHARACTERS else f"{plain[: _SHOWN_CHARACTERS - 3]}..."
