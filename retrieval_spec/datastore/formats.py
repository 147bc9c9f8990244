"""Readers of one file each: text, JSONL, parquet, Arrow, as a stream of texts in bounded memory.

Which field holds the text, unless it is named: `text`, else `content`, else `output` with `prompt`, where
there is one, on the lines before it. A missing value (null) is an empty text.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from retrieval_spec.errors import InvalidRequest, MissingDependency

Advance = Callable[[int], None]
Reader = Callable[[Path, "str | None", Advance], Iterator[str]]

MAX_LINE_BYTES = 64 << 20
_TEXT_CHARACTERS = 1 << 20
_BUFFER_BYTES = 1 << 18
_ROWS = 256
_CODECS = {".gz": "gzip", ".zst": "zstd"}
_FIELDS = (("text",), ("content",), ("prompt", "output"), ("output",))
_ARROW_FILE_MAGIC = b"ARROW1"


class NotText(InvalidRequest):
    """The file holds bytes that are no UTF-8 text."""


def read_text(path: Path, text_field: str | None, advance: Advance) -> Iterator[str]:
    """Yields the file in parts of about a million characters, each ending with a line."""
    with _bytes_of(path, advance) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            while part := text.read(_TEXT_CHARACTERS):
                if not part.endswith("\n"):
                    part += text.readline(_TEXT_CHARACTERS)
                if "\0" in part:
                    raise NotText(f"{path} is no text file", got="a zero byte", expected="UTF-8")
                yield part
        except UnicodeDecodeError as error:
            raise NotText(f"{path} is no text file", got=error, expected="UTF-8") from error


def read_jsonl(path: Path, text_field: str | None, advance: Advance) -> Iterator[str]:
    """Yields the text of each line's object; empty lines are none."""
    with _bytes_of(path, advance) as stream:
        number = 0
        while line := stream.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > MAX_LINE_BYTES:
                raise InvalidRequest(
                    f"{where}: the line is too long", expected=f"at most {MAX_LINE_BYTES} bytes"
                )
            if line.strip():
                record = _parse_line(line, where)
                yield _text_of(record, _choose_fields(record, text_field, where), where)


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{where}: not JSON", got=error, expected="one object a line", remedy="mend or remove the line"
        ) from error
    if not isinstance(record, dict):
        raise InvalidRequest(f"{where}: no object", got=type(record).__name__, expected="one object a line")
    return record


def read_parquet(path: Path, text_field: str | None, advance: Advance) -> Iterator[str]:
    """Yields the text of each row, reading no other column."""
    _require_pyarrow()
    from pyarrow import parquet

    with _readable(path), parquet.ParquetFile(path) as file:
        fields = _choose_fields(file.schema_arrow.names, text_field, str(path))
        batches = file.iter_batches(batch_size=_ROWS, columns=list(fields))
        metered = _metered(batches, -(-file.metadata.num_rows // _ROWS), path, advance)
        yield from _texts_of_batches(metered, fields, path)


def read_arrow(path: Path, text_field: str | None, advance: Advance) -> Iterator[str]:
    """Yields the text of each row of an Arrow file or an Arrow stream, as `save_to_disk` writes it."""
    pyarrow = _require_pyarrow()
    with _readable(path), pyarrow.memory_map(str(path)) as source:
        is_file = source.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        source.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            metered = _metered(batches, reader.num_record_batches, path, advance)
        else:
            reader = pyarrow.ipc.open_stream(source)
            metered = _metered(reader, 1, path, advance)
        fields = _choose_fields(reader.schema.names, text_field, str(path))
        yield from _texts_of_batches(metered, fields, path)


def _texts_of_batches(batches: Iterable[Any], fields: Sequence[str], path: Path) -> Iterator[str]:
    row = 0
    for batch in batches:
        columns = [batch.column(name) for name in fields]
        for column in columns:
            column.validate(full=True)  # a damaged offset would read past the buffer
        for start in range(0, len(columns[0]), _ROWS):
            values = [column.slice(start, _ROWS).to_pylist() for column in columns]
            for record in zip(*values, strict=True):
                yield _text_of(dict(zip(fields, record, strict=True)), fields, f"{path}: row {row}")
                row += 1


def _metered(batches: Iterable[Any], num_batches: int, path: Path, advance: Advance) -> Iterator[Any]:
    """Yields the batches; each stands for an equal share of the file's bytes."""
    num_bytes = path.stat().st_size
    told = 0
    for number, batch in enumerate(batches, 1):
        yield batch
        done = num_bytes * min(number, num_batches) // max(num_batches, 1)
        advance(done - told)
        told = done
    advance(num_bytes - told)


def _choose_fields(names: Iterable[str], text_field: str | None, where: str) -> Sequence[str]:
    present = list(names)
    choices = ((text_field,),) if text_field is not None else _FIELDS
    for fields in choices:
        if all(name in present for name in fields):
            return fields
    raise InvalidRequest(
        f"{where}: no text",
        got=", ".join(map(str, present[:16])) or "no field",
        expected=text_field or "text, content or output",
        remedy="name the field with --text-field",
    )


def _text_of(record: dict[str, Any], fields: Sequence[str], where: str) -> str:
    parts = []
    for name in fields:
        value = record[name]
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(
                f"{where}: {name!r} is no text", got=type(value).__name__, expected="a string"
            )
        if value:
            parts.append(value)
    return _encodable("\n".join(parts))


def _encodable(text: str) -> str:
    """Returns the text with unpaired surrogates, which JSON can spell and UTF-8 cannot, replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class _Metered(io.FileIO):
    """A file that tells how many bytes a buffer in front of it has read."""

    def __init__(self, path: Path, advance: Advance) -> None:
        super().__init__(path)
        self._advance = advance

    def readinto(self, buffer: Any) -> int:
        """Fills the buffer as far as there are bytes, and tells how far."""
        num_bytes = super().readinto(buffer) or 0
        self._advance(num_bytes)
        return num_bytes


@contextmanager
def _bytes_of(path: Path, advance: Advance) -> Iterator[BinaryIO]:
    """Opens a file, decompressed if its suffix says so."""
    codec = _CODECS.get(path.suffix.lower())
    with _readable(path), io.BufferedReader(_Metered(path, advance), _BUFFER_BYTES) as file:
        if codec is None:
            yield file
            return
        pyarrow = _require_pyarrow()
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), codec) as stream:
            yield io.BufferedReader(stream, _BUFFER_BYTES)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns what the system or pyarrow say about a damaged file into one kind of error."""
    try:
        yield
    except InvalidRequest:
        raise
    except (OSError, EOFError, ValueError, LookupError) as error:  # pyarrow's errors are among these
        raise InvalidRequest(
            f"cannot read {path}",
            got=error,
            remedy="check that the file is whole and is what its suffix says",
        ) from error


def _require_pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
    except ImportError as error:
        raise MissingDependency(
            "pyarrow is not installed", remedy="pip install 'retrieval-spec[server]'"
        ) from error
    return pyarrow
