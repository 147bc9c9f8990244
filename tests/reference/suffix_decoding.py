"""SuffixDecoding as its paper and its repository describe it, on dictionaries of counted substrings."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterable

import numpy as np

Path = tuple[int, ...]


class CountedTrie:
    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.counts: Counter[Path] = Counter()
        self.children: defaultdict[Path, set[int]] = defaultdict(set)

    def append(self, text: list[int], token: int, change: int = 1) -> None:
        text.append(token)
        for length in range(1, min(len(text), self.depth) + 1):
            node = tuple(text[-length:])
            self.counts[node] += change
            self.children[node[:-1]].add(token)

    def remove(self, text: list[int]) -> None:
        removed: list[int] = []
        for token in text:
            self.append(removed, token, -1)

    def speculate(
        self, context: list[int], max_nodes: int, factor: float, offset: float, min_prob: float, path: bool
    ) -> dict[Path, float]:
        context, best_score, best = context[-self.depth :], 0.0, {}
        for length in range(1, len(context)):
            match = tuple(context[-length:])
            if not self.counts[match]:
                break
            size = min(max_nodes, int(length * factor + offset + 1e-6))
            draft = self._tree(match, size, min_prob, path)
            if added(draft.values()) >= best_score:
                best_score, best = added(draft.values()), draft
        return best

    def _tree(self, match: Path, size: int, min_prob: float, path: bool) -> dict[Path, float]:
        """Returns the drafted paths with their probabilities, ties by depth, token and time of discovery."""
        found: dict[Path, float] = {}
        queue: list[tuple[float, int, int, int, Path]] = [(-1.0, 0, 0, 0, ())]
        serial = 0
        while queue and len(found) < size + 1:
            prob, _, _, _, drafted = heapq.heappop(queue)
            found[drafted] = -prob
            node = match + drafted
            children = []
            for token in self.children[node]:
                share = self.counts[(*node, token)] / self.counts[node]
                if share > 0 and -prob * share >= min_prob:
                    serial += 1
                    children.append((prob * share, len(drafted), token, serial, (*drafted, token)))
            for child in sorted(children)[: 1 if path else None]:
                heapq.heappush(queue, child)
        found.pop(())
        return found


class SuffixDecoding:
    """All requests of one engine: `start`, `commit` and `draft` by request number."""

    def __init__(self, depth: int, max_outputs: int, *rule: object) -> None:
        self.depth, self.max_outputs, self.rule = depth, max_outputs, rule
        self.outputs = CountedTrie(depth)
        self.kept: deque[int] = deque()
        self.contexts: dict[int, list[int]] = {}
        self.written: dict[int, list[int]] = {}
        self.local: dict[int, CountedTrie] = {}

    def start(self, request: int, prompt: list[int]) -> None:
        if len(self.kept) == self.max_outputs:
            self.outputs.remove(self.written[self.kept.popleft()])
        self.kept.append(request)
        self.contexts[request], self.written[request] = [], []
        self.local[request] = CountedTrie(self.depth)
        for token in prompt:
            self.local[request].append(self.contexts[request], token)

    def commit(self, request: int, tokens: list[int]) -> None:
        for token in tokens:
            self.local[request].append(self.contexts[request], token)
            if request in self.kept:
                self.outputs.append(self.written[request], token)

    def draft(self, request: int, max_nodes: int) -> set[Path]:
        drafts = [
            trie.speculate(self.contexts[request], max_nodes, *self.rule)
            for trie in (self.local[request], self.outputs)
        ]
        scores = [_score_of_tree(draft) for draft in drafts]
        return set(drafts[0] if scores[0] >= scores[1] else drafts[1])


def _score_of_tree(draft: dict[Path, float]) -> float:
    """The sum of path probabilities as a draft tree tells them: shares are rounded to float32."""
    probs: dict[Path, float] = {(): 1.0}
    for path in draft:
        parent = draft.get(path[:-1], 1.0)
        probs[path] = probs[path[:-1]] * float(np.float32(draft[path] / parent))
    return added(probs.values()) - 1.0


def added(numbers: Iterable[float]) -> float:
    """One after the other, each sum rounded: since Python 3.12 `sum` rounds once, and ties fall otherwise."""
    total = 0.0
    for number in numbers:
        total += number
    return total
