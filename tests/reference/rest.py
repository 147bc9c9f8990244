"""REST, readable: the longest span that occurs, what followed it, and the prefixes counted most often."""

from __future__ import annotations

from collections import Counter, defaultdict

END = float("inf")  # a document's beginning sorts after every token


class ReferenceRest:
    def __init__(self, documents, spans=range(16, 1, -1), k=5_000, ahead=10, depth=32):
        self.documents, self.spans, self.k, self.ahead = documents, spans, k, ahead
        # Every place of a document that has a left context, in the order of these, read backwards.
        places = [(d, i) for d, document in enumerate(documents) for i in range(1, len(document) + 1)]
        self.places = defaultdict(list)
        for d, i in sorted(places, key=lambda place: (self.left(*place, depth), place)):
            self.places[documents[d][i - 1]].append((d, i))

    def left(self, d, i, depth):
        return ([*self.documents[d][:i][::-1], END])[:depth]

    def occurrences(self, span):
        size = len(span)
        ends_so = self.places[span[-1]]
        return [(d, i) for d, i in ends_so if i >= size and self.documents[d][i - size : i] == span]

    def draft(self, context, choices=64, max_depth=10):
        """{path: (occurrences, occurrences of its parent)}, the most frequent first."""
        for size in self.spans:
            if len(context) < size:
                continue
            found = self.occurrences(context[-size:])
            taken = min(len(found), self.k)
            sampled = [found[i * len(found) // taken] for i in range(taken)]
            counts = Counter()
            for d, i in sampled:
                following = self.documents[d][i : i + min(self.ahead, max_depth)]
                counts.update(tuple(following[:n]) for n in range(len(following) + 1))
            ranked = sorted(counts, key=lambda path: (-counts[path], len(path), path))
            best = [path for path in ranked if path][:choices]
            if best:
                return {path: (counts[path], counts[path[:-1]]) for path in best}
        return {}
