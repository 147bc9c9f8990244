"""Several growing texts as plain lists: what `structures.shared_automaton` must say about them."""

from __future__ import annotations

from collections import Counter


class SharedText:
    def __init__(self, num_texts: int) -> None:
        self.texts: list[list[int]] = [[] for _ in range(num_texts)]
        self.counts: Counter[tuple[int, ...]] = Counter()

    def append(self, text: int, token: int) -> None:
        tokens = self.texts[text]
        tokens.append(token)
        self.counts.update(tuple(tokens[at:]) for at in range(len(tokens)))

    def match_length(self, context: list[int]) -> int:
        lengths = (length for length in range(len(context), 0, -1) if self.counts[tuple(context[-length:])])
        return next(lengths, 0)

    def followers(self) -> dict[tuple[int, ...], dict[int, int]]:
        found: dict[tuple[int, ...], dict[int, int]] = {string: {} for string in self.counts}
        for longer, count in self.counts.items():
            if len(longer) > 1:
                found[longer[:-1]][longer[-1]] = count
        return found
