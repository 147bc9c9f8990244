"""Longest-prefix fusion of draft trees, pruning by a draft model, and selection of the best nodes.

Shared by the server (several sources) and the verifier (retrieval beside a draft model), so it needs
numpy alone. `insert` and `best_first` are written in the subset that numba compiles: the engine passes
their compiled form (`kernels.fusion`), a verifier without numba runs them as they stand.

A trie is int32[10, n], all zero at first: a column for the context and one for each node, with rows for
token id, parent, probability (by its float32 bits), source mask, first child and next sibling, and four
that only the steps themselves use. 0 is the context's column, and in the child and sibling rows the end
of a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retrieval_spec.tree import CONTEXT, DraftTree, Float32s, Int32s, Tokens, Uint16s

TOKEN, PARENT, PROB, SOURCE, FIRST_CHILD, NEXT_SIBLING = range(6)
PLACE, PATH_PROB, DEPTH, WAITING = range(6, 10)
TRIE_ROWS, TREE_ROWS = 10, 4


class Steps(NamedTuple):
    """The two steps of fusion, interpreted or compiled."""

    insert: Callable[[Int32s, int, Tokens, Int32s, Float32s, Uint16s, int], int]
    best_first: Callable[[Int32s, Int32s], None]


def fuse(trees: Sequence[DraftTree], max_nodes: int, steps: Steps | None = None) -> DraftTree:
    """Returns the `max_nodes` most probable paths of all trees as one tree.

    A path is inserted along the longest prefix that the trie already holds, and only its remainder
    becomes new nodes (RASD, arXiv 2503.03434). A node that several trees propose keeps the largest
    probability and the union of the source masks. Children are at most as probable as their parents,
    so the most probable nodes are always a connected tree (OPT-Tree, arXiv 2406.17276).

    Ties go to the lower depth, then to the smaller token id, then to the earlier tree. `source_names`
    come from the first tree; all trees count bits alike.
    """
    names = trees[0].source_names if trees else ()
    return _fused(trees, [0] * len(trees), max_nodes, names, steps or PLAIN)


@dataclass(frozen=True, slots=True)
class Pruning:
    """Which retrieved paths a draft model lets pass, by their first token (RASD, arXiv 2503.03434).

    Attributes:
        top_k: the token must be among that many most probable ones; ties go to the smaller token id.
        min_prob: and have at least this probability.
    """

    top_k: int = 10
    min_prob: float = 0.0


def prune(tree: DraftTree, first_probs: Float32s, pruning: Pruning) -> DraftTree:
    """Returns the paths whose first token the draft model finds probable; node order stays.

    Args:
        tree: a retrieved draft.
        first_probs: float32[v]  the model's distribution of the next token; ids from v on have none.
        pruning: what counts as probable.
    """
    if len(tree) == 0:
        return tree
    likely = _likely(first_probs, pruning)
    kept: list[bool] = []
    for token_id, parent in zip(tree.token_ids.tolist(), tree.parents.tolist(), strict=True):
        kept.append(token_id in likely if parent == CONTEXT else kept[parent])
    nodes = np.flatnonzero(kept)
    place = np.append(np.cumsum(kept) - 1, CONTEXT).astype(np.int32)  # parent -1 reads the last one
    return DraftTree(
        tree.token_ids[nodes],
        place[tree.parents[nodes]],
        tree.probs[nodes],
        tree.sources[nodes],
        tree.source_names,
    )


def _likely(first_probs: Float32s, pruning: Pruning) -> frozenset[int]:
    k = min(max(pruning.top_k, 0), first_probs.shape[0])
    if k == 0:
        return frozenset()
    lowest = np.partition(first_probs, -k)[-k]
    enough = np.flatnonzero(first_probs >= max(lowest, np.float32(pruning.min_prob)))
    best = enough[np.argsort(-first_probs[enough], kind="stable")][:k]
    return frozenset(best.tolist())


def fuse_sources(
    trees: Sequence[DraftTree], max_nodes: int, source_names: tuple[str, ...], steps: Steps
) -> DraftTree:
    """Fuses one tree of each drafter, best first; a tree's place in the list is its source bit."""
    sizes = [tree.token_ids.shape[0] for tree in trees]
    largest = max(sizes, default=0)
    if largest == 0 or largest != sum(sizes):
        return _fused(trees, range(len(trees)), max_nodes, source_names, steps)
    bit = sizes.index(largest)
    only = trees[bit].prefix(max_nodes)
    sources = np.full(len(only), 1 << bit, np.uint16)
    return DraftTree(only.token_ids, only.parents, only.probs, sources, source_names)


def _fused(
    trees: Sequence[DraftTree], bits: Sequence[int], max_nodes: int, names: tuple[str, ...], steps: Steps
) -> DraftTree:
    num_nodes = sum([tree.token_ids.shape[0] for tree in trees])
    if num_nodes == 0 or max_nodes <= 0:
        return DraftTree.empty(names)
    trie = np.zeros((TRIE_ROWS, num_nodes + 1), np.int32)
    size = 1
    for tree, bit in zip(trees, bits, strict=True):
        if not tree.token_ids.shape[0]:
            continue  # a source without a match is common, and a call for nothing costs as much as any
        size = steps.insert(trie, size, tree.token_ids, tree.parents, tree.probs, tree.sources, bit)
    best = np.empty((TREE_ROWS, min(max_nodes, size - 1)), np.int32)
    steps.best_first(trie, best)
    return DraftTree(
        best[TOKEN], best[PARENT], best[PROB].view(np.float32), best[SOURCE].astype(np.uint16), names
    )


def insert(
    trie: Int32s,
    size: int,
    token_ids: Tokens,
    parents: Int32s,
    probs: Float32s,
    sources: Uint16s,
    bit: int,
) -> int:
    """Adds a tree to a trie with room for it; returns the number of columns in use.

    Args:
        trie: int32[10, m]  see the module.
        size: columns in use.
        token_ids: int32[n]  the tree's nodes.
        parents: int32[n]  -1 or the index of an earlier node.
        probs: float32[n]  P(node accepted | parent accepted).
        sources: uint16[n]  bit mask of drafters, counted from `bit`.
        bit: the tree's first source bit.
    """
    bits = probs.view(np.int32)
    for node in range(token_ids.shape[0]):
        parent = trie[PLACE, parents[node] + 1]  # the context, -1, has the first place, 0
        child = trie[FIRST_CHILD, parent]
        while child > 0 and trie[TOKEN, child] != token_ids[node]:
            child = trie[NEXT_SIBLING, child]
        if child == 0:
            child = size
            size += 1
            trie[TOKEN, child] = token_ids[node]
            trie[PARENT, child] = parent
            trie[NEXT_SIBLING, child] = trie[FIRST_CHILD, parent]
            trie[FIRST_CHILD, parent] = child
        # The bits of non-negative floats sort like the floats.
        trie[PROB, child] = max(trie[PROB, child], bits[node])
        trie[SOURCE, child] |= np.int32(sources[node]) << bit
        trie[PLACE, node + 1] = child
    return size


def best_first(trie: Int32s, best: Int32s) -> None:
    """Writes the nodes of the largest path probability, best first, like the first four rows of a trie.

    Parents are counted from the first node, -1 is the context. A child is at most as probable as its
    parent and deeper, so it waits until its parent has been taken.

    Args:
        trie: int32[10, m]  see the module.
        best: int32[4, n]  written; no more columns than there are nodes.
    """
    floats = trie.view(np.float32)
    floats[PATH_PROB, 0] = 1.0
    trie[PLACE, 0] = -1  # from here on: the place in `best`
    num_waiting, node = 0, np.int32(0)
    for position in range(best.shape[1]):
        child = trie[FIRST_CHILD, node]
        while child > 0:
            floats[PATH_PROB, child] = floats[PROB, child] * floats[PATH_PROB, node]
            trie[DEPTH, child] = trie[DEPTH, node] + 1
            at = num_waiting  # those that wait are ranked, the best one last
            while at > 0:
                other = trie[WAITING, at - 1]
                # The bits of non-negative floats sort like the floats.
                order = trie[PATH_PROB, other] - trie[PATH_PROB, child]
                for row in (DEPTH, TOKEN):
                    if order == 0:
                        order = trie[row, child] - trie[row, other]
                if order < 0 or (order == 0 and child < other):
                    break
                trie[WAITING, at] = other
                at -= 1
            trie[WAITING, at] = child
            num_waiting += 1
            child = trie[NEXT_SIBLING, child]
        num_waiting -= 1
        node = trie[WAITING, num_waiting]
        trie[PLACE, node] = position
        best[TOKEN, position] = trie[TOKEN, node]
        best[PARENT, position] = trie[PLACE, trie[PARENT, node]]
        best[PROB, position] = trie[PROB, node]
        best[SOURCE, position] = trie[SOURCE, node]


PLAIN = Steps(insert, best_first)
