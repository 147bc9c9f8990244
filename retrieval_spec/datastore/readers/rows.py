"""A row of a table or an object of JSONL as one document: which of its fields hold it, and in which form.

The first of these that a row has, unless a field is named: `text`; `output_ids` with `prompt_ids` before them
where there are some; `messages` or `conversations`; `content`; `output` with `prompt`, where there is one, on
the lines before it; `input_ids`. A missing value (null) is an empty text, and an empty document is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from retrieval_spec.datastore.readers.messages import messages_of
from retrieval_spec.datastore.readers.reading import Content, Reading
from retrieval_spec.errors import InvalidRequest

_FIELDS = (
    ("text",),
    ("prompt_ids", "output_ids"),
    ("output_ids",),
    ("messages",),
    ("conversations",),
    ("content",),
    ("prompt", "output"),
    ("output",),
    ("input_ids",),
)
_ID_FIELDS = {"prompt_ids", "output_ids", "input_ids"}
CHAT_FIELDS = {"messages", "conversations"}


def choose_fields(names: Iterable[str], text_field: str | None, where: str) -> Sequence[str]:
    """Returns the fields that hold a row's document.

    Raises:
        InvalidRequest: there is none.
    """
    present = list(names)
    choices = ((text_field,),) if text_field is not None else _FIELDS
    for fields in choices:
        if all(name in present for name in fields):
            return fields
    raise InvalidRequest(
        f"{where}: no text",
        got=", ".join(map(str, present[:16])) or "no field",
        expected=text_field or "text, messages, content, output or output_ids",
        remedy="name the field with --text-field",
    )


def content_of(row: Mapping[str, Any], fields: Sequence[str], where: str, reading: Reading) -> Content:
    """Returns what a row's fields hold as one document.

    Raises:
        InvalidRequest: a field is of another type than its name promises.
    """
    first = fields[0]
    item = _first_item(row[first]) if first == reading.text_field else None
    if first in _ID_FIELDS or isinstance(item, int):
        return reading.tokens(
            list(chain.from_iterable(_ids(row[name], name, where) for name in fields)), where
        )
    if first in CHAT_FIELDS or isinstance(item, dict):
        return _encodable(_chat_text(row[first], where, reading))
    return _encodable("\n".join(filter(None, (_text(row[name], name, where) for name in fields))))


def _first_item(value: Any) -> Any:
    """Returns what tells of which form a field is that somebody named."""
    return value[0] if isinstance(value, list) and value else None


def _ids(value: Any, name: str, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequest(
            f"{where}: {name!r} holds no token ids", got=type(value).__name__, expected="a list"
        )
    return value


def _chat_text(value: Any, where: str, reading: Reading) -> str:
    messages = messages_of(value, where)
    try:
        return reading.chat(messages)
    except InvalidRequest as error:
        raise InvalidRequest(f"{where}: {error}") from error


def _text(value: Any, name: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{where}: {name!r} is no text", got=type(value).__name__, expected="a string")
    return value or ""


def _encodable(text: str) -> str:
    """Returns the text with unpaired surrogates, which JSON can spell and UTF-8 cannot, replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
