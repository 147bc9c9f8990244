"""A byte-level BPE tokenizer for Python text, and texts turned into one token stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    import numpy.typing as npt

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0
# Indentation is one piece apart from the word after it; digits stand alone; newlines join nothing,
# so a prompt that stops at the end of a line is cut where training texts are cut too.
PIECES = r"(?<=\n)[ \t]+| ?[\p{L}_]+| ?\p{N}| ?[^\s\p{L}\p{N}_]+|\n+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn `vocabulary` byte pairs; equal texts give an equal tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_stream(tokenizer: Tokenizer, documents: tuple[tuple[str, str], ...]) -> npt.NDArray[np.int64]:
    """Tokens of all documents, each after one end-of-text token.

    Returns:
        stream : int64[n]  END_OF_TEXT_ID, first document, END_OF_TEXT_ID, second document, ...
    """
    ids: list[int] = []
    for _, text in documents:
        ids.append(END_OF_TEXT_ID)
        ids.extend(tokenizer.encode(text).ids)
    ids.append(END_OF_TEXT_ID)
    return np.asarray(ids, dtype=np.int64)


class Windows:
    """Training windows of a token stream; which ones a step sees depends on the step alone."""

    def __init__(self, stream: npt.NDArray[np.int64], window_tokens: int, seed: int) -> None:
        self._stream = stream
        self._window_tokens = window_tokens
        self._seed = seed
        # One window less than fits leaves room for the shift of an epoch and for the last target.
        self.count = (len(stream) - 1) // window_tokens - 1

    def start(self, index: int) -> int:
        """First token of the index-th window drawn; every epoch cuts the stream elsewhere."""
        epoch, within = divmod(index, self.count)
        key = hashlib.sha256(f"{self._seed}/{epoch}".encode()).digest()
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "big")))
        shift = int(generator.integers(self._window_tokens))
        return shift + int(generator.permutation(self.count)[within]) * self._window_tokens

    def batch(self, step: int, windows: int) -> npt.NDArray[np.int64]:
        """Windows of one step with the token after each.

        Returns:
            batch : int64[windows, window_tokens + 1]
        """
        starts = [self.start(step * windows + row) for row in range(windows)]
        return np.stack([self._stream[s : s + self._window_tokens + 1] for s in starts])
