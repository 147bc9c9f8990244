"""A corpus: files and folders of text as one stream of documents, in the same order every time.

Finds the files and chooses the reader; how a format is read stands in `formats.py`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval_spec.datastore.formats import (
    NotText,
    Reader,
    read_arrow,
    read_jsonl,
    read_parquet,
    read_text,
)
from retrieval_spec.errors import InvalidRequest, MissingPath

MAX_DOCUMENT_CHARACTERS = 1 << 20
"""A longer text becomes several documents, cut after a line where there is one."""

_TEXT_SUFFIXES = (
    ".adoc .asm .astro .bash .bat .bib .c .cc .cfg .clj .cljs .cmake .conf .cpp .cs .css .csv .cu .cuh .cxx "
    ".dart .diff .el .elm .erl .ex .exs .f .f90 .fs .go .gradle .graphql .groovy .h .hh .hpp .hrl .hs .htm "
    ".html .hxx .ini .java .jl .js .json .jsx .kt .kts .less .lisp .log .lua .m .markdown .md .ml .mli .mm "
    ".nim .nix .org .pas .patch .php .pl .pm .properties .proto .ps1 .py .pyi .pyx .r .rb .rs .rst .s .sass "
    ".scala .scm .scss .sh .sql .sv .svelte .swift .tcl .tex .tf .toml .ts .tsv .tsx .txt .v .vhd .vim .vue "
    ".xml .yaml .yml .zig .zsh"
)
_COMPRESSION_SUFFIXES = (".gz", ".zst")
_READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
    ".ipc": read_arrow,
    **dict.fromkeys(_TEXT_SUFFIXES.split(), read_text),
}
_COMPRESSIBLE = (read_text, read_jsonl)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus, and the file that it stands in."""

    text: str
    source: Path


@dataclass(frozen=True, slots=True)
class _File:
    path: Path
    reader: Reader


class Corpus:
    """The documents of the inputs; `num_skipped_files` counts the files that turned out to be no text."""

    def __init__(
        self, inputs: Sequence[str | Path], text_field: str | None = None, exclude: Collection[str] = ()
    ) -> None:
        """Finds the files.

        Args:
            inputs: files, and folders of files with known suffixes; hidden ones are left out.
            text_field: the JSON field or column with the text; without it see `formats.py`.
            exclude: names of folders that are not entered.

        Raises:
            MissingPath: an input does not exist.
            InvalidRequest: an input is of an unknown format, or there is no file at all.
        """
        files = {file.path: file for name in inputs for file in _find(Path(name), exclude)}
        if not files:
            raise InvalidRequest(
                "no documents found",
                got=", ".join(map(str, inputs)) or "no input",
                expected="text files, JSONL, parquet or Arrow files, or folders of them",
            )
        self._files = list(files.values())
        self._text_field = text_field
        self.num_skipped_files = 0

    @property
    def num_bytes(self) -> int:
        """The size of all files as they are on disk."""
        return sum(file.path.stat().st_size for file in self._files)

    def documents(self, advance: Callable[[int], None] | None = None) -> Iterator[Document]:
        """Yields the documents that are not empty; `advance` is told how many bytes of files were read.

        Raises:
            InvalidRequest: a file is damaged, a line is no JSON, or a record has no text.
        """
        for file in self._files:
            for text in self._texts(file, advance or _ignore):
                yield from (Document(piece, file.path) for piece in _pieces(text) if piece)

    def _texts(self, file: _File, advance: Callable[[int], None]) -> Iterator[str]:
        try:
            yield from file.reader(file.path, self._text_field, advance)
        except NotText as error:
            self.num_skipped_files += 1
            _log.warning("skipped: %s", error)


def _ignore(num_bytes: int) -> None:
    """Tells nobody."""


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > MAX_DOCUMENT_CHARACTERS:
        limit = start + MAX_DOCUMENT_CHARACTERS
        end = text.rfind("\n", start, limit) + 1 or limit
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _find(path: Path, exclude: Collection[str]) -> Iterator[_File]:
    if path.is_dir():
        yield from _find_in_folder(path, exclude)
    elif path.is_file():
        reader = _reader_of(path) if path.suffix else read_text
        if reader is None:
            raise InvalidRequest(
                f"cannot tell how to read {path}",
                got=f"suffix {path.suffix}",
                expected="a text or source file or .jsonl, each also with .gz or .zst, .parquet or .arrow",
            )
        yield _File(path, reader)
    else:
        raise MissingPath("no such file or folder", got=path)


def _find_in_folder(folder: Path, exclude: Collection[str]) -> Iterator[_File]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not (name.startswith(".") or name in exclude))
        for name in sorted(names):
            path = Path(parent, name)
            reader = _reader_of(path)
            if reader is not None and not name.startswith(".") and path.is_file():
                yield _File(path, reader)


def _reader_of(path: Path) -> Reader | None:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSION_SUFFIXES:
        reader = _READERS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return reader if reader in _COMPRESSIBLE else None
    return _READERS.get(suffixes[-1]) if suffixes else None
