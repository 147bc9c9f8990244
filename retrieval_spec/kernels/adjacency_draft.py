"""Expands rows of likely next tokens into draft trees: along a fixed template, or best paths first."""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.adjacency import (
    BEHIND_TWO,
    BY_ONE,
    BY_TWO,
    NO_ROW,
    RIGHT,
    SEEN,
    WIDTH,
    class_of,
    find,
    is_in,
    level_at,
    row_of,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.ranking import (
    NODE_WORDS,
    add_to_tree,
    describe,
    enter,
    free_all,
    least_useful,
    order_of,
)

# Rows of a drafted tree; the last one of a template's is scratch memory.
TOKEN_ID, PARENT, PROB, PLACE = range(4)
# Rows of a template.
TEMPLATE_PARENT, TEMPLATE_RANK, TEMPLATE_DEPTH = range(3)
_LEFT_OUT = -2


def scratch_words(max_nodes: int) -> int:
    """Returns how many words of scratch memory `draft` needs for so many nodes."""
    return (max_nodes + 1) * (NODE_WORDS + 1)


@allocation_free_kernel
def fill_template(arena, template, root, max_nodes, max_depth_nodes, tree):
    """Fills a fixed template with the rows' tokens, level by level; returns the size of the tree.

    A node whose entry is not known is left out, and so is all that the template has below it.

    Args:
        arena: int32[words]  the rows (`kernels.adjacency`).
        template: int32[3, n]  parent, rank in its row, and depth of every node; parents come first.
        root: the last token of the context.
        max_nodes: nodes of the tree at most.
        max_depth_nodes: nodes on one path at most.
        tree: int32[4, n]  written: token ids, parents, and the index of each node in the template.
    """
    size = 0
    for node in range(template.shape[1]):
        tree[PLACE, node] = _LEFT_OUT
        if size == max_nodes or template[TEMPLATE_DEPTH, node] > max_depth_nodes:
            continue
        above = np.int64(template[TEMPLATE_PARENT, node])
        parent = np.int64(-1)
        token = np.int64(root)
        if above >= 0:
            parent = np.int64(tree[PLACE, above])
            if parent == _LEFT_OUT:
                continue
            token = np.int64(tree[TOKEN_ID, parent])
        entry = arena[row_of(token) + template[TEMPLATE_RANK, node]]
        if entry == 0:
            continue
        tree[TOKEN_ID, size] = entry - 1
        tree[PARENT, size] = parent
        tree[PROB, size] = node
        tree[PLACE, node] = size
        size += 1
    return size


@inlined_kernel
def _enter_row(arena, row, above, kind, rates, queue, waiting, parent):
    """Lets the tokens of a row that the row `above` has not wait for their place; returns how many wait.

    `rates` are the shares and the counts, `queue` the scratch memory, as words and as floats, where its
    ranking is and how many may wait, `parent` the node's index, depth and path probability.
    """
    shares, counts = rates
    block, floats, ranking, capacity = queue
    index, depth, path_prob = parent
    for rank in range(WIDTH):
        entry = arena[row + rank]
        if entry == 0 or (above != NO_ROW and is_in(arena, above, entry)):
            continue
        counted = class_of(kind, rank, level_at(arena, row, rank))
        prob = np.float32(
            (shares[RIGHT, counted] + counts[RIGHT, counted])
            / (shares[SEEN, counted] + counts[SEEN, counted])
        )
        child_path_prob = np.float32(path_prob * prob)
        if child_path_prob < least_useful(block, floats, ranking, waiting, capacity):
            continue
        node = block[ranking + waiting]
        describe(block, floats, node, child_path_prob, prob, order_of(depth + 1, np.int64(entry) - 1), index)
        waiting = enter(block, floats, ranking, waiting, capacity)
    return waiting


@allocation_free_kernel
def draft(arena, shares, counts, previous, root, max_depth_nodes, block, tree):
    """Fills a draft tree with the most probable paths, best first; returns its size.

    A node's children are what its token and its parent's token had after them and, less probable, what
    its token had after it elsewhere.

    Args:
        arena: int32[words]  the rows (`kernels.adjacency`).
        shares: float64[2, NUM_CLASSES]  what is added to the counts before there are any.
        counts: int64[2, NUM_CLASSES]  how often a class of candidates was offered, and was right.
        previous: the token before the last one, -1 if there is none.
        root: the last token of the context.
        max_depth_nodes: no path is longer.
        block: int64[scratch_words(n)]  scratch memory.
        tree: int32[3, n]  written: token ids, parents, and the bits of P(node accepted | parent accepted).
    """
    max_nodes = tree.shape[1]
    floats = block.view(np.float64)
    token_ids, parents, probs = tree[TOKEN_ID], tree[PARENT], tree[PROB].view(np.float32)
    ranking = (max_nodes + 1) * NODE_WORDS
    free_all(block, 0, ranking, max_nodes + 1)
    size, waiting = 0, 0
    before, token = np.int64(previous), np.int64(root)
    depth, path_prob = np.int64(0), 1.0
    rates = shares, counts
    while size < max_nodes:
        if depth < max_depth_nodes:
            queue = block, floats, ranking, max_nodes - size
            parent = size - 1, depth, path_prob
            row = find(arena, before, token)
            kind = BY_ONE
            if row != NO_ROW:
                kind = BEHIND_TWO
                waiting = _enter_row(arena, row, NO_ROW, BY_TWO, rates, queue, waiting, parent)
            waiting = _enter_row(arena, row_of(token), row, kind, rates, queue, waiting, parent)
        if waiting == 0:
            break
        waiting -= 1
        best = block[ranking + waiting]
        depth, path_prob = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        before = np.int64(root) if parents[size] < 0 else np.int64(token_ids[parents[size]])
        token = np.int64(token_ids[size])
        size += 1
    return size
