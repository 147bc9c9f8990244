"""ANPD, readable: a dictionary of n-gram counts, and the best next token of the longest known context."""

from __future__ import annotations

from collections import Counter


class ReferenceAnpd:
    """Drafts are sets of paths; `start`, `commit` and `close` are one session after the other."""

    def __init__(self, max_order=5, num_drafts=6):
        self.max_order, self.num_drafts = max_order, num_drafts
        self.followers = {}

    def start(self, prompt):
        self.text = []
        self.commit(prompt)

    def commit(self, tokens):
        for token in tokens:
            for order in range(2, self.max_order + 1):
                if len(self.text) >= order - 1:
                    prefix = tuple(self.text[len(self.text) - order + 1 :])
                    self.followers.setdefault(prefix, Counter())[token] += 1
            self.text.append(token)

    def close(self):
        pass

    def draft(self):
        text, drafted = self.text, []
        while len(drafted) < self.num_drafts:
            prefixes = [tuple((text + drafted)[-size:]) for size in range(self.max_order - 1, 0, -1)]
            known = [self.followers[prefix] for prefix in prefixes if prefix in self.followers]
            if not known:
                break
            drafted.append(min(known[0], key=lambda token: (-known[0][token], token)))
        return {tuple(drafted[:size]) for size in range(1, len(drafted) + 1)}
