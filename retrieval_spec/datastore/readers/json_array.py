"""A `.json` file: conversations in one array, as collections of chats are passed on, or else plain text."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.datastore.readers.rows import CHAT_FIELDS, choose_fields, content_of
from retrieval_spec.datastore.readers.streams import bytes_of
from retrieval_spec.datastore.readers.text import read_text
from retrieval_spec.errors import InvalidRequest

MAX_ELEMENT_CHARACTERS = 64 << 20
_PART_CHARACTERS = 1 << 20
_HEAD_BYTES = 1 << 20
_ARRAY = re.compile(r"\s*\[\s*(?=\{)")
_BETWEEN = re.compile(r"[\s,]*")


def read_json(reading: Reading) -> Iterator[Content]:
    """Yields the elements of an array of conversations, or else the file as text."""
    yield from (_rows if _holds_conversations(reading) else read_text)(reading)


def _holds_conversations(reading: Reading) -> bool:
    """Returns whether the file is an array whose first object is a conversation, or has the named field."""
    with bytes_of(replace(reading, advance=_ignore)) as stream:
        head = stream.read(_HEAD_BYTES).decode("utf-8-sig", "ignore")
    start = _ARRAY.match(head)
    if start is None:
        return False
    try:
        first, _ = json.JSONDecoder().raw_decode(head, start.end())
    except (ValueError, RecursionError):
        return False
    return not CHAT_FIELDS.isdisjoint(first) or reading.text_field in first


def _ignore(num_bytes: int) -> None:
    """Tells nobody."""


def _rows(reading: Reading) -> Iterator[Content]:
    with bytes_of(reading) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        for number, element in enumerate(_elements(text, reading)):
            content = reading.attempt(
                partial(_content, element, f"{reading.path}: element {number}", reading)
            )
            if content is not None:
                yield content


def _content(element: Any, where: str, reading: Reading) -> Content:
    if not isinstance(element, dict):
        raise InvalidRequest(f"{where}: no object", got=type(element).__name__, expected="an object")
    return content_of(element, choose_fields(element, reading.text_field, where), where, reading)


def _elements(text: io.TextIOWrapper, reading: Reading) -> Iterator[Any]:
    """Yields the elements of the array, holding not much more than one of them."""
    decoder, number = json.JSONDecoder(), 0
    buffer = text.read(_PART_CHARACTERS)
    start = _ARRAY.match(buffer)
    position = start.end() if start else 0
    while True:
        position = _between(buffer, position)
        if buffer.startswith("]", position):
            return _check_end(buffer[position + 1 :], text, reading)
        try:
            element, position = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError) as error:
            # Perhaps it only has not been read to its end; reading twice as much each time keeps that cheap.
            buffer, position = buffer[position:], 0
            more = text.read(max(_PART_CHARACTERS, len(buffer)))
            if not more or len(buffer) > MAX_ELEMENT_CHARACTERS:
                raise InvalidRequest(
                    f"{reading.path}: element {number}: not JSON, cut off or too long",
                    got=error,
                    expected=f"at most {MAX_ELEMENT_CHARACTERS} characters",
                ) from error
            buffer += more
            continue
        yield element
        number += 1


def _check_end(rest: str, text: io.TextIOWrapper, reading: Reading) -> None:
    while not rest or rest.isspace():
        rest = text.read(_PART_CHARACTERS)
        if not rest:
            return
    raise InvalidRequest(f"{reading.path}: something behind the array", got=repr(rest.strip()[:40]))


def _between(buffer: str, position: int) -> int:
    found = _BETWEEN.match(buffer, position)
    return found.end() if found else position
