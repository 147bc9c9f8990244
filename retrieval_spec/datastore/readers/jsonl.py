"""JSONL: one object a line, and each line may have other fields than the one before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.datastore.readers.rows import choose_fields, content_of
from retrieval_spec.datastore.readers.streams import bytes_of
from retrieval_spec.errors import InvalidRequest

MAX_LINE_BYTES = 64 << 20


def read_jsonl(reading: Reading) -> Iterator[Content]:
    """Yields the document of each line's object; empty lines are none."""
    with bytes_of(reading) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            if line.isspace():
                continue
            content = reading.attempt(partial(_content, line, f"{reading.path}:{number}", reading))
            if content is not None:
                yield content
            elif len(line) > MAX_LINE_BYTES:
                _pass_rest_of_line(stream, line)


def _content(line: bytes, where: str, reading: Reading) -> Content:
    row = parse_line(line, where)
    return content_of(row, choose_fields(row, reading.text_field, where), where, reading)


def parse_line(line: bytes, where: str) -> dict[str, Any]:
    """Returns a line's object.

    Raises:
        InvalidRequest: the line is longer than `MAX_LINE_BYTES`, no JSON, or no object.
    """
    if len(line) > MAX_LINE_BYTES:
        raise InvalidRequest(f"{where}: the line is too long", expected=f"at most {MAX_LINE_BYTES} bytes")
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{where}: not JSON", got=error, expected="one object a line", remedy="mend or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise InvalidRequest(f"{where}: no object", got=type(row).__name__, expected="one object a line")
    return row


def _pass_rest_of_line(stream: BinaryIO, line: bytes) -> None:
    while line and not line.endswith(b"\n"):
        line = stream.readline(1 << 20)
