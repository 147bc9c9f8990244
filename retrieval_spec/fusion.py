"""Longest-prefix fusion of draft trees and selection of the best nodes.

Shared by the server (several sources) and the verifier (retrieval beside a draft model), so it needs
numpy alone. `merge` and `best_first` are written in the subset that numba compiles: the engine passes
their compiled form to `fuse` (`kernels.fusion`), a verifier without numba runs them as they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from retrieval_spec.tree import DraftTree, Float32s, Int32s, Tokens, Uint16s

Columns = tuple[Tokens, Int32s, Float32s, Uint16s]
Fuser = Callable[[Tokens, Int32s, Float32s, Uint16s, Int32s, int], Columns]


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
    sources = np.concatenate([tree.sources for tree in proposed])
    return fuse_columns(proposed, sources, max_nodes, names, fuser or best_paths)


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
    sources = np.array([1 << bit for bit in bits], np.uint16).repeat([len(tree) for tree in proposed])
    return fuse_columns(proposed, sources, max_nodes, source_names, fuser)


def fuse_columns(
    trees: Sequence[DraftTree], sources: Uint16s, max_nodes: int, names: tuple[str, ...], fuser: Fuser
) -> DraftTree:
    """Fuses trees under the given source masks: uint16[nodes of all trees]."""
    starts = [0]
    for tree in trees:
        starts.append(starts[-1] + len(tree))
    columns = fuser(
        np.concatenate([tree.token_ids for tree in trees]),
        np.concatenate([tree.parents for tree in trees]),
        np.concatenate([tree.probs for tree in trees]),
        sources,
        np.array(starts, np.int32),
        max_nodes,
    )
    return DraftTree(*columns, names)


def best_paths(
    token_ids: Tokens, parents: Int32s, probs: Float32s, sources: Uint16s, starts: Int32s, max_nodes: int
) -> Columns:
    """Merges equal paths of a forest and keeps its best nodes: `merge`, then `best_first`."""
    return best_first(*merge(token_ids, parents, probs, sources, starts), max_nodes)


def merge(token_ids: Tokens, parents: Int32s, probs: Float32s, sources: Uint16s, starts: Int32s) -> Columns:
    """Returns the trie of a forest: equal paths become one, with the best probability of each node.

    Args:
        token_ids: int32[n]  the trees' nodes, one tree after the other.
        parents: int32[n]  -1 or the index of an earlier node, counted from the start of the own tree.
        probs: float32[n]  P(node accepted | parent accepted).
        sources: uint16[n]  bit mask of drafters.
        starts: int32[trees + 1]  where each tree begins; the last entry is n.
    """
    n = token_ids.shape[0]
    place = np.empty(n, np.int32)  # node of the forest -> node of the trie
    first_child = np.full(n + 1, -1, np.int32)  # entry 0 is the context
    next_sibling = np.full(n, -1, np.int32)
    out_tokens = np.empty(n, np.int32)
    out_parents = np.empty(n, np.int32)
    out_probs = np.empty(n, np.float32)
    out_sources = np.empty(n, np.uint16)
    size = 0
    tree = 0
    for node in range(n):
        while node >= starts[tree + 1]:
            tree += 1
        parent = place[starts[tree] + parents[node]] if parents[node] >= 0 else -1
        child = first_child[parent + 1]
        while child >= 0 and out_tokens[child] != token_ids[node]:
            child = next_sibling[child]
        if child < 0:
            child = size
            size += 1
            out_tokens[child] = token_ids[node]
            out_parents[child] = parent
            out_probs[child] = probs[node]
            out_sources[child] = sources[node]
            next_sibling[child] = first_child[parent + 1]
            first_child[parent + 1] = child
        else:
            out_probs[child] = max(out_probs[child], probs[node])
            out_sources[child] |= sources[node]
        place[node] = child
    return out_tokens[:size], out_parents[:size], out_probs[:size], out_sources[:size]


def best_first(
    token_ids: Tokens, parents: Int32s, probs: Float32s, sources: Uint16s, max_nodes: int
) -> Columns:
    """Returns the `max_nodes` nodes of the largest path probability, best first.

    A parent is at least as probable as its child and less deep, so it always comes first.
    """
    n = token_ids.shape[0]
    path_probs = np.empty(n, np.float32)
    depths = np.empty(n, np.int64)
    for node in range(n):
        parent = parents[node]
        path_probs[node] = probs[node] * path_probs[parent] if parent >= 0 else probs[node]
        depths[node] = depths[parent] + 1 if parent >= 0 else 1
    # The bits of non-negative floats sort like the floats, so one integer holds probability and depth.
    falling = np.int64(0x7FFFFFFF) - path_probs.view(np.int32)
    by_token = np.argsort(token_ids, kind="mergesort")
    by_key = np.argsort(((falling << 31) + depths)[by_token], kind="mergesort")
    order = by_token[by_key][:max_nodes]
    count = order.shape[0]
    rank = np.empty(n, np.int32)
    out_parents = np.empty(count, np.int32)
    for position in range(count):
        rank[order[position]] = position
        parent = parents[order[position]]
        out_parents[position] = rank[parent] if parent >= 0 else -1
    return token_ids[order], out_parents, probs[order], sources[order]
