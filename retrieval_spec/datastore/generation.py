"""Generations: which segments a datastore consists of now, as the bytes of `generation.json`.

A store without that file is generation 0: its folder is its only segment. Works on bytes and values.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from retrieval_spec.datastore.manifest import MAX_TOKENS
from retrieval_spec.datastore.sealed_json import (
    MAX_INT64,
    SHA256,
    Fields,
    corrupt,
    parse_sealed,
    sealed_json,
)

FORMAT_NAME = "retrieval-spec-generation"
FORMAT_VERSION = 1
GENERATION_NAME = "generation.json"
SEGMENTS_NAME = "segments"
OWN_FOLDER = "."
"""The place of the segment that is the store's own folder."""
MAX_SEGMENTS = 2048
_SEAL = "generation_sha256"
_PLACE = re.compile(r"\.|segments/[0-9a-f]{16}", re.ASCII)


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment of a generation.

    Attributes:
        place: its folder within the store's: `.`, or `segments/` and 16 hexadecimal digits.
        manifest_sha256: of its `manifest.json`, which has the checksums of all else.
        num_tokens: separators included.
        num_documents: in it.
    """

    place: str
    manifest_sha256: str
    num_tokens: int
    num_documents: int


@dataclass(frozen=True, slots=True)
class Generation:
    """A state of a datastore that grows; every change writes the next one."""

    number: int
    segments: tuple[SegmentEntry, ...]


def format_generation(generation: Generation) -> bytes:
    """Returns the bytes of `generation.json`, sealed with their own checksum."""
    segments = [
        {
            "place": entry.place,
            "manifest_sha256": entry.manifest_sha256,
            "num_tokens": entry.num_tokens,
            "num_documents": entry.num_documents,
        }
        for entry in generation.segments
    ]
    fields = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "generation": generation.number,
        "num_segments": len(segments),
        "segments": {str(number): segment for number, segment in enumerate(segments)},
    }
    return sealed_json(fields, _SEAL)


def parse_generation(data: bytes) -> Generation:
    """Returns the generation that `data` holds; nothing in it is trusted before it was checked.

    Raises:
        DatastoreCorrupt: not a generation, an altered one, or a field of a wrong type or value.
        DatastoreVersion: a version that this one does not read.
    """
    fields = parse_sealed(data, GENERATION_NAME, FORMAT_NAME, FORMAT_VERSION, _SEAL)
    count = fields.integer("num_segments", 1, MAX_SEGMENTS)
    segments = fields.object("segments")
    if len(segments.values) != count:
        raise corrupt(f"{GENERATION_NAME} lists other segments", len(segments.values), count)
    entries = tuple(_read_entry(segments.object(str(number))) for number in range(count))
    places = {entry.place for entry in entries}
    if len(places) != count:
        raise corrupt(f"{GENERATION_NAME} lists a segment twice", len(places), count)
    return Generation(fields.integer("generation", 1, MAX_INT64), entries)


def _read_entry(fields: Fields) -> SegmentEntry:
    return SegmentEntry(
        place=fields.matching("place", _PLACE),
        manifest_sha256=fields.matching("manifest_sha256", SHA256),
        num_tokens=fields.integer("num_tokens", 0, MAX_TOKENS),
        num_documents=fields.integer("num_documents", 0, MAX_TOKENS),
    )
