"""Pools of phrases as Lookahead decoding, Ouroboros and Hierarchy Drafting describe them: lists in a dict.

`verified` is one step as the target saw it: drafted path -> its most probable token after it, the context
alone being the path ().
"""

from __future__ import annotations

from collections import Counter, defaultdict

Path = tuple[int, ...]


def prefixes(rows: list[Path]) -> set[Path]:
    return {row[:size] for row in rows for size in range(1, len(row) + 1)}


def merged_rows(rows: list[Path], worth: float, survives, max_nodes: int, max_depth: int):
    """[(path, P(the whole path is right))], the most probable first: every row counts half of the last."""
    shares = [0.5**rank for rank in range(len(rows))]
    probs: dict[Path, float] = defaultdict(float)
    for row, share in zip(rows, shares, strict=True):
        for size in range(1, min(len(row), max_depth) + 1):
            probs[row[:size]] += worth * share / sum(shares) * survives[size - 1]
    ranked = sorted(probs.items(), key=lambda entry: (-round(entry[1], 12), len(entry[0]), entry[0][-1]))
    return ranked[:max_nodes]


class ReferencePool:
    """Token -> its newest phrases, the newest last; a phrase that comes again becomes the newest."""

    def __init__(self, level: int, size: int) -> None:
        self.level, self.size = level, size
        self.phrases: dict[int, list[Path]] = defaultdict(list)

    def insert(self, ngram: Path) -> None:
        if len(ngram) == self.level:
            phrases = self.phrases[ngram[0]]
            if ngram[1:] in phrases:
                phrases.remove(ngram[1:])
            phrases.append(ngram[1:])
            del phrases[: -self.size]

    def guesses(self, context: list[int]) -> list[Path]:
        return self.phrases.get(context[-1], []) if context else []


class ReferenceOuroboros(ReferencePool):
    def __init__(self, level=7, size=20, gamma=12, topk=3) -> None:
        super().__init__(level, size)
        self.gamma, self.topk = gamma, topk

    def chain(self, context: list[int]) -> Path:
        """The newest phrases end to end, as long as the pool knows how to go on."""
        chain = ()
        while len(chain) < self.gamma and (known := self.guesses([*context, *chain])):
            if not self.guesses([known[-1][-1]]):
                break
            chain += known[-1]
        return chain

    def rows(self, context: list[int]) -> list[Path]:
        chain = self.chain(context)
        return [chain + guess for guess in self.guesses([*context, *chain])[-self.topk :]]

    def step(self, context, verified: dict[Path, int], committed: list[int], ngrams: list[Path]) -> None:
        chain, rows = self.chain(context), self.rows(context)
        for ngram in ngrams:
            self.insert(ngram)
        for path in verified:
            if path != tuple(committed[: len(path)]):
                ngram, at = path[-1:], path
                while at in verified and len(ngram) < self.level:
                    ngram, at = (*ngram, verified[at]), (*at, verified[at])
                self.insert(ngram)
        key = [*context, *chain][-1:]
        for row in rows:
            if row in verified:
                real = tuple(verified[row[:size]] for size in range(len(chain), len(row)))
                if row[len(chain) :] in self.phrases[key[0]]:
                    self.phrases[key[0]].remove(row[len(chain) :])
                self.insert((*key, *real))


class ReferenceCounts:
    """Token -> how often which phrase followed it; of more than 32, the rarest goes, the oldest of equals."""

    def __init__(self) -> None:
        self.counts: dict[int, Counter[Path]] = defaultdict(Counter)

    def learn(self, output: list[int]) -> None:
        for start in range(len(output) - 4):
            counts = self.counts[output[start]]
            counts[tuple(output[start + 1 : start + 5])] += 1
            if len(counts) > 32:
                del counts[next(phrase for phrase in counts if counts[phrase] == min(counts.values()))]

    def guesses(self, context: list[int]) -> list[Path]:
        counts = self.counts.get(context[-1], {}) if context else {}
        return sorted(counts, key=lambda phrase: (-counts[phrase], phrase))[:7]


def hierarchy_rows(context: list[int], own: ReferencePool, model: ReferenceCounts, corpus) -> list[Path]:
    """Seven rows of four tokens; `corpus` is a `ReferenceRest`, asked for occurrences alone."""
    rows = list(own.guesses(context)[::-1])
    rows += [row for row in model.guesses(context) if row not in rows]
    for size in (2, 1):
        found = corpus.occurrences(context[-size:]) if len(context) >= size else []
        taken = min(len(found), 256)
        places = [found[i * len(found) // taken] for i in range(taken)]
        behind = Counter(tuple(corpus.documents[d][i : i + 4]) for d, i in places)
        whole = [row for row in behind if len(row) == 4 and row not in rows]
        rows += sorted(whole, key=lambda row: (-behind[row], row))
    return rows[:7]
