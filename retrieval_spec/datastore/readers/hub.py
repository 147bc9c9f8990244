"""Datasets of the Hugging Face hub, row by row as they come: nothing is downloaded as a whole.

`datasets` reads them, and folders of tables in the same way; it is imported when one is named. From its
version 4 on it runs no code of a dataset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.datastore.readers.rows import choose_fields, content_of
from retrieval_spec.errors import InvalidRequest, MissingDependency

HUB_PREFIX = "hf:"
_SPELLING = "hf:NAME[@REVISION][:CONFIG[:SPLIT]]"
_SPLIT = "train"


class HubName(NamedTuple):
    """What names the rows of a dataset."""

    name: str
    revision: str | None
    config: str | None
    split: str


def hub_name(spelled: str) -> HubName:
    """Returns what `hf:NAME[@REVISION][:CONFIG[:SPLIT]]` names; what is left out or empty is the default.

    Raises:
        InvalidRequest: it is spelled otherwise.
    """
    parts = spelled.removeprefix(HUB_PREFIX).split(":")
    name, _, revision = parts[0].partition("@")
    if not spelled.startswith(HUB_PREFIX) or not name or len(parts) > 3:
        raise InvalidRequest("no name of a dataset", got=spelled[:80], expected=_SPELLING)
    config, split = [*parts[1:], "", ""][:2]
    return HubName(name, revision or None, config or None, split or _SPLIT)


def read_hub(reading: Reading) -> Iterator[Content]:
    """Yields the document of each row; of columns, only those that hold it are asked for."""
    named = hub_name(str(reading.path))
    datasets = _require_datasets()
    with _one_kind_of_error(reading):
        rows = datasets.load_dataset(
            named.name, named.config, split=named.split, revision=named.revision, streaming=True
        )
        names = rows.column_names or _names_of_first(rows)
    if not names:
        return
    fields = choose_fields(names, reading.text_field, str(reading.path))
    with _one_kind_of_error(reading):
        rows = iter(rows.select_columns(list(fields)))
    yield from _contents(rows, fields, reading)


def _names_of_first(rows: Any) -> Sequence[str]:
    return [name for row in rows.take(1) for name in row]


def _contents(rows: Iterator[Any], fields: Sequence[str], reading: Reading) -> Iterator[Content]:
    number = 0
    while True:
        with _one_kind_of_error(reading):
            row = next(rows, None)
        if row is None:
            return
        content = reading.attempt(partial(content_of, row, fields, f"{reading.path}: row {number}", reading))
        if content is not None:
            reading.advance(len(content))
            yield content
        number += 1


@contextmanager
def _one_kind_of_error(reading: Reading) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of its own, of the network, of each format: they have nothing in common
        raise InvalidRequest(
            f"cannot read {reading.path}",
            got=f"{type(error).__name__}: {str(error)[:300]}",
            remedy=f"a dataset is named {_SPELLING}, and a private one needs `hf auth login`",
        ) from error


def _require_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependency(
            "datasets of the hub need the package datasets", remedy="pip install 'retrieval-spec[hub]'"
        ) from error
    return datasets
