"""`Reading`: one file on its way into a corpus, what is asked of it, and what of it was left out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from retrieval_spec.errors import InvalidRequest, InvalidTokens
from retrieval_spec.tree import MAX_VOCAB_SIZE, Tokens, as_tokens

Advance = Callable[[int], None]
Content = str | Tokens
"""What a document holds: text, or token ids where the file holds ids already."""
Chat = Callable[[Sequence[dict[str, Any]]], str]
"""Turns the messages of a conversation into the text that the target model sees."""
OnError = Literal["stop", "skip"]


class NotText(InvalidRequest):
    """The file holds bytes that are no UTF-8 text."""


def joined(messages: Sequence[dict[str, Any]]) -> str:
    """Returns the messages without their roles, a blank line between them; tool calls as JSON."""
    parts: list[str] = []
    for message in messages:
        calls = message.get("tool_calls")
        parts += [message["content"], json.dumps(calls, ensure_ascii=False) if calls else ""]
    return "\n\n".join(filter(None, parts))


@dataclass(slots=True)
class Skipped:
    """What of one file did not become documents, and why."""

    num_rows: int = 0
    num_empty_rows: int = 0
    is_cut_short: bool = False
    reason: str = ""

    def __bool__(self) -> bool:
        return self.num_rows > 0 or self.is_cut_short

    def __str__(self) -> str:
        parts = [f"{self.num_rows} {'row' if self.num_rows == 1 else 'rows'}"] if self.num_rows else []
        parts += ["all from the damaged place on"] if self.is_cut_short else []
        return f"{' and '.join(parts)}, the first because {self.reason}"

    def add_row(self, error: InvalidRequest) -> None:
        """Counts a row that cannot be read."""
        self.num_rows += 1
        self.reason = self.reason or str(error)

    def add_rest(self, error: InvalidRequest) -> None:
        """Notes that the file cannot be read on."""
        self.is_cut_short = True
        self.reason = self.reason or str(error)


@dataclass(slots=True)
class Reading:
    """One file, what is asked of it, and what of it was left out."""

    path: Path
    advance: Advance
    text_field: str | None = None
    on_error: OnError = "stop"
    without_licence_header: bool = False
    vocab_size: int = MAX_VOCAB_SIZE
    chat: Chat = joined
    skipped: Skipped = field(default_factory=Skipped)

    def attempt(self, make: Callable[[], Content]) -> Content | None:
        """Returns the document that one row makes; an error stops the reading or is counted, as was asked."""
        try:
            return make()
        except InvalidRequest as error:
            if self.on_error == "stop":
                raise
            self.skipped.add_row(error)
            return None

    def tokens(self, values: Sequence[int] | NDArray[Any], where: str) -> Tokens:
        """Returns token ids of the tokenizer's vocabulary.

        Raises:
            InvalidRequest: they are not; says where they stand.
        """
        try:
            return as_tokens(values, self.vocab_size)
        except InvalidTokens as error:
            raise InvalidRequest(f"{where}: {error}") from error
