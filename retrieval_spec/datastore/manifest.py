"""The manifest of a datastore: its fields, their checks, and the bytes of `manifest.json`.

Everything here works on bytes and values; files are the store's business. `datastores/FORMAT.md` is the
specification.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval_spec.errors import DatastoreCorrupt, DatastoreVersion, InvalidRequest

FORMAT_NAME = "retrieval-spec-datastore"
FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_TOKENS = 2**32
"""Positions are uint32: a larger corpus is several datastores."""
MAX_DEPTH_TOKENS = 64

DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("|u1", "<u2", "<i4", "<u4", "<i8", "<f4")
}
SEPARATORS = {"<u2": 2**16 - 1, "<i4": 2**31 - 1}
"""Token type -> the id that ends every document: the largest value, never a token of the vocabulary."""

REBUILD = "rebuild it with `retrieval-spec build`"
TRANSLATE = (
    "build it again with the tokenizer of the target model, or translate it: "
    "retrieval-spec build --from-datastore DIR --from-tokenizer ITS_OWN --tokenizer THE_MODELS"
)
_FILE_NAME = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_UNSEALED = "0" * 64
_MAX_INT64 = 2**63 - 1


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
    """

    name: str
    vocab_size: int
    depth_tokens: int
    tokenizer: TokenizerFacts
    created_by: str
    kind: str = "context_array"
    model_fingerprint: str = ""


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
        "files": {name: _file_fields(entry) for name, entry in sorted(manifest.files.items())},
        "manifest_sha256": _UNSEALED,
    }
    unsealed = (json.dumps(fields, indent=2, ensure_ascii=True) + "\n").encode("ascii")
    return seal(unsealed)


def seal(unsealed: bytes) -> bytes:
    """Returns `unsealed` with the 64 zeros of its checksum replaced by the SHA-256 of these bytes."""
    head, zeros, tail = unsealed.rpartition(_UNSEALED.encode())
    return head + (hashlib.sha256(unsealed).hexdigest().encode() if zeros else b"") + tail


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
    fields = _Fields(_load_json(data), "manifest.json")
    if fields.raw("format") != FORMAT_NAME:
        raise _corrupt("manifest.json is of another format", fields.raw("format"), FORMAT_NAME)
    version = fields.integer("version", 1, _MAX_INT64)
    if version != FORMAT_VERSION:
        raise DatastoreVersion(
            "the datastore has another format version",
            got=version,
            expected=FORMAT_VERSION,
            remedy="upgrade retrieval-spec, or rebuild the datastore with `retrieval-spec build`",
        )
    _check_seal(data, fields.matching("manifest_sha256", _SHA256))
    return _read_fields(fields)


def _load_json(data: bytes) -> Mapping[str, Any]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise _corrupt("manifest.json is too large", f"{len(data)} bytes", f"at most {MAX_MANIFEST_BYTES}")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise _corrupt("manifest.json is not JSON", error, "UTF-8 JSON") from error
    if not isinstance(value, dict):
        raise _corrupt("manifest.json is not an object", type(value).__name__, "a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_seal(data: bytes, expected: str) -> None:
    if data.count(expected.encode()) != 1:
        raise _corrupt("manifest.json was altered", "a repeated checksum", "manifest_sha256 once")
    got = hashlib.sha256(data.replace(expected.encode(), _UNSEALED.encode())).hexdigest()
    if got != expected:
        raise _corrupt("manifest.json was altered", f"SHA-256 {got}", expected)


def _read_fields(fields: _Fields) -> Manifest:
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
        files=_read_files(fields.object("files")),
    )


def _read_tokenizer(fields: _Fields) -> TokenizerFacts:
    return TokenizerFacts(
        fingerprint=fields.matching("fingerprint", _FINGERPRINT),
        model=fields.text("model"),
        vocab_size=fields.integer("vocab_size", 0, 2**31 - 1),
        num_added_tokens=fields.integer("num_added_tokens", 0, 2**31 - 1),
        num_merges=fields.integer("num_merges", 0, 2**31 - 1),
        normalizer=fields.text("normalizer"),
        pre_tokenizer=fields.text("pre_tokenizer"),
    )


def _read_model(fields: _Fields) -> str:
    has_model = "model_fingerprint" in fields.values
    return fields.matching("model_fingerprint", _FINGERPRINT) if has_model else ""


def _read_files(fields: _Fields) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    columns: set[str] = set()
    for name in fields.values:
        if not _FILE_NAME.fullmatch(name) or ".." in name or name == MANIFEST_NAME:
            raise _corrupt("a file name is not allowed", repr(name), "[a-z0-9._-]{1,64} without '..'")
        entry = _read_file(fields.object(name))
        if entry.column in columns:
            raise _corrupt(f"column {entry.column!r} is in two files", name, "one file a column")
        columns.add(entry.column)
        files[name] = entry
    return files


def _read_file(fields: _Fields) -> FileEntry:
    dtype = fields.one_of("dtype", DTYPES)
    shape = fields.shape("shape")
    expected = DTYPES[dtype].itemsize * shape[0]  # Python integers: the product of a lying length cannot wrap
    num_bytes = fields.integer("bytes", 0, _MAX_INT64)
    if num_bytes != expected:
        raise _corrupt(f"{fields.where} does not hold its shape", f"{num_bytes} bytes", f"{expected} bytes")
    return FileEntry(fields.text("column"), dtype, shape, num_bytes, fields.matching("sha256", _SHA256))


class _Fields:
    """A JSON object whose fields are read by type and range, with the place in every error."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def raw(self, key: str) -> Any:
        if key not in self.values:
            raise _corrupt(f"{self.where} lacks a field", None, repr(key))
        return self.values[key]

    def _checked(self, key: str, allowed: Callable[[Any], bool], expected: object) -> Any:
        value = self.raw(key)
        if not allowed(value):
            raise _corrupt(f"{self.where}: {key!r} is wrong", _short(value), expected)
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """Returns an integer in `low .. high`; a bool or a float is none."""
        expected = str(low) if low == high else f"{low} to {high}"
        return int(self._checked(key, lambda value: type(value) is int and low <= value <= high, expected))

    def text(self, key: str) -> str:
        """Returns a text that a log line can carry."""
        return str(self._checked(key, _is_label, "1 to 128 printable characters"))

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        def matches(value: Any) -> bool:
            return isinstance(value, str) and pattern.fullmatch(value) is not None

        return str(self._checked(key, matches, pattern.pattern))

    def one_of(self, key: str, names: Mapping[str, object]) -> str:
        expected = " or ".join(names)
        return str(self._checked(key, lambda value: isinstance(value, str) and value in names, expected))

    def object(self, key: str) -> _Fields:
        value = self._checked(key, lambda value: isinstance(value, dict), "an object")
        return _Fields(value, f"{self.where}: {key}")

    def shape(self, key: str) -> tuple[int, ...]:
        value = self._checked(key, _is_shape, "a list of one length")
        return tuple(value)


def check_label(what: str, value: object) -> str:
    """Returns `value` if a manifest can carry it as a text.

    Raises:
        InvalidRequest: it is empty, too long, not printable or no text.
    """
    if not _is_label(value):
        raise InvalidRequest(
            f"{what} is not allowed", got=_short(value), expected="1 to 128 printable characters"
        )
    return str(value)


def _is_label(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable()


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 1
        and all(type(length) is int and 0 <= length <= _MAX_INT64 for length in value)
    )


def _short(value: object) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a value nested as deep
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _corrupt(what: str, got: object, expected: object) -> DatastoreCorrupt:
    return DatastoreCorrupt(what, got=got, expected=expected, remedy=REBUILD)
