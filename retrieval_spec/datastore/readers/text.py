"""Text and source files."""

from __future__ import annotations

import io
from collections.abc import Iterator

from retrieval_spec.datastore.readers.licence_header import without_licence_header
from retrieval_spec.datastore.readers.reading import NotText, Reading
from retrieval_spec.datastore.readers.streams import CODECS, bytes_of

_TEXT_CHARACTERS = 1 << 20


def read_text(reading: Reading) -> Iterator[str]:
    """Yields the file in parts of about a million characters, each ending with a line."""
    parts = _parts(reading)
    if reading.without_licence_header:
        yield from (without_licence_header(part, _language_suffix(reading)) for part in _first(parts))
    yield from parts


def _first(parts: Iterator[str]) -> Iterator[str]:
    for part in parts:
        yield part
        return


def _language_suffix(reading: Reading) -> str:
    suffixes = [suffix.lower() for suffix in reading.path.suffixes]
    while suffixes and suffixes[-1] in CODECS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _parts(reading: Reading) -> Iterator[str]:
    with bytes_of(reading) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            while part := text.read(_TEXT_CHARACTERS):
                if not part.endswith("\n"):
                    part += text.readline(_TEXT_CHARACTERS)
                if "\0" in part:
                    raise NotText(f"{reading.path} is no text file", got="a zero byte", expected="UTF-8")
                yield part
        except UnicodeDecodeError as error:
            raise NotText(f"{reading.path} is no text file", got=error, expected="UTF-8") from error
