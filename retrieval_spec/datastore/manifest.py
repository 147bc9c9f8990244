"""The manifest of a datastore: its fields, their checks, and the bytes of `manifest.json`.

Everything here works on bytes and values; files are the store's business. `datastores/FORMAT.md` is the
specification.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval_spec.datastore.sealed_json import (
    MAX_INT64,
    SHA256,
    Fields,
    corrupt,
    is_label,
    parse_sealed,
    sealed_json,
    short,
)
from retrieval_spec.errors import InvalidRequest

FORMAT_NAME = "retrieval-spec-datastore"
FORMAT_VERSION = 1
CORPUS_KIND = "context_array"
"""The kind of datastores that are text: an index over contexts."""
DENSE_KIND = "dense"
"""The kind of datastores that are a model's states over a text: an index for nearest neighbours."""
DOCUMENT_KINDS = (CORPUS_KIND, DENSE_KIND)
"""Kinds that hold documents which people wrote: these can be listed, added and removed."""
MANIFEST_NAME = "manifest.json"
MAX_TOKENS = 2**32
"""Positions are uint32: a larger corpus is several datastores."""
MAX_DEPTH_TOKENS = 64

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("|u1", "<u2", "<i4", "<u4", "<i8", "<f4")
}
SEPARATORS = {"<u2": 2**16 - 1, "<i4": 2**31 - 1}
"""Token type -> the id that ends every document: the largest value, never a token of the vocabulary."""

TRANSLATE = (
    "build it again with the tokenizer of the target model, or translate it: "
    "retrieval-spec build --from-datastore DIR --from-tokenizer ITS_OWN --tokenizer THE_MODELS"
)
_FILE_NAME = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_SEAL = "manifest_sha256"


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """Which tokenizer the ids come from: `fingerprint` decides, the rest lets a person recognise it."""

    fingerprint: str
    model: str = "unknown"
    vocab_size: int = 0
    num_added_tokens: int = 0
    num_merges: int = 0
    normalizer: str = "none"
    pre_tokenizer: str = "none"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the datastore: a flat little-endian array, nothing before and nothing after it."""

    column: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the columns of a datastore cannot say about themselves.

    `vocab_size` is the tokenizer's: every id of the corpus is below it. A model may have more ids.
    `model_fingerprint` says whose hidden states a dense datastore holds; empty for other kinds.
    Of n-grams of `pruned_ngram_tokens` a context array holds each once; 0 says that it holds all.
    """

    name: str
    vocab_size: int
    depth_tokens: int
    tokenizer: TokenizerFacts
    created_by: str
    kind: str = CORPUS_KIND
    model_fingerprint: str = ""
    pruned_ngram_tokens: int = 0


@dataclass(frozen=True, kw_only=True)
class Manifest(Facts):
    """The facts and what follows from the columns; `num_tokens` counts the separators too."""

    num_tokens: int
    num_documents: int
    token_dtype: str
    separator: int
    files: Mapping[str, FileEntry]
    format_version: int = FORMAT_VERSION


def format_manifest(manifest: Manifest) -> bytes:
    """Returns the bytes of `manifest.json`, sealed with their own checksum."""
    tokenizer = manifest.tokenizer
    fields = {
        "format": FORMAT_NAME,
        "version": manifest.format_version,
        "kind": manifest.kind,
        "name": manifest.name,
        "created_by": manifest.created_by,
        "num_tokens": manifest.num_tokens,
        "num_documents": manifest.num_documents,
        "vocab_size": manifest.vocab_size,
        "token_dtype": manifest.token_dtype,
        "separator": manifest.separator,
        "depth_tokens": manifest.depth_tokens,
        "tokenizer": {
            "fingerprint": tokenizer.fingerprint,
            "model": tokenizer.model,
            "vocab_size": tokenizer.vocab_size,
            "num_added_tokens": tokenizer.num_added_tokens,
            "num_merges": tokenizer.num_merges,
            "normalizer": tokenizer.normalizer,
            "pre_tokenizer": tokenizer.pre_tokenizer,
        },
        **({"model_fingerprint": manifest.model_fingerprint} if manifest.model_fingerprint else {}),
        **({"pruned_ngram_tokens": manifest.pruned_ngram_tokens} if manifest.pruned_ngram_tokens else {}),
        "files": {name: _file_fields(entry) for name, entry in sorted(manifest.files.items())},
    }
    return sealed_json(fields, _SEAL)


def _file_fields(entry: FileEntry) -> dict[str, object]:
    return {
        "column": entry.column,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "bytes": entry.num_bytes,
        "sha256": entry.sha256,
    }


def parse_manifest(data: bytes) -> Manifest:
    """Returns the manifest that `data` holds; nothing in it is trusted before it was checked.

    The version is looked at before anything else, so that a file of a later format is called newer,
    not broken.

    Raises:
        DatastoreCorrupt: not a manifest, an altered one, or a field of a wrong type or value.
        DatastoreVersion: a format or a kind that this version does not read.
    """
    fields = parse_sealed(data, MANIFEST_NAME, FORMAT_NAME, FORMAT_VERSION, _SEAL)
    return _read_fields(fields)


def _read_fields(fields: Fields) -> Manifest:
    token_dtype = fields.one_of("token_dtype", SEPARATORS)
    separator = SEPARATORS[token_dtype]
    return Manifest(
        name=fields.text("name"),
        kind=fields.text("kind"),
        created_by=fields.text("created_by"),
        vocab_size=fields.integer("vocab_size", 1, 2**31 - 1),
        depth_tokens=fields.integer("depth_tokens", 1, MAX_DEPTH_TOKENS),
        num_tokens=fields.integer("num_tokens", 0, MAX_TOKENS),
        num_documents=fields.integer("num_documents", 0, MAX_TOKENS),
        token_dtype=token_dtype,
        separator=fields.integer("separator", separator, separator),
        tokenizer=_read_tokenizer(fields.object("tokenizer")),
        model_fingerprint=_read_model(fields),
        pruned_ngram_tokens=_read_pruning(fields),
        files=_read_files(fields.object("files")),
    )


def _read_tokenizer(fields: Fields) -> TokenizerFacts:
    return TokenizerFacts(
        fingerprint=fields.matching("fingerprint", _FINGERPRINT),
        model=fields.text("model"),
        vocab_size=fields.integer("vocab_size", 0, 2**31 - 1),
        num_added_tokens=fields.integer("num_added_tokens", 0, 2**31 - 1),
        num_merges=fields.integer("num_merges", 0, 2**31 - 1),
        normalizer=fields.text("normalizer"),
        pre_tokenizer=fields.text("pre_tokenizer"),
    )


def _read_model(fields: Fields) -> str:
    has_model = "model_fingerprint" in fields.values
    return fields.matching("model_fingerprint", _FINGERPRINT) if has_model else ""


def _read_pruning(fields: Fields) -> int:
    if "pruned_ngram_tokens" not in fields.values:
        return 0
    depth_tokens = fields.integer("depth_tokens", 1, MAX_DEPTH_TOKENS)
    return fields.integer("pruned_ngram_tokens", 2, depth_tokens + 1)


def _read_files(fields: Fields) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    columns: set[str] = set()
    for name in fields.values:
        if not _FILE_NAME.fullmatch(name) or ".." in name or name == MANIFEST_NAME:
            raise corrupt("a file name is not allowed", repr(name), "[a-z0-9._-]{1,64} without '..'")
        entry = _read_file(fields.object(name))
        if entry.column in columns:
            raise corrupt(f"column {entry.column!r} is in two files", name, "one file a column")
        columns.add(entry.column)
        files[name] = entry
    return files


def _read_file(fields: Fields) -> FileEntry:
    dtype = fields.one_of("dtype", DTYPES)
    shape = fields.shape("shape")
    expected = DTYPES[dtype].itemsize * shape[0]  # Python integers: the product of a lying length cannot wrap
    num_bytes = fields.integer("bytes", 0, MAX_INT64)
    if num_bytes != expected:
        raise corrupt(f"{fields.where} does not hold its shape", f"{num_bytes} bytes", f"{expected} bytes")
    return FileEntry(fields.text("column"), dtype, shape, num_bytes, fields.matching("sha256", SHA256))


def check_label(what: str, value: object) -> str:
    """Returns `value` if a manifest can carry it as a text.

    Raises:
        InvalidRequest: it is empty, too long, not printable or no text.
    """
    if not is_label(value):
        raise InvalidRequest(
            f"{what} is not allowed", got=short(value), expected="1 to 128 printable characters"
        )
    return str(value)
