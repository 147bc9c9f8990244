"""Pieces: documents as token ids on their way to segments, written once and read by others, in any process.

A piece is a folder that is there whole or not at all. Knows ids and files; who encodes, and which documents
go into which segment, is decided above.
"""

from __future__ import annotations

import array
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.atomic import draft_folder
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.readers.reading import Skipped
from retrieval_spec.errors import DatastoreExists
from retrieval_spec.tree import TOKEN, Tokens

_FACTS_NAME = "facts.json"

EncodedDocument = tuple[Tokens, str, int]
"""Its ids, the file that it came from, and its `document_id`."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a corpus, encoded; its arrays are mapped.

    Attributes:
        tokens: int32[n]  the documents, one after the other and nothing between them.
        stops: int64[d]  where each document ends.
        ids: int64[d]  see `document_id`.
        origins: uint32[d]  index into `origin_names`.
        origin_names: the files that documents came from.
        num_skipped_files: how many files turned out to be no text.
        skipped: what else was left out, by file.
    """

    tokens: Tokens
    stops: NDArray[np.int64]
    ids: NDArray[np.int64]
    origins: NDArray[np.uint32]
    origin_names: tuple[str, ...]
    num_skipped_files: int
    skipped: dict[Path, Skipped]

    def __len__(self) -> int:
        return int(self.stops.shape[0])

    def is_whole(self) -> bool:
        """Tells whether the arrays are as long as each other, and as the documents."""
        num_tokens = int(self.stops[-1]) if len(self) else 0
        return len(self.ids) == len(self.origins) == len(self) and len(self.tokens) == num_tokens

    def each(self, first: int, stop: int) -> Iterator[EncodedDocument]:
        """Yields the documents from `first` up to `stop`."""
        start = int(self.stops[first - 1]) if first else 0
        columns = (self.stops[first:stop], self.origins[first:stop], self.ids[first:stop])
        for end, origin, number in zip(*(column.tolist() for column in columns), strict=True):
            yield self.tokens[start:end], self.origin_names[origin], number
            start = end


def write_piece(target: Path, documents: Iterable[EncodedDocument], corpus: Corpus) -> None:
    """Writes the documents as they come, and then what was left out of the corpus that they come from.

    Raises:
        DatastoreError: the file system refused.
    """
    stops, ids, origins = array.array("q"), array.array("q"), array.array("I")
    names: dict[str, int] = {}

    def write_tokens(fd: int) -> None:
        num_tokens = 0
        with open(fd, "wb", closefd=False) as file:
            for token_ids, origin, number in documents:
                file.write(np.ascontiguousarray(token_ids, TOKEN).data)
                num_tokens += len(token_ids)
                stops.append(num_tokens)
                ids.append(number)
                origins.append(names.setdefault(origin, len(names)))

    with draft_folder(target) as draft:
        draft.write_file("tokens", write_tokens)
        for name, column in (("stops", stops), ("ids", ids), ("origins", origins)):
            draft.write_file(name, lambda fd, column=column: _write(fd, column))  # type: ignore[misc]
        facts = {"origin_names": list(names), **_left_out(corpus)}
        draft.write_file(_FACTS_NAME, lambda fd: _write(fd, json.dumps(facts).encode()))
        try:
            draft.publish()
        except DatastoreExists:  # somebody was faster who was taken for dead
            shutil.rmtree(draft.path, ignore_errors=True)


def open_piece(path: Path) -> Piece | None:
    """Maps a piece; None if there is none. One that is damaged is deleted."""
    if not path.is_dir():
        return None
    try:
        piece = _mapped_piece(path)
    except (OSError, ValueError, TypeError, KeyError):
        piece = None
    if piece is None or not piece.is_whole():
        shutil.rmtree(path, ignore_errors=True)
        return None
    return piece


def _mapped_piece(path: Path) -> Piece:
    facts = json.loads((path / _FACTS_NAME).read_bytes())
    return Piece(
        tokens=_mapped(path / "tokens", TOKEN),
        stops=_mapped(path / "stops", np.int64),
        ids=_mapped(path / "ids", np.int64),
        origins=_mapped(path / "origins", np.uint32),
        origin_names=tuple(facts["origin_names"]),
        num_skipped_files=facts["num_skipped_files"],
        skipped={Path(name): Skipped(**fields) for name, fields in facts["skipped"].items()},
    )


def _left_out(corpus: Corpus) -> dict[str, object]:
    skipped = {str(path): asdict(skipped) for path, skipped in corpus.skipped.items()}
    return {"num_skipped_files": corpus.num_skipped_files, "skipped": skipped}


def _write(fd: int, data: bytes | array.array[int]) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)


def _mapped(path: Path, dtype: Any) -> NDArray[Any]:
    if not os.path.getsize(path):
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r"))
