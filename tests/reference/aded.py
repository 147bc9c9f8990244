"""ADED, readable: a trigram store that adapts to the newest tokens, and its most probable paths."""

from __future__ import annotations

from collections import Counter

import numpy as np

WHOLE, ADDED, CAP = 10_000, 400, 30_000  # ten-thousandths: 1.0, 0.04 and 3.0


class ReferenceAded:
    """One session after the other; drafts are sets of paths."""

    def __init__(self, documents=(), max_nodes=64, max_paths=24):
        self.max_nodes, self.max_paths, self.store = max_nodes, max_paths, {}
        counts = {}
        for document in documents:
            for a, b, c in zip(document, document[1:], document[2:], strict=False):
                counts.setdefault((a, b), Counter())[c] += 1
        for pair, followers in counts.items():
            total = sum(followers.values())
            best = sorted(followers, key=lambda token: (-followers[token], token))[:12]
            self.store[pair] = {token: WHOLE * followers[token] // total for token in best}

    def start(self, prompt):
        self.text = list(prompt)
        self.adapt()

    def commit(self, tokens):
        for token in tokens:
            self.text.append(token)
            self.adapt()

    def close(self):
        pass

    def adapt(self):
        newest = self.text[-16:]
        for a, b, c in zip(newest, newest[1:], newest[2:], strict=False):
            values = self.store.setdefault((a, b), {})
            values[c] = min(values.get(c, 0) + ADDED, CAP)

    def shares(self, path):
        values = self.store.get(tuple((self.text + path)[-2:]), {})
        best = sorted(values, key=lambda token: (-values[token], token))[:12]
        total = sum(values[token] for token in best)
        wanted = best if len(path) < 4 else best[:1]
        return [(token, np.float32(values[token] / total)) for token in wanted if values[token]]

    def draft(self):
        taken, waiting, path, prob = set(), [], [], np.float32(1)
        while len(taken) < self.max_nodes:
            if len(path) < 5:
                waiting += [((-share * prob, len(path) + 1, t), [*path, t]) for t, share in self.shares(path)]
            parents = {taken_path[:-1] for taken_path in taken}
            if len(taken - parents) == self.max_paths:  # then paths get longer, but no new ones begin
                waiting = [entry for entry in waiting if tuple(entry[1][:-1]) in taken - parents]
            if not waiting:
                break
            best = min(waiting, key=lambda entry: entry[0])
            waiting.remove(best)
            path, prob = best[1], -best[0][0]
            taken.add(tuple(path))
        return taken
