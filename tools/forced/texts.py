"""Recorded generations, cut to what a machine can repeat in minutes, and put into batches."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

MIN_OUTPUT_TOKENS = 16


class Recorded(NamedTuple):
    """Prompt and output of one generation."""

    prompt: list[int]
    output: list[int]


class Cut(NamedTuple):
    """How much of a recording is generated: the end of its prompt, the beginning of its output."""

    prompt_tokens: int
    output_tokens: int


def read(path: Path, count: int, cut: Cut) -> list[Recorded]:
    """Returns so many generations, evenly spaced in the file, of those that wrote something."""
    with path.open() as lines:
        items = [json.loads(line) for line in lines]
    items = [item for item in items if len(item["output_ids"]) >= MIN_OUTPUT_TOKENS and item["prompt_ids"]]
    count = min(count, len(items))
    return [
        Recorded(item["prompt_ids"][-cut.prompt_tokens :], item["output_ids"][: cut.output_tokens])
        for item in (items[index * len(items) // count] for index in range(count))
    ]


@dataclass(frozen=True, slots=True)
class Batch:
    """Generations that share their passes.

    One alone ends by its length. Several end each by a token that no recording has, for the host knows no
    other way to end them one by one.
    """

    items: Sequence[Recorded]
    end_id: int

    @property
    def num_tokens(self) -> int:
        """Recorded output tokens."""
        return sum(len(item.output) for item in self.items)

    def rows(self) -> list[list[int]]:
        """Returns prompt and output of each."""
        return [[*item.prompt, *item.output] for item in self.items]

    def inputs(self, device: Any) -> dict[str, Any]:
        """Returns what `generate` takes: prompts padded on the left, and when to stop."""
        width = max(len(item.prompt) for item in self.items)
        ids = [[0] * (width - len(item.prompt)) + list(item.prompt) for item in self.items]
        mask = [[0] * (width - len(item.prompt)) + [1] * len(item.prompt) for item in self.items]
        longest = max(len(item.output) for item in self.items)
        stop = {"max_new_tokens": longest}
        if len(self.items) > 1:
            stop = {"max_new_tokens": longest + 1, "eos_token_id": self.end_id}
        tensors = {"input_ids": ids, "attention_mask": mask}
        return {**{name: torch.tensor(rows, device=device) for name, rows in tensors.items()}, **stop}

    def check(self, sequences: Any, way: str) -> None:
        """Compares what was generated with the recording, token by token.

        Raises:
            SystemExit: a token differs.
        """
        width = max(len(item.prompt) for item in self.items)
        for row, item in zip(sequences.tolist(), self.items, strict=True):
            if row[width : width + len(item.output)] != list(item.output):
                raise SystemExit(f"{way}: another output than the recorded one")


def batches(items: Sequence[Recorded], size: int, end_id: int) -> Iterator[Batch]:
    """Yields full batches in the order of the items; what is left over is left out."""
    for begin in range(0, len(items) - size + 1, size):
        yield Batch(items[begin : begin + size], end_id)
