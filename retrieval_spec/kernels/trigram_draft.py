"""Drafts from trigrams: what a corpus says of the next token, and what was added for text of late.

Values are in ten-thousandths, so that sums of them are exact.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.ngram import (
    NOWHERE,
    SUCCESSOR_WORDS,
    SUCCESSORS,
    TOTAL,
    count_of,
    longer,
    num_kept,
    record_of,
)
from retrieval_spec.kernels.ranking import (
    NODE_WORDS,
    PARENT,
    add_to_tree,
    describe,
    enter,
    free_all,
    order_of,
)

MAX_NODES = 64
MAX_PATHS = 24
MAX_SUCCESSORS = 12
MAX_DEPTH = 4
"""Nodes on a path that compete; each of the deepest is followed by its best successor alone."""
WHOLE = 10_000
ADDED = 400
MAX_VALUE = 30_000

CHILD_TOKEN, CHILD_VALUE, CHILD_WORDS = range(3)

# The scratch memory: children of one node, how many each node has, the nodes, their ranking. No node that
# waits is dropped: which one comes next depends on the paths that are open then.
_MAX_WAITING = MAX_NODES * MAX_SUCCESSORS
CHILDREN = 0
NUM_CHILDREN = CHILDREN + (MAX_SUCCESSORS + 1) * CHILD_WORDS
NODES = NUM_CHILDREN + MAX_NODES
RANKING = NODES + (_MAX_WAITING + 1) * NODE_WORDS
SCRATCH_WORDS = RANKING + _MAX_WAITING + 1


@inlined_kernel
def _row_after(arena, older_token, token):
    return longer(arena, longer(arena, np.int64(0), token), older_token)


@inlined_kernel
def _keep_child(block, num_children, token, value):
    """Enters a child in its place by value, then token; of too many, the last falls out."""
    at = CHILDREN + num_children * CHILD_WORDS
    while at > CHILDREN:
        before = at - CHILD_WORDS
        others = block[before + CHILD_VALUE]
        if others > value or (others == value and block[before + CHILD_TOKEN] < token):
            break
        block[at + CHILD_TOKEN], block[at + CHILD_VALUE] = block[before + CHILD_TOKEN], others
        at = before
    block[at + CHILD_TOKEN], block[at + CHILD_VALUE] = token, value
    return min(num_children + 1, MAX_SUCCESSORS)


@inlined_kernel
def _is_kept(static, static_row, token):
    """Tells whether the corpus has the token among the successors that were kept of it."""
    if static_row == NOWHERE:
        return False
    record = record_of(static, static_row)
    for place in range(num_kept(static, record)):
        if static[record + SUCCESSORS + place * SUCCESSOR_WORDS] == token:
            return True
    return False


@allocation_free_kernel
def _find_children(static, learned, older, older_token, token, block):
    """Writes the best successors of two tokens, the best first; returns how many there are."""
    static_row = _row_after(static, older_token, token)
    source, row = learned, _row_after(learned, older_token, token)
    if row == NOWHERE:
        source, row = older, _row_after(older, older_token, token)
    num_children = 0
    if static_row != NOWHERE:
        record = record_of(static, static_row)
        for place in range(num_kept(static, record)):
            at = record + SUCCESSORS + place * SUCCESSOR_WORDS
            value = WHOLE * np.int64(static[at + 1]) // static[record + TOTAL]
            if row != NOWHERE:
                value += ADDED * count_of(source, row, static[at])
            num_children = _keep_child(block, num_children, np.int64(static[at]), min(value, MAX_VALUE))
    if row != NOWHERE:
        record = record_of(source, row)
        for place in range(num_kept(source, record)):
            at = record + SUCCESSORS + place * SUCCESSOR_WORDS
            if not _is_kept(static, static_row, source[at]):
                value = min(ADDED * np.int64(source[at + 1]), MAX_VALUE)
                num_children = _keep_child(block, num_children, np.int64(source[at]), value)
    return num_children


@inlined_kernel
def _let_children_wait(block, floats, waiting, num_children, depth, parent, path_prob):
    """Lets the children of a node wait for their place in the tree; returns how many nodes wait then."""
    total = np.int64(0)
    for child in range(CHILDREN, CHILDREN + num_children * CHILD_WORDS, CHILD_WORDS):
        total += block[child + CHILD_VALUE]
    num_wanted = num_children if depth <= MAX_DEPTH else min(num_children, 1)
    for child in range(CHILDREN, CHILDREN + num_wanted * CHILD_WORDS, CHILD_WORDS):
        if block[child + CHILD_VALUE] > 0:
            node = block[RANKING + waiting]
            own_prob = np.float64(np.float32(block[child + CHILD_VALUE] / total))
            order = order_of(depth, block[child + CHILD_TOKEN])
            describe(block, floats, node, np.float32(own_prob * path_prob), own_prob, order, parent)
            waiting = enter(block, floats, RANKING, waiting, _MAX_WAITING)
    return waiting


@inlined_kernel
def _opens_a_path(block, parent):
    """Tells whether a child of the node makes one path more, and does not only lengthen one."""
    return parent < 0 or block[NUM_CHILDREN + parent] > 0


@allocation_free_kernel
def draft(static, learned, older, context, max_depth_nodes, block, token_ids, parents, probs):
    """Fills a draft tree with the most probable paths, best first; returns its size.

    Args:
        static: int32[words]  trigram counts of a corpus (`kernels.ngram`).
        learned: int32[words]  how often `ADDED` was added for a trigram.
        older: int32[words]  the same, for contexts that `learned` does not hold.
        context: int32[c]  the tokens before the draft, the newest last; fewer than two draft nothing.
        max_depth_nodes: no path is longer.
        block: int64[SCRATCH_WORDS]  scratch memory.
        token_ids: int32[max_nodes]  written; `MAX_NODES` at most.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: the token's share of its context's values.
    """
    size, waiting, num_paths = 0, 0, 0
    if context.shape[0] < 2:
        return size
    floats = block.view(np.float64)
    free_all(block, NODES, RANKING, _MAX_WAITING + 1)
    older_token, token = context[context.shape[0] - 2], context[context.shape[0] - 1]
    parent, depth, path_prob = np.int64(-1), np.int64(0), 1.0
    while size < min(token_ids.shape[0], MAX_NODES):
        if depth <= min(MAX_DEPTH, max_depth_nodes - 1):
            num_children = _find_children(static, learned, older, older_token, token, block)
            waiting = _let_children_wait(block, floats, waiting, num_children, depth + 1, parent, path_prob)
        best = np.int64(-1)
        while waiting > 0 and best < 0:
            waiting -= 1
            best = block[RANKING + waiting]
            if num_paths == MAX_PATHS and _opens_a_path(block, block[best + PARENT]):
                best = np.int64(-1)
        if best < 0:
            break
        depth, path_prob = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        grown = block[best + PARENT]
        num_paths += _opens_a_path(block, grown)
        if grown >= 0:
            block[NUM_CHILDREN + grown] += 1
        block[NUM_CHILDREN + size] = 0
        older_token = token_ids[grown] if grown >= 0 else context[context.shape[0] - 1]
        token, parent = token_ids[size], np.int64(size)
        size += 1
    return size
