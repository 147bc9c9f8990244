"""Small JSON files that carry their own checksum: reading them without trusting a byte.

Knows nothing of what they say.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from retrieval_spec.errors import DatastoreCorrupt, DatastoreVersion

MAX_BYTES = 1 << 20
MAX_INT64 = 2**63 - 1
REBUILD = "rebuild it with `retrieval-spec build`"
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
UNSEALED = "0" * 64


def sealed_json(fields: Mapping[str, object], seal_key: str) -> bytes:
    """Returns the bytes of a file with these fields and, under `seal_key`, its checksum."""
    text = json.dumps({**fields, seal_key: UNSEALED}, indent=2, ensure_ascii=True) + "\n"
    return seal(text.encode("ascii"))


def seal(unsealed: bytes) -> bytes:
    """Returns `unsealed` with the 64 zeros of its checksum replaced by the SHA-256 of these bytes."""
    head, zeros, tail = unsealed.rpartition(UNSEALED.encode())
    return head + (hashlib.sha256(unsealed).hexdigest().encode() if zeros else b"") + tail


def parse_sealed(data: bytes, file: str, format_name: str, version: int, seal_key: str) -> Fields:
    """Returns the fields of a file; nothing in it is trusted before it was checked.

    The version is looked at before anything else, so that a file of a later format is called newer,
    not broken.

    Raises:
        DatastoreCorrupt: not such a file, or an altered one.
        DatastoreVersion: a version that is not read here.
    """
    fields = Fields(_load_json(data, file), file)
    if fields.raw("format") != format_name:
        raise corrupt(f"{file} is of another format", fields.raw("format"), format_name)
    found = fields.integer("version", 1, MAX_INT64)
    if found != version:
        raise DatastoreVersion(
            "the datastore has another format version",
            got=found,
            expected=version,
            remedy="upgrade retrieval-spec, or rebuild the datastore with `retrieval-spec build`",
        )
    _check_seal(data, fields.matching(seal_key, SHA256), file)
    return fields


def _load_json(data: bytes, file: str) -> Mapping[str, Any]:
    if len(data) > MAX_BYTES:
        raise corrupt(f"{file} is too large", f"{len(data)} bytes", f"at most {MAX_BYTES}")
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise corrupt(f"{file} is not JSON", error, "UTF-8 JSON") from error
    if not isinstance(value, dict):
        raise corrupt(f"{file} is not an object", type(value).__name__, "a JSON object")
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a key occurs twice")
    return fields


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_seal(data: bytes, expected: str, file: str) -> None:
    if data.count(expected.encode()) != 1:
        raise corrupt(f"{file} was altered", "a repeated checksum", "it once")
    got = hashlib.sha256(data.replace(expected.encode(), UNSEALED.encode())).hexdigest()
    if got != expected:
        raise corrupt(f"{file} was altered", f"SHA-256 {got}", expected)


class Fields:
    """A JSON object whose fields are read by type and range, with the place in every error."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def raw(self, key: str) -> Any:
        """Returns a value as it stands."""
        if key not in self.values:
            raise corrupt(f"{self.where} lacks a field", None, repr(key))
        return self.values[key]

    def _checked(self, key: str, allowed: Callable[[Any], bool], expected: object) -> Any:
        value = self.raw(key)
        if not allowed(value):
            raise corrupt(f"{self.where}: {key!r} is wrong", short(value), expected)
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """Returns an integer in `low .. high`; a bool or a float is none."""
        expected = str(low) if low == high else f"{low} to {high}"
        return int(self._checked(key, lambda value: type(value) is int and low <= value <= high, expected))

    def text(self, key: str) -> str:
        """Returns a text that a log line can carry."""
        return str(self._checked(key, is_label, "1 to 128 printable characters"))

    def matching(self, key: str, pattern: re.Pattern[str]) -> str:
        """Returns a text of a pattern."""

        def matches(value: Any) -> bool:
            return isinstance(value, str) and pattern.fullmatch(value) is not None

        return str(self._checked(key, matches, pattern.pattern))

    def one_of(self, key: str, names: Mapping[str, object]) -> str:
        """Returns one of the names."""
        expected = " or ".join(names)
        return str(self._checked(key, lambda value: isinstance(value, str) and value in names, expected))

    def object(self, key: str) -> Fields:
        """Returns the fields of an object inside."""
        value = self._checked(key, lambda value: isinstance(value, dict), "an object")
        return Fields(value, f"{self.where}: {key}")

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the lengths of an array."""
        value = self._checked(key, _is_shape, "a list of one length")
        return tuple(value)


def is_label(value: Any) -> bool:
    """Tells whether a value is a text that a log line can carry."""
    return isinstance(value, str) and 0 < len(value) <= 128 and value.isprintable()


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 1
        and all(type(length) is int and 0 <= length <= MAX_INT64 for length in value)
    )


def short(value: object) -> str:
    """Returns a value as an error may quote it."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a value nested as deep
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def corrupt(what: str, got: object, expected: object) -> DatastoreCorrupt:
    """Returns the error for a store that is not as it was written."""
    return DatastoreCorrupt(what, got=got, expected=expected, remedy=REBUILD)
