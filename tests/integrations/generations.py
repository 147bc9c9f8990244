"""Recorded outputs, and engines that verify drafts against them: what is decided is what was recorded."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(eq=False)
class Generation:
    """A request whose output is known beforehand; `tokens` is what was decided, prompt included."""

    name: str
    prompt: list[int]
    output: list[int]
    tokens: list[int] = field(default_factory=list)
    num_steps: int = 0

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt)

    @property
    def is_done(self) -> bool:
        return len(self.tokens) >= len(self.prompt) + len(self.output)

    def verify(self, paths: list[list[int]]) -> list[int]:
        """Decides a step: the longest drafted path that was recorded, and the target's own token."""
        rest = self.output[len(self.tokens) - len(self.prompt) :]
        num_accepted = max((common_prefix(path, rest) for path in paths), default=0)
        decided = rest[: num_accepted + 1]
        self.tokens += decided
        self.num_steps += 1
        return decided

    def check(self) -> None:
        assert self.tokens == self.prompt + self.output


def common_prefix(one: list[int], other: list[int]) -> int:
    size = 0
    while size < min(len(one), len(other)) and one[size] == other[size]:
        size += 1
    return size


def recorded_generations(count: int, seed: int, vocab_size: int = 500) -> list[Generation]:
    """Outputs that repeat phrases of their prompts and of each other."""
    rng = random.Random(seed)
    phrases = [[rng.randrange(vocab_size) for _ in range(rng.randint(5, 12))] for _ in range(6)]

    def some(num_phrases: int) -> list[int]:
        chosen = [
            rng.choice(phrases) + [rng.randrange(vocab_size)] * rng.randint(0, 1) for _ in range(num_phrases)
        ]
        return [token for phrase in chosen for token in phrase]

    return [
        Generation(f"r{index}", some(rng.randint(2, 5)), some(rng.randint(3, 7))) for index in range(count)
    ]


def check_gain(generations: list[Generation], least: float = 1.2) -> None:
    """All as recorded, in fewer steps than tokens."""
    for one in generations:
        one.check()
    num_tokens = sum(len(one.output) for one in generations)
    assert num_tokens > least * sum(one.num_steps for one in generations)
