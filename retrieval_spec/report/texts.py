"""Tokens as people read them: a pool of distinct texts, and indices into it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.tree import TOKEN

_BROKEN = "\N{REPLACEMENT CHARACTER}"
MAX_CHARACTERS = 200
"""Of one token that is shown."""


class TokenTexts:
    """The texts of all tokens that are shown, each once; ids where there is no tokenizer.

    Attributes:
        pool: the distinct texts, in the order in which they were met.
    """

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.pool: list[str] = []
        self._tokenizer = tokenizer
        self._numbers: dict[str, int] = {}
        self._texts: dict[int, str] = {}
        self._anchor = int(tokenizer.encode_batch(["a"])[0][0]) if tokenizer else 0

    def numbers_of(self, token_ids: Sequence[int]) -> list[int]:
        """Returns the indices of tokens in a row: of a character in pieces, the first has it all."""
        texts = self._each(token_ids)
        for begin, end in _runs(texts):
            whole = self._decode([token_ids[begin:end]])[0]
            if _BROKEN not in whole:
                texts[begin:end] = [whole, *[""] * (end - begin - 1)]
        return [self.number_of_text(text) for text in texts]

    def number_of_each(self, token_ids: Iterable[int]) -> list[int]:
        """Returns the indices of tokens that do not stand in a row."""
        return [self.number_of_text(text) for text in self._each(list(token_ids))]

    def text_of(self, token_ids: Sequence[int]) -> str:
        """Returns the text of tokens in a row."""
        return self._decode([token_ids])[0] if token_ids else ""

    def _each(self, token_ids: Sequence[int]) -> list[str]:
        missing = sorted(set(token_ids) - self._texts.keys())
        if missing:
            texts = self._decode([[token_id] for token_id in missing])
            self._texts |= {
                token_id: text[:MAX_CHARACTERS] for token_id, text in zip(missing, texts, strict=True)
            }
        return [self._texts[token_id] for token_id in token_ids]

    def _decode(self, runs: Sequence[Sequence[int]]) -> list[str]:
        if self._tokenizer is None:
            return [" ".join(map(str, run)) + " " for run in runs]
        # Some decoders drop the space before the first token of a text.
        known = self._tokenizer.decode_batch([np.array([self._anchor], TOKEN)])[0]
        decoded = self._tokenizer.decode_batch([np.array([self._anchor, *run], TOKEN) for run in runs])
        return [text.removeprefix(known) for text in decoded]

    def number_of_text(self, text: str) -> int:
        """Returns the index of any text."""
        number = self._numbers.setdefault(text, len(self.pool))
        if number == len(self.pool):
            self.pool.append(text)
        return number


def _runs(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Returns where tokens that are no whole characters begin and end."""
    runs, begin = [], None
    for at, text in enumerate([*texts, ""]):
        if _BROKEN in text:
            begin = at if begin is None else begin
        elif begin is not None:
            runs.append((begin, at))
            begin = None
    return runs
