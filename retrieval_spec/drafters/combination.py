"""How the trees of several sources become one draft: the rules of published systems, and ours.

A combination asks the cursors and returns one tree each, in their order; the engine fuses them. Ours
asks all and lets the most probable paths win; others ask one, or fill up in order.

Some rules choose by how long a source's match is: `match_length`, a property of cursors that copy.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

from retrieval_spec.drafters.base import Budget, Cursor
from retrieval_spec.drafters.rows import Row, is_known, rows_of_tree, with_nodes
from retrieval_spec.fusion import Pruning, prune
from retrieval_spec.tree import DraftTree


def ask_all(cursors: Sequence[Cursor], budget: Budget) -> list[DraftTree]:
    """Asks every source with the whole budget: fusion keeps the most probable paths of them all."""
    return [cursor.propose(budget) for cursor in cursors]


def trust_last(cursors: Sequence[Cursor], budget: Budget) -> list[DraftTree]:
    """Asks every source, and squares all probabilities but the last one's, which knows the target's words.

    The others' probabilities were fitted on text alone: what the target did not name among its most
    probable tokens comes less often than they say, the more so the less sure they are.
    """
    trees = [cursor.propose(budget) for cursor in cursors]
    squared = [DraftTree(t.token_ids, t.parents, t.probs * t.probs, t.sources) for t in trees[:-1]]
    return [*squared, *trees[-1:]]


def longer_match(cursors: Sequence[Cursor], budget: Budget, *, corpus_bias_tokens: int) -> list[DraftTree]:
    """Asks the source with the longest match alone: the first one unless a corpus has a clearly longer one.

    SAM-Decoding's rule without a tree model. The first cursor is that of the own context, the others are
    corpora, whose matches count `corpus_bias_tokens` less; of equal ones the earlier is asked.
    """
    chosen, _ = _longest_match(cursors, corpus_bias_tokens)
    return _ask_one(cursors, chosen, budget)


def longer_match_or_last(
    cursors: Sequence[Cursor], budget: Budget, *, corpus_bias_tokens: int, min_match_tokens: int
) -> list[DraftTree]:
    """Asks as `longer_match` does, but the last source if no match has `min_match_tokens` after the bias.

    SAM-Decoding's rule with a tree model, which is the last cursor.
    """
    last = len(cursors) - 1
    chosen, length = _longest_match(cursors[:last], corpus_bias_tokens)
    return _ask_one(cursors, chosen if length >= min_match_tokens else last, budget)


def _longest_match(cursors: Sequence[Cursor], corpus_bias_tokens: int) -> tuple[int, int]:
    """Returns which cursor has the longest match, and its length after the bias."""
    lengths = [int(getattr(cursor, "match_length", 0)) for cursor in cursors]
    lengths[1:] = [length - corpus_bias_tokens for length in lengths[1:]]
    longest = max(lengths, default=0)
    return (lengths.index(longest) if lengths else 0), longest


def _ask_one(cursors: Sequence[Cursor], chosen: int, budget: Budget) -> list[DraftTree]:
    trees = [DraftTree.empty()] * len(cursors)
    if cursors:
        trees[chosen] = cursors[chosen].propose(budget)
    return trees


@dataclass(frozen=True, slots=True)
class FillInOrder:
    """Hierarchy Drafting's rule: rows of the first source, then of the next, until there are enough.

    A row is a path from the context to a leaf. One that equals a kept row, or begins like it as far as
    both go, adds nothing and is not counted. Sources after the last one needed are not asked.

    Attributes:
        max_rows: rows that are kept.
        row_tokens: tokens of a row at most.
    """

    max_rows: int = 7
    row_tokens: int = 4

    def __call__(self, cursors: Sequence[Cursor], budget: Budget) -> list[DraftTree]:
        """Returns one tree a source: the rows that it fills up with."""
        depth = min(self.row_tokens, budget.max_depth_nodes)
        whole = Budget(self.max_rows * self.row_tokens, depth)  # the caller's budget cuts the result
        kept: list[Row] = []
        trees = []
        for cursor in cursors:
            tree = cursor.propose(whole) if len(kept) < self.max_rows else DraftTree.empty()
            trees.append(self._filled(kept, tree))
        return trees

    def _filled(self, kept: list[Row], tree: DraftTree) -> DraftTree:
        nodes: set[int] = set()
        for path in rows_of_tree(tree):
            row = tuple(tree.token_ids[path].tolist())
            if len(kept) < self.max_rows and not is_known(row, kept):
                kept.append(row)
                nodes.update(path)
        return with_nodes(tree, nodes)


@dataclass(frozen=True, slots=True)
class PruneByModel:
    """RASD's rule: the last source is a draft model, and it judges what the others retrieved.

    A retrieved path stays if the model finds its first token probable. Without a word of the model, as
    when it failed, all of them stay.

    Attributes:
        pruning: what counts as probable.
    """

    pruning: Pruning = field(default_factory=Pruning)

    def __call__(self, cursors: Sequence[Cursor], budget: Budget) -> list[DraftTree]:
        """Returns one tree a source, the model's last."""
        *retrieval, model = cursors
        grown = model.propose(budget)
        first_probs = getattr(model, "first_probs", None)
        trees = [cursor.propose(budget) for cursor in retrieval]
        if first_probs is not None and first_probs.size:
            trees = [prune(tree, first_probs, self.pruning) for tree in trees]
        return [*trees, grown]


def best_score(cursors: Sequence[Cursor], budget: Budget) -> list[DraftTree]:
    """Asks every source and keeps the tree that expects to save most, the first of equals.

    That is the largest sum of path probabilities, as in SuffixDecoding (arXiv 2411.04975).
    """
    trees = ask_all(cursors, budget)
    scores = [_expected_tokens(tree) for tree in trees]
    best = scores.index(max(scores, default=0.0)) if scores else 0
    return [tree if at == best else DraftTree.empty() for at, tree in enumerate(trees)]


def _expected_tokens(tree: DraftTree) -> float:
    """Sums path probabilities in double precision, where fewer sums that should differ are equal.

    One after the other: `sum` rounds otherwise since Python 3.12, and equal trees would be told apart.
    """
    path_probs: list[float] = tree.probs.tolist()
    for node, parent in enumerate(tree.parents.tolist()):
        if parent >= 0:
            path_probs[node] *= path_probs[parent]
    return reduce(operator.add, path_probs, 0.0)
