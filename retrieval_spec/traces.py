"""Recorded generations: what was asked and what was written, as token ids, read from JSON lines.

A line holds `prompt_ids` and `output_ids`; or `prompt` and `output` as text; or `messages`, of which the last
one is the output; or a logged exchange, `request` with its messages and `response` with its choices. `family`
says which kind of traffic it is, if it stands there; otherwise the file's name does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retrieval_spec.datastore.chat_template import ChatTemplate
from retrieval_spec.datastore.readers.jsonl import MAX_LINE_BYTES, parse_line
from retrieval_spec.datastore.readers.messages import messages_of
from retrieval_spec.datastore.readers.reading import Advance, Reading
from retrieval_spec.datastore.readers.streams import bytes_of
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.errors import InvalidRequest, InvalidTokens, MissingPath
from retrieval_spec.tree import MAX_VOCAB_SIZE, Tokens, as_tokens

_SUFFIXES = (".gz", ".zst", ".jsonl", ".json")


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
            InvalidRequest: it cannot be read, or a line of it is no trace.
        """
        if not path.is_file():
            raise MissingPath(f"no file {path}", expected="JSON lines, also .gz or .zst")
        family = path.name
        while family.endswith(_SUFFIXES):
            family = family.rpartition(".")[0]
        with bytes_of(Reading(path, advance)) as lines:
            number = 0
            while line := lines.readline(MAX_LINE_BYTES + 1):
                number += 1
                if not line.isspace():
                    yield self._trace(line, family, f"{path}:{number}")

    def _trace(self, line: bytes, family: str, where: str) -> Trace:
        row = parse_line(line, where)
        try:
            prompt, output = self._sides(row, where)
            sides = as_tokens(prompt, self._vocab_size), as_tokens(output, self._vocab_size)
        except InvalidTokens as error:
            raise InvalidRequest(f"{where}: {error}", remedy="give the traces' own --vocab-size") from error
        return Trace(str(row.get("family") or family), *sides)

    def _sides(self, row: Mapping[str, Any], where: str) -> tuple[Any, Any]:
        """Returns what was asked and what was written."""
        if "output_ids" in row:
            return row.get("prompt_ids") or [], row["output_ids"] or []
        if isinstance(row.get("request"), dict) and "response" in row:
            return self._encoded(*self._spelled(_exchanged(row, where), where), where)
        if "messages" in row:
            return self._encoded(*self._spelled(messages_of(row["messages"], where), where), where)
        if "output" in row:
            return self._encoded(row.get("prompt") or "", row["output"] or "", where)
        raise InvalidRequest(
            f"{where}: no trace",
            got=", ".join(list(row)[:16]) or "no field",
            expected="output_ids, output, messages, or request and response",
        )

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


def _exchanged(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Returns the messages of a logged request and of the first choice of its response."""
    try:
        answer = row["response"]["choices"][0]["message"]
        return messages_of([*row["request"]["messages"], answer], where)
    except (KeyError, IndexError, TypeError) as error:
        raise InvalidRequest(
            f"{where}: no exchange", got=error, expected="request.messages and response.choices[0].message"
        ) from error
