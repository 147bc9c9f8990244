"""Nodes that wait for their place in a draft tree, in one block of scratch memory, ranked.

A block holds one record per node, and after the records the ranking: the addresses of those that wait,
the best one last, followed by those of the free records. Taking the best one is to shorten the ranking.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import inlined_kernel

PATH_PROB, OWN_PROB, ORDER, PARENT, FIRST_OWN_WORD = range(5)
"""Words of every record; the first two are float64, seen through a view of the block."""
NODE_WORDS = 8
"""A cache line; the words from `FIRST_OWN_WORD` on belong to whoever ranks the nodes."""

TOKEN_BITS = 31
MIN_PATH_PROB = float(np.float32(5e-4))
"""A node that is less probable costs more to verify than it can save."""


@inlined_kernel
def order_of(depth, token):
    """Returns what ranks nodes of equal path probability, the lowest first: low depth, then low token."""
    return (depth << TOKEN_BITS) | token


@inlined_kernel
def depth_of(order):
    """Returns the depth of a node."""
    return order >> TOKEN_BITS


@inlined_kernel
def token_of(order):
    """Returns the token of a node."""
    return order & ((1 << TOKEN_BITS) - 1)


@inlined_kernel
def free_all(block, nodes, ranking, num_nodes):
    """Ranks so many records, the first one at `nodes`: none of them waits, all are free."""
    for i in range(num_nodes):
        block[ranking + i] = nodes + i * NODE_WORDS


@inlined_kernel
def least_useful(block, floats, ranking, num_waiting, capacity):
    """Returns the path probability below which no further node is worth a place."""
    return MIN_PATH_PROB if num_waiting < capacity else floats[block[ranking] + PATH_PROB]


@inlined_kernel
def describe(block, floats, node, path_prob, own_prob, order, parent):
    """Writes the words that every record has; `parent` is the index of a node in the tree, or -1."""
    floats[node + PATH_PROB] = path_prob
    floats[node + OWN_PROB] = own_prob
    block[node + ORDER] = order
    block[node + PARENT] = parent


@inlined_kernel
def add_to_tree(block, floats, node, size, token_ids, parents, probs):
    """Makes a record the node `size` of the tree; returns its depth and its path probability."""
    token_ids[size] = token_of(block[node + ORDER])
    parents[size] = block[node + PARENT]
    probs[size] = floats[node + OWN_PROB]
    return depth_of(block[node + ORDER]), floats[node + PATH_PROB]


@inlined_kernel
def _ranks_before(path_prob, order, block, floats, other):
    """Orders nodes as `fusion.best_first` does: path probability, then depth, then token."""
    others = floats[other + PATH_PROB]
    return path_prob > others or (path_prob == others and order < block[other + ORDER])


@inlined_kernel
def enter(block, floats, ranking, num_waiting, capacity):
    """Puts the node in the first free record in its place among those that wait; returns their number.

    Of equal ones the earlier is better. If `capacity` nodes wait already, the worst of all falls out,
    which may be the node itself.
    """
    at = ranking + num_waiting
    node = block[at]
    path_prob, order = floats[node + PATH_PROB], block[node + ORDER]
    if num_waiting == capacity:
        _replace_worst(path_prob, order, block, floats, ranking, at)
        return num_waiting
    while at > ranking:
        other = block[at - 1]
        if _ranks_before(path_prob, order, block, floats, other):
            break
        block[at] = other
        at -= 1
    block[at] = node
    return num_waiting + 1


@inlined_kernel
def _replace_worst(path_prob, order, block, floats, ranking, stop):
    """Swaps the node that stands at `stop` for the worst of those before it, if it is better."""
    node, worst = block[stop], block[ranking]
    if not _ranks_before(path_prob, order, block, floats, worst):
        return
    at = ranking
    while at + 1 < stop and _ranks_before(path_prob, order, block, floats, block[at + 1]):
        block[at] = block[at + 1]
        at += 1
    block[at] = node
    block[stop] = worst
