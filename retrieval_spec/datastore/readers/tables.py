"""Parquet, and Arrow as a file or as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.datastore.readers.rows import choose_fields, content_of
from retrieval_spec.datastore.readers.streams import readable, require_pyarrow

_ROWS = 256
_BUFFER_BYTES = 1 << 20
_ARROW_FILE_MAGIC = b"ARROW1"


Choose = Callable[[Sequence[str]], Sequence[str]]
"""Says which columns of those that a table has are read."""
Row = tuple[str, dict[str, Any]]
"""Where a row stands, and its fields."""


def read_parquet(reading: Reading) -> Iterator[Content]:
    """Yields the document of each row, reading no other column."""
    return _contents(parquet_rows(reading, _choosing(reading)), reading)


def read_arrow(reading: Reading) -> Iterator[Content]:
    """Yields the document of each row of an Arrow file or an Arrow stream, as `save_to_disk` writes it."""
    return _contents(arrow_rows(reading, _choosing(reading)), reading)


def _choosing(reading: Reading) -> Choose:
    return partial(choose_fields, text_field=reading.text_field, where=str(reading.path))


def _contents(rows: Iterator[Row], reading: Reading) -> Iterator[Content]:
    for where, row in rows:
        # In the order in which they were chosen: that is the order in which they make a document.
        content = reading.attempt(partial(content_of, row, list(row), where, reading))
        if content is not None:
            yield content


def parquet_rows(reading: Reading, choose: Choose) -> Iterator[Row]:
    """Yields the rows of a Parquet file, with the columns that are chosen of those that it has."""
    with readable(reading.path), _open_parquet(reading.path) as file:
        fields = choose(file.schema_arrow.names)
        batches = file.iter_batches(batch_size=_ROWS, columns=list(fields))
        metered = _metered(batches, -(-file.metadata.num_rows // _ROWS), reading)
        yield from _rows(metered, fields, reading.path)


def _open_parquet(path: Path) -> Any:
    require_pyarrow()
    from pyarrow import parquet

    # Left to itself it reads a whole row group at once, which often is the whole file.
    return parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES)


def arrow_rows(reading: Reading, choose: Choose) -> Iterator[Row]:
    """Yields the rows of an Arrow file or stream, with the columns that are chosen of those that it has."""
    pyarrow = require_pyarrow()
    with readable(reading.path), pyarrow.memory_map(str(reading.path)) as source:
        is_file = source.read(len(_ARROW_FILE_MAGIC)) == _ARROW_FILE_MAGIC
        source.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
            metered = _metered(batches, reader.num_record_batches, reading)
        else:
            reader = pyarrow.ipc.open_stream(source)
            metered = _metered(reader, 1, reading)
        yield from _rows(metered, choose(reader.schema.names), reading.path)


def _rows(batches: Iterable[Any], fields: Sequence[str], path: Path) -> Iterator[Row]:
    number = 0
    for batch in batches:
        columns = [batch.column(name) for name in fields]
        for column in columns:
            column.validate(full=True)  # a damaged offset would read past the buffer
        for start in range(0, len(columns[0]), _ROWS):
            values = [column.slice(start, _ROWS).to_pylist() for column in columns]
            for row in zip(*values, strict=True):
                yield f"{path}: row {number}", dict(zip(fields, row, strict=True))
                number += 1


def _metered(batches: Iterable[Any], num_batches: int, reading: Reading) -> Iterator[Any]:
    """Yields the batches; each stands for an equal share of the file's bytes."""
    num_bytes = reading.path.stat().st_size
    told = 0
    for number, batch in enumerate(batches, 1):
        yield batch
        done = num_bytes * min(number, num_batches) // max(num_batches, 1)
        reading.advance(done - told)
        told = done
    reading.advance(num_bytes - told)
