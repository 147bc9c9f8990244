"""Longest-prefix fusion of draft trees and selection of the best nodes.

Shared by the server (several sources) and the verifier (retrieval beside a draft model), so it needs
numpy alone. `merge` and `best_first` are written in the subset that numba compiles: the engine passes
their compiled form to `fuse` (`kernels.fusion`), a verifier without numba runs them as they stand.

A forest is int32[4, n]: the nodes of several trees, one tree after the other, as rows of token ids,
parents (counted from the start of the own tree), float32 probabilities by their bits, and source masks.
One array instead of four is what keeps a call into compiled code cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retrieval_spec.tree import DraftTree, Int32s

TOKENS, PARENTS, PROBS, SOURCES = range(4)

Fuser = Callable[[Int32s, Int32s, int], Int32s]

# One row for each source bit, as long as any tree; rows without strides take no memory.
_MASKS: Int32s = np.broadcast_to(np.int32(1) << np.arange(16, dtype=np.int32)[:, None], (16, 1 << 30))


def fuse(trees: Sequence[DraftTree], max_nodes: int, fuser: Fuser | None = None) -> DraftTree:
    """Returns the `max_nodes` most probable paths of all trees as one tree.

    A path is inserted along the longest prefix that the tree already holds, and only its remainder
    becomes new nodes (RASD, arXiv 2503.03434). A node that several trees propose keeps the largest
    probability and the union of the source masks. Children are at most as probable as their parents,
    so the most probable nodes are always a connected tree (OPT-Tree, arXiv 2406.17276).

    Ties go to the lower depth, then to the smaller token id, then to the earlier tree. `source_names`
    come from the first tree; all trees count bits alike.
    """
    proposed = [tree for tree in trees if len(tree)]
    names = trees[0].source_names if trees else ()
    if not proposed or max_nodes <= 0:
        return DraftTree.empty(names)
    masks = [tree.sources.astype(np.int32) for tree in proposed]
    return _as_tree((fuser or best_paths)(*_plant(proposed, masks), max_nodes), names)


def fuse_sources(
    trees: Sequence[DraftTree], max_nodes: int, source_names: tuple[str, ...], fuser: Fuser
) -> DraftTree:
    """Fuses one tree of each drafter, best first; a tree's place in the list is its source bit."""
    bits = [bit for bit, tree in enumerate(trees) if len(tree)]
    if not bits:
        return DraftTree.empty(source_names)
    if len(bits) == 1:
        only = trees[bits[0]].prefix(max_nodes)
        sources = np.full(len(only), 1 << bits[0], np.uint16)
        return DraftTree(only.token_ids, only.parents, only.probs, sources, source_names)
    proposed = [trees[bit] for bit in bits]
    masks = [_MASKS[bit, : len(trees[bit])] for bit in bits]
    return _as_tree(fuser(*_plant(proposed, masks), max_nodes), source_names)


def _plant(trees: Sequence[DraftTree], masks: Sequence[Int32s]) -> tuple[Int32s, Int32s]:
    """Returns the forest of the trees under the given source masks, and where each tree begins."""
    starts = [0]
    for tree in trees:
        starts.append(starts[-1] + len(tree))
    columns = [tree.token_ids for tree in trees]
    columns += [tree.parents for tree in trees]
    columns += [tree.probs.view(np.int32) for tree in trees]
    return np.concatenate([*columns, *masks]).reshape(4, -1), np.array(starts, np.int32)


def _as_tree(forest: Int32s, source_names: tuple[str, ...]) -> DraftTree:
    return DraftTree(
        forest[TOKENS],
        forest[PARENTS],
        forest[PROBS].view(np.float32),
        forest[SOURCES].astype(np.uint16),
        source_names,
    )


def best_paths(forest: Int32s, starts: Int32s, max_nodes: int) -> Int32s:
    """Merges equal paths of a forest and keeps its best nodes: `merge`, then `best_first`."""
    return best_first(merge(forest, starts), max_nodes)


def merge(forest: Int32s, starts: Int32s) -> Int32s:
    """Returns the trie of a forest: equal paths become one, with the best probability of each node.

    Args:
        forest: int32[4, n]  see the module.
        starts: int32[trees + 1]  where each tree begins; the last entry is n.
    """
    n = forest.shape[1]
    place = np.empty(n, np.int32)  # node of the forest -> node of the trie
    first_child = np.full(n + 1, -1, np.int32)  # entry 0 is the context
    next_sibling = np.full(n, -1, np.int32)
    trie = np.empty((4, n), np.int32)
    size = 0
    tree = 0
    for node in range(n):
        while node >= starts[tree + 1]:
            tree += 1
        parent = place[starts[tree] + forest[PARENTS, node]] if forest[PARENTS, node] >= 0 else -1
        child = first_child[parent + 1]
        while child >= 0 and trie[TOKENS, child] != forest[TOKENS, node]:
            child = next_sibling[child]
        if child < 0:
            child = size
            size += 1
            trie[TOKENS, child] = forest[TOKENS, node]
            trie[PARENTS, child] = parent
            trie[PROBS, child] = forest[PROBS, node]
            trie[SOURCES, child] = forest[SOURCES, node]
            next_sibling[child] = first_child[parent + 1]
            first_child[parent + 1] = child
        else:
            # The bits of non-negative floats sort like the floats.
            trie[PROBS, child] = max(trie[PROBS, child], forest[PROBS, node])
            trie[SOURCES, child] |= forest[SOURCES, node]
        place[node] = child
    found: Int32s = trie[:, :size].copy()
    return found


def best_first(trie: Int32s, max_nodes: int) -> Int32s:
    """Returns the `max_nodes` nodes of the largest path probability as int32[4, k], best first.

    A parent is at least as probable as its child and less deep, so it always comes first.
    """
    n = trie.shape[1]
    probs = trie[PROBS].view(np.float32)
    path_probs = np.empty(n, np.float32)
    depths = np.empty(n, np.int64)
    for node in range(n):
        parent = trie[PARENTS, node]
        path_probs[node] = probs[node] * path_probs[parent] if parent >= 0 else probs[node]
        depths[node] = depths[parent] + 1 if parent >= 0 else 1
    # Falling probability, then rising depth, in one integer; an equal one keeps the order by token.
    keys = ((np.int64(0x7FFFFFFF) - path_probs.view(np.int32)) << 31) + depths
    by_token = np.argsort(trie[TOKENS], kind="mergesort")
    order = by_token[np.argsort(keys[by_token], kind="mergesort")][:max_nodes]
    rank = np.empty(n, np.int32)
    best = np.empty((4, order.shape[0]), np.int32)
    for position in range(order.shape[0]):
        node = order[position]
        rank[node] = position
        parent = trie[PARENTS, node]
        best[TOKENS, position] = trie[TOKENS, node]
        best[PARENTS, position] = rank[parent] if parent >= 0 else -1
        best[PROBS, position] = trie[PROBS, node]
        best[SOURCES, position] = trie[SOURCES, node]
    return best
