"""Which files an input stands for, and which reader each of them needs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from retrieval_spec.datastore.patterns import Patterns
from retrieval_spec.datastore.readers.arrays import read_datatrove, read_infini_gram
from retrieval_spec.datastore.readers.hub import HUB_PREFIX, hub_name, read_hub
from retrieval_spec.datastore.readers.json_array import read_json
from retrieval_spec.datastore.readers.jsonl import read_jsonl
from retrieval_spec.datastore.readers.megatron import read_megatron
from retrieval_spec.datastore.readers.npy import read_npy
from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.datastore.readers.streams import CODECS
from retrieval_spec.datastore.readers.tables import read_arrow, read_parquet
from retrieval_spec.datastore.readers.text import read_text
from retrieval_spec.errors import InvalidRequest, MissingPath

Reader = Callable[[Reading], Iterator[Content]]

_TEXT_SUFFIXES = (
    ".adoc .asm .astro .bash .bat .bib .c .cc .cfg .clj .cljs .cmake .conf .cpp .cs .css .csv .cu .cuh .cxx "
    ".dart .diff .el .elm .erl .ex .exs .f .f90 .fs .go .gradle .graphql .groovy .h .hh .hpp .hrl .hs .htm "
    ".html .hxx .ini .java .jl .js .jsx .kt .kts .less .lisp .log .lua .m .markdown .md .ml .mli .mm "
    ".nim .nix .org .pas .patch .php .pl .pm .properties .proto .ps1 .py .pyi .pyx .r .rb .rs .rst .s .sass "
    ".scala .scm .scss .sh .sql .sv .svelte .swift .tcl .tex .tf .toml .ts .tsv .tsx .txt .v .vhd .vim .vue "
    ".xml .yaml .yml .zig .zsh"
)
_INFINI_GRAM_NAME = re.compile(r"tokenized\.\d+")
_READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
    ".ipc": read_arrow,
    ".ds": read_datatrove,
    ".npy": read_npy,
    **dict.fromkeys(_TEXT_SUFFIXES.split(), read_text),
    ".json": read_json,
}
_COMPRESSIBLE = (read_text, read_jsonl, read_json)
# What `save_to_disk` writes about the tables beside it: no document.
_TABLE_FACTS = {"dataset_info.json", "state.json"}
_TABLES_FACTS = "dataset_dict.json"


@dataclass(frozen=True, slots=True)
class CorpusFile:
    """A file of a corpus and what reads it; or a dataset of the hub, whose path is its name."""

    path: Path
    reader: Reader

    @property
    def num_bytes(self) -> int:
        """The size on disk; 0 for what is elsewhere."""
        return 0 if self.reader is read_hub else self.path.stat().st_size

    def state(self) -> list[object]:
        """Returns what the content follows from, as far as can be told without reading it."""
        if self.reader is read_hub:
            return [str(self.path)]
        stat = self.path.stat()
        return [str(self.path.absolute()), stat.st_size, stat.st_mtime_ns]


def find_files(path: Path, include: Patterns | None, exclude: Patterns) -> Iterator[CorpusFile]:
    """Yields the file, or the files of the folder in the order of their names, or the dataset `hf:...`.

    Raises:
        MissingPath: there is no such file or folder.
        InvalidRequest: a file was named that no reader knows, or a dataset in another way.
    """
    if str(path).startswith(HUB_PREFIX):
        hub_name(str(path))
        yield CorpusFile(path, read_hub)
    elif path.is_dir():
        yield from _in_folder(path, include, exclude)
    elif path.is_file():
        reader = reader_of(path) or (None if path.suffix else read_text)
        if reader is None:
            raise InvalidRequest(
                f"cannot tell how to read {path}",
                got=f"suffix {path.suffix}",
                expected="a text or source file or .jsonl, each also with .gz or .zst, .parquet or .arrow, "
                "or an array of token ids: .npy, .ds, .bin beside its .idx, tokenized.N",
            )
        yield CorpusFile(path, reader)
    else:
        raise MissingPath("no such file or folder", got=path)


def _in_folder(root: Path, include: Patterns | None, exclude: Patterns) -> Iterator[CorpusFile]:
    for parent, folders, names in os.walk(root, onerror=_refuse):
        above = Path(parent).relative_to(root)
        folders[:] = sorted(
            name for name in folders if not (name.startswith(".") or exclude.match((above / name).as_posix()))
        )
        for name in sorted(set(names) - _facts_among(names)):
            path, inside = Path(parent, name), (above / name).as_posix()
            if name.startswith(".") or exclude.match(inside) or not path.is_file():
                continue
            reader = _reader_in_folder(path) if include is None else _included(path, inside, include)
            if reader is not None:
                yield CorpusFile(path, reader)


def _refuse(error: OSError) -> NoReturn:
    raise InvalidRequest(
        f"cannot read folder {error.filename}", got=error.strerror, remedy="exclude it or make it readable"
    ) from error


def _facts_among(names: list[str]) -> set[str]:
    tables = any(name.endswith(".arrow") for name in names)
    return {_TABLES_FACTS, *(_TABLE_FACTS if tables else ())}


def _included(path: Path, inside: str, include: Patterns) -> Reader | None:
    """Returns the reader of a file that is wanted; one whose own name was named is text if nothing else."""
    if include.match_name(path.name):
        return reader_of(path) or read_text
    return _reader_in_folder(path) if include.match(inside) else None


def _reader_in_folder(path: Path) -> Reader | None:
    # Arrays of any kind stand in folders of source; only one that was named is known to hold token ids.
    return None if path.suffix.lower() == ".npy" else reader_of(path)


def reader_of(path: Path) -> Reader | None:
    """Returns the reader for a file of this name, or None."""
    if _INFINI_GRAM_NAME.fullmatch(path.name):
        return read_infini_gram
    suffixes = [suffix.lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if last in CODECS:
        reader = _READERS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return reader if reader in _COMPRESSIBLE else None
    if last == ".bin":
        return read_megatron if path.with_suffix(".idx").is_file() else None
    return _READERS.get(last)
