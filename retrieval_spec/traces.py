"""Recorded generations: what was asked and what was written, as token ids; JSON lines, Parquet or Arrow.

A line or row holds `prompt_ids` and `output_ids`; or `prompt` and `output` as text; or `messages`, of which
the last one is the output; or a logged exchange, `request` and `response`. A field that is null is not there,
so that the rows of one table may differ. `family` says which kind of traffic it is, if it stands there;
otherwise the file's name does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retrieval_spec.datastore.chat_template import ChatTemplate
from retrieval_spec.datastore.readers.jsonl import MAX_LINE_BYTES, parse_line
from retrieval_spec.datastore.readers.messages import messages_of
from retrieval_spec.datastore.readers.reading import Advance, Reading
from retrieval_spec.datastore.readers.streams import bytes_of
from retrieval_spec.datastore.readers.tables import Row, arrow_rows, parquet_rows
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.errors import InvalidRequest, InvalidTokens, MissingPath
from retrieval_spec.tree import MAX_VOCAB_SIZE, Tokens, as_tokens

_ROWS_OF = {".parquet": parquet_rows, ".arrow": arrow_rows, ".feather": arrow_rows, ".ipc": arrow_rows}
_SUFFIXES = (".gz", ".zst", ".jsonl", ".json", *_ROWS_OF)
_FIELDS = {
    "family",
    *("prompt_ids", "output_ids"),
    *("prompt", "output"),
    "messages",
    *("request", "response"),
}


class Trace(NamedTuple):
    """One recorded generation.

    Attributes:
        family: the kind of traffic that it belongs to.
        prompt: int32[n]  what the target was asked.
        output: int32[m]  what it wrote.
    """

    family: str
    prompt: Tokens
    output: Tokens


class TraceReader:
    """Reads traces, as text if it has a tokenizer.

    Args:
        tokenizer: the target's; None: all lines must hold ids.
        vocab_size: ids lie below it.
    """

    def __init__(self, tokenizer: Tokenizer | None, vocab_size: int = MAX_VOCAB_SIZE) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._chat = ChatTemplate(tokenizer.folder if tokenizer else None)

    def read(self, path: Path, advance: Advance) -> Iterator[Trace]:
        """Yields the traces of a file; `advance` is told of bytes.

        Raises:
            MissingPath: there is no such file.
            InvalidRequest: it cannot be read, or a line or row of it is no trace.
            MissingDependency: it is no plain JSON lines, and pyarrow is not installed.
        """
        if not path.is_file():
            raise MissingPath(f"no file {path}", expected="JSON lines, also .gz or .zst, Parquet or Arrow")
        family = path.name
        while family.lower().endswith(_SUFFIXES):
            family = family.rpartition(".")[0]
        for where, row in _rows(Reading(path, advance)):
            yield self._trace(row, family, where)

    def _trace(self, row: Mapping[str, Any], family: str, where: str) -> Trace:
        try:
            prompt, output = self._sides(row, where)
            sides = as_tokens(prompt, self._vocab_size), as_tokens(output, self._vocab_size)
        except InvalidTokens as error:
            raise InvalidRequest(f"{where}: {error}", remedy="give the traces' own --vocab-size") from error
        return Trace(str(row.get("family") or family), *sides)

    def _sides(self, row: Mapping[str, Any], where: str) -> tuple[Any, Any]:
        """Returns what was asked and what was written."""
        if row.get("output_ids") is not None:
            return row.get("prompt_ids") or [], row["output_ids"]
        if row.get("request") is not None and row.get("response") is not None:
            return self._exchange(_object(row["request"], where), _object(row["response"], where), where)
        if row.get("messages") is not None:
            return self._encoded(*self._spelled(messages_of(row["messages"], where), where), where)
        if row.get("output") is not None:
            return self._encoded(row.get("prompt") or "", row["output"], where)
        if "output_ids" in row or "output" in row:
            return [], []
        raise _no_trace(where, row)

    def _exchange(self, request: Any, response: Any, where: str) -> tuple[Any, Any]:
        """Returns the sides of a request and the first choice of its response, as OpenAI's API has them."""
        try:
            choice = response["choices"][0]
            if choice.get("token_ids") is not None:  # as vLLM says them with return_token_ids
                asked = response.get("prompt_token_ids") or choice.get("prompt_token_ids")
                return asked or [], choice["token_ids"]
            if choice.get("text") is not None:
                return self._encoded(request["prompt"], choice["text"], where)
            messages = messages_of([*request["messages"], choice["message"]], where)
        except (AttributeError, KeyError, IndexError, TypeError) as error:
            raise InvalidRequest(
                f"{where}: no exchange",
                got=error,
                expected="request.messages and response.choices[0].message, or prompt and text",
            ) from error
        return self._encoded(*self._spelled(messages, where), where)

    def _spelled(self, messages: Sequence[dict[str, Any]], where: str) -> tuple[str, str]:
        """Returns a conversation as the target saw it, cut where its last message begins."""
        if not messages:
            raise InvalidRequest(f"{where}: a conversation without messages")
        text, content = self._chat(messages), str(messages[-1]["content"])
        begin = text.rfind(content)
        return (text[:begin], text[begin:]) if begin >= 0 else (text, "")

    def _encoded(self, prompt: str, output: str, where: str) -> tuple[Tokens, Tokens]:
        if self._tokenizer is None:
            raise InvalidRequest(f"{where}: text, and no tokenizer", remedy="give --tokenizer")
        if not isinstance(prompt, str) or not isinstance(output, str):
            raise InvalidRequest(f"{where}: prompt or output is no text", expected="strings, or ids")
        asked, written = self._tokenizer.encode_batch([prompt, output])
        return np.concatenate([self._tokenizer.prefix_ids(), asked]), written


def _rows(reading: Reading) -> Iterator[Row]:
    """Yields the objects or rows of a file, and where each stands."""
    if (rows_of := _ROWS_OF.get(reading.path.suffix.lower())) is not None:
        yield from rows_of(reading, partial(_present, where=str(reading.path)))
        return
    with bytes_of(reading) as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if not line.isspace():
                where = f"{reading.path}:{number}"
                yield where, parse_line(line, where)


def _present(names: Sequence[str], where: str) -> Sequence[str]:
    """Returns the columns of a table that say something of a trace."""
    present = [name for name in names if name in _FIELDS]
    if not present:
        raise _no_trace(where, names)
    return present


def _object(value: Any, where: str) -> Any:
    """Returns a request or response, which tables often hold as JSON."""
    return parse_line(value.encode(), where) if isinstance(value, str) else value


def _no_trace(where: str, names: Iterable[str]) -> InvalidRequest:
    return InvalidRequest(
        f"{where}: no trace",
        got=", ".join(list(names)[:16]) or "no field",
        expected="output_ids, output, messages, or request and response",
    )
