"""Rows of likely next tokens as dictionaries of lists, by token and by pair of tokens."""

from __future__ import annotations

from collections.abc import Sequence

Key = int | tuple[int, int]


class DictRows:
    def __init__(self, width: int) -> None:
        self.width = width
        self.rows: dict[Key, list[int | None]] = {}

    def row(self, key: Key) -> list[int]:
        return [token for token in self.rows.get(key, []) if token is not None]

    def update(
        self, tokens: Sequence[int], parents: Sequence[int], topk: Sequence[Sequence[int]], previous: int
    ) -> None:
        for token, parent, ids in zip(tokens, parents, topk, strict=True):
            row = [token if token not in ids[:rank] else None for rank, token in enumerate(ids)]
            self.rows[token] = list(row)
            self.rows[previous if parent < 0 else tokens[parent], token] = list(row)

    def learn(self, text: Sequence[int], with_pairs: bool = True) -> tuple[int, int]:
        """How many candidates the rows offered before each token, and how many were right."""
        offered = right = 0
        for at in range(1, len(text)):
            keys: list[Key] = [text[at - 1]]
            if with_pairs and at > 1:
                keys.append((text[at - 2], text[at - 1]))
            candidates = {token for key in keys for token in self.row(key)}
            offered += len(candidates)
            right += text[at] in candidates
            for key in keys:
                self._move_to_front(self.rows.setdefault(key, []), text[at])
        return offered, right

    def _move_to_front(self, row: list[int | None], token: int) -> None:
        # It leaves its own place, or takes the first free one, or the last one falls out.
        if token in row:
            row.remove(token)
        elif None in row:
            row.remove(None)
        else:
            del row[self.width - 1 :]
        row.insert(0, token)
