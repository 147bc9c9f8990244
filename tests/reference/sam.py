"""SAM-Decoding, readable: lists and counts in place of automata."""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

import numpy as np

from tests.reference.copying import copied_chain, longest_match
from tests.replay import chain_paths


class ReferenceCorpus:
    """Documents, and where each suffix of a context occurs in them."""

    def __init__(self, documents, depth=32):
        self.documents, self.depth = documents, depth
        self.followers = {}  # token -> (document, position behind it)
        for name, document in enumerate(documents):
            for at, token in enumerate(document):
                self.followers.setdefault(token, []).append((name, at + 1))

    def longest_match(self, context):
        """How many last tokens occur, and what follows every occurrence, in corpus order."""
        places, length = self.followers.get(context[-1], []) if context else [], 0
        found = places
        while found:
            places, length = found, length + 1
            if length == min(self.depth, len(context)):
                break
            token, before = context[-length - 1], length + 1
            found = [(n, at) for n, at in places if at >= before and self.documents[n][at - before] == token]
        return length, [self.documents[name][at:] for name, at in places]


def static_chain(corpus, context, size=39):
    _, continuations = corpus.longest_match(context)
    return continuations[0][:size] if continuations else []


def static_tree(corpus, context, bias=5, alpha=4.0, width=8, max_nodes=59):
    """The paths of the best-first tree over products of cnt(child) / cnt(parent)."""
    length, continuations = corpus.longest_match(context)
    paths, num_taken, entered, waiting = set(), Counter(), count(), []

    def grow(path, path_prob, members):
        counts = Counter(rest[0] for rest in members if rest)
        for token in sorted(counts, key=lambda token: (-counts[token], token))[:width]:
            prob = np.float32(np.float32(counts[token] / len(members)) * path_prob)
            rests = [rest[1:] for rest in members if rest and rest[0] == token]
            heapq.heappush(waiting, (-prob, len(path) + 1, token, next(entered), (*path, token), rests))

    grow((), 1.0, continuations)
    while waiting and len(paths) < min(max_nodes, int(alpha * (length - bias))):
        prob, depth, _, _, path, rests = heapq.heappop(waiting)
        if num_taken[depth] < width:
            num_taken[depth] += 1
            paths.add(path)
            grow(path, np.float64(-prob), rests)
    return paths


# The tree model's paths of ranks: levels of 7, 20, 21, 8 and 4 nodes.
RANK_PATHS = (
    *"0123456",
    *(f"{first}{rank}" for first, num in enumerate((8, 4, 3, 2, 1, 1, 1)) for rank in range(num)),
    *(f"0{second}{rank}" for second, num in enumerate((6, 3, 2, 1, 1, 1)) for rank in range(num)),
    *("100", "101", "110", "200", "300", "400", "500"),
    *("0000", "0001", "0002", "0010", "0011", "0020", "0100", "1000"),
    *("00000", "00001", "00010", "00100"),
)


def sam_paths(context, corpus, bias=5):
    """Mode without a tree model: the own chain, or the corpus's tree."""
    own, static = longest_match(context), corpus.longest_match(context)[0]
    if own >= static - bias:
        length = min(59, int(4.0 * own))
        return chain_paths(copied_chain(context, "first", 1, None, lambda _: length, "keep"))
    return static_tree(corpus, context, bias)


def sam_recycling_paths(context, corpus, rows, bias=5, threshold=5):
    """Mode with a tree model, and who drafts: the own context, the corpus or the rows."""
    own, static = longest_match(context), corpus.longest_match(context)[0] - bias
    if max(own, static) < threshold:
        return "rows", rows.draft(context[-1], RANK_PATHS) if context else set()
    if own >= static:
        return "own", chain_paths(copied_chain(context, "first", 1, None, lambda _: 39, "climb"))
    return "corpus", chain_paths(static_chain(corpus, context))
