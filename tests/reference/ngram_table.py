"""N-gram counts, readable: one Counter a context, in two generations."""

from __future__ import annotations

from collections import Counter


class ReferenceTable:
    def __init__(self, max_context, min_context=1, max_kept=6, documents=None):
        self.lengths, self.max_kept = range(1, max_context + 1), max_kept
        self.min_context = min_context
        self.newest, self.older, self.base = {}, {}, documents or {}

    def extend(self, text, start=0):
        for at in range(start, len(text)):
            for length in self.lengths:
                context = tuple(text[max(0, at - length) : at])
                if text[at] == -1 or len(context) < length or -1 in context:
                    break
                if context not in self.newest:
                    self.newest[context] = self.promoted(context)
                if length >= self.min_context:
                    self.newest[context][text[at]] += 1

    def promoted(self, context):
        known = self.older.get(context, self.base.get(context, Counter()))
        return Counter({token: (count + 1) // 2 for token, count in self.best(known)})

    def turn(self):
        self.older, self.newest = self.newest, {}

    def best(self, counts):
        return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[: self.max_kept]

    def successors(self, context):
        for generation in (self.newest, self.older, self.base):
            if tuple(context) in generation:
                counts = generation[tuple(context)]
                return sum(counts.values()), len(counts), dict(self.best(counts))
        return None
