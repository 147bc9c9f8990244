"""The context array, readable: sort every position by its reversed left context and look around."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile

import numpy as np

END = float("inf")  # a document's end sorts after every token


class ReferenceContextArray:
    def __init__(self, tokens, separator, depth):
        self.tokens, self.separator, self.depth = list(tokens), separator, depth
        reachable = [i for i in range(1, len(self.tokens)) if self.tokens[i - 1] != separator]
        self.positions = sorted(reachable, key=lambda i: (self.context(i), i))

    def context(self, position):
        context = []
        for token in reversed(self.tokens[:position]):
            if len(context) == self.depth:
                return context
            if token == self.separator:
                break
            context.append(token)
        return context if len(context) == self.depth else [*context, END]

    def continuation(self, position):
        rest = self.tokens[position:]
        return rest[: rest.index(self.separator)] if self.separator in rest else rest

    def occurrences(self, context):
        newest_first = list(context)[::-1]
        return [i for i in self.positions if self.context(i)[: len(newest_first)] == newest_first]

    def continuation_counts(self, context):
        return Counter(self.continuation(i)[0] for i in self.occurrences(context) if self.continuation(i))

    def match_length(self, position, context):
        pairs = list(zip(self.context(position), reversed(context), strict=False))
        return next((n for n, (here, asked) in enumerate(pairs) if here != asked), len(pairs))

    def nearest(self, context, k):
        """The k longest matches, on equal lengths by turns from both sides of the context's place."""
        known = range(1 + max((t for t in self.tokens if t != self.separator), default=-1))
        newest_first = list(takewhile(known.__contains__, list(context)[-self.depth :][::-1]))
        size = len(newest_first)
        right = sum(self.context(i)[:size] < newest_first for i in self.positions)
        left, taken, balance = right - 1, [], 0
        while len(taken) < k:
            lengths = [
                self.match_length(self.positions[side], newest_first[::-1])
                if 0 <= side < len(self.positions)
                else 0
                for side in (left, right)
            ]
            if max(lengths) == 0:
                break
            step = 1 if lengths[1] > lengths[0] or (lengths[1] == lengths[0] and balance <= 0) else -1
            taken.append((self.positions[right if step == 1 else left], max(lengths)))
            left, right, balance = left - (step == -1), right + (step == 1), balance + step
        return taken


def reference_draft(reference, context, k, weight, reliability, max_nodes, max_depth):
    """The best paths of the nearest occurrences' continuations: [(token, parent, prob)], best first."""
    nodes, waiting = [], []

    def grow(parent, path, path_prob, members):
        total = sum(weight(length) for _, length in members)
        groups = {}
        for position, length in members:
            following = reference.continuation(position)[len(path) :]
            if following:
                groups.setdefault(following[0], []).append((position, length))
        for token, group in groups.items():
            longest = min(max(length for _, length in group) + len(path), len(reliability) - 1)
            prob = np.float32(
                sum(weight(length) for _, length in group) / total * float(reliability[longest])
            )
            best = (-prob * path_prob, len(path) + 1, token, parent)
            waiting.append((best, prob, [*path, token], group))

    grow(-1, [], np.float32(1), reference.nearest(context, k))
    while waiting and len(nodes) < max_nodes:
        waiting.sort(key=lambda entry: entry[0])
        (rank, depth, token, parent), prob, path, group = waiting.pop(0)
        nodes.append((token, parent, float(prob)))
        if depth < max_depth:
            grow(len(nodes) - 1, path, -rank, group)
    return nodes
