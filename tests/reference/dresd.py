"""DReSD, readable: the nearest stored states, those that agree on the token just decided, what followed."""

from __future__ import annotations


class ReferenceDresd:
    """`documents` are token lists; `vectors` has a row for every token that has one before it, in order."""

    def __init__(self, documents, vectors, neighbours=50, rows=10, ahead=10):
        self.values = [document[i : i + ahead + 1] for document in documents for i in range(1, len(document))]
        self.vectors, self.neighbours, self.rows = vectors, neighbours, rows

    def continuations(self, state, root):
        similarity = (self.vectors * state).sum(axis=1).tolist()  # equal rows give equal sums
        nearest = sorted(range(len(similarity)), key=lambda i: (-similarity[i], i))[: self.neighbours]
        agreeing = [self.values[i] for i in nearest if self.values[i][0] == root]
        return [value[1:] for value in agreeing[: self.rows]]

    def draft(self, state, root, max_depth=10):
        """{path: (rows through it, rows through its parent)}."""
        rows = [tuple(row[:max_depth]) for row in self.continuations(state, root)]
        counts = {(): len(rows)}
        for row in rows:
            for n in range(1, len(row) + 1):
                counts[row[:n]] = counts.get(row[:n], 0) + 1
        return {path: (count, counts[path[:-1]]) for path, count in counts.items() if path}
