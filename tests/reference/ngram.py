"""The published n-gram drafters, readable: dictionaries of counts, one session after the other.

Drafts are sets of paths.
"""

from __future__ import annotations

from collections import Counter


def count(counts, text, at, sizes):
    for size in sizes:
        if at >= size:
            counts.setdefault(tuple(text[at - size : at]), Counter())[text[at]] += 1


def chain(drafted):
    return {tuple(drafted[:size]) for size in range(1, len(drafted) + 1)}


class ReferenceAnpd:
    """The most frequent next token of the longest n-gram prefix that is known, again and again."""

    def __init__(self, max_order=5, num_drafts=6):
        self.max_order, self.num_drafts = max_order, num_drafts
        self.followers = {}

    def start(self, prompt):
        self.text = []
        self.commit(prompt)

    def commit(self, tokens):
        for token in tokens:
            self.text.append(token)
            count(self.followers, self.text, len(self.text) - 1, range(1, self.max_order))

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
        return chain(drafted)


class ReferenceCache:
    """llama.cpp's: the own text, then earlier outputs, then a corpus, each if it is sure enough."""

    LAX = ((2, 66), (2, 50), (1, 50), (1, 50))
    STRICT = ((4, 75), (3, 66), (2, 66), (2, 66))

    def __init__(self, documents=(), num_drafts=16):
        self.num_drafts, self.outputs, self.static = num_drafts, {}, {}
        for document in documents:
            for at in range(len(document)):
                count(self.static, document, at, [2])

    def start(self, prompt):
        self.text, self.own, self.prompt_size = [], {}, len(prompt)
        self.commit(prompt)

    def commit(self, tokens):
        for token in tokens:
            self.text.append(token)
            count(self.own, self.text, len(self.text) - 1, range(1, 5))

    def close(self):
        for at in range(self.prompt_size, len(self.text)):
            count(self.outputs, self.text, at, range(1, 5))

    def chosen(self, counts, text, limits):
        static = self.static.get(tuple(text[-2:]), {})
        for size in range(4, 0, -1):
            followers = counts.get(tuple(text[-size:])) if len(text) >= size else None
            if followers:
                score = {t: n * (100 * static[t] if t in static else 1) for t, n in followers.items()}
                best = min(score, key=lambda token: (-score[token], token))
                total, (samples, percent) = sum(followers.values()), limits[size - 1]
                if total >= samples and 100 * followers[best] >= percent * total:
                    return best
        return None

    def draft(self):
        drafted = []
        while len(drafted) < self.num_drafts:
            text = self.text + drafted
            best = self.chosen(self.own, text, self.LAX)
            best = self.chosen(self.outputs, text, self.STRICT) if best is None else best
            static = self.static.get(tuple(text[-2:])) if len(text) >= 2 else None
            if best is None and static and sum(static.values()) >= self.LAX[1][0]:
                most = min(static, key=lambda token: (-static[token], token))
                best = most if 100 * static[most] >= self.LAX[1][1] * sum(static.values()) else None
            if best is None:
                break
            drafted.append(best)
        return chain(drafted)
