"""The most probable nodes of many trees: what is the least of the best so far, and where to cut each tree.

The best so far are a heap of path probabilities, the least first, with room for as many as are wanted of
all trees together. No room at all: all nodes are wanted.
"""

from __future__ import annotations

from retrieval_spec.kernels.jit import inlined_kernel

ALL = -1.0
"""Below any path probability."""


@inlined_kernel
def floor_of(best, num_best):
    """Returns the path probability that a further node must exceed."""
    return best[0] if 0 < best.shape[0] == num_best else ALL


@inlined_kernel
def _sift_up(best, at):
    while at > 0 and best[at] < best[(at - 1) // 2]:
        best[at], best[(at - 1) // 2] = best[(at - 1) // 2], best[at]
        at = (at - 1) // 2


@inlined_kernel
def _sift_down(best):
    at, least = 0, 0
    while True:
        for child in (2 * at + 1, 2 * at + 2):
            if child < best.shape[0] and best[child] < best[least]:
                least = child
        if least == at:
            return
        best[at], best[least] = best[least], best[at]
        at = least


@inlined_kernel
def admit(best, num_best, path_probs):
    """Takes in the nodes of one more tree, the best first; returns how many are the best ones then."""
    for path_prob in path_probs:
        if num_best < best.shape[0]:
            best[num_best] = path_prob
            _sift_up(best, num_best)
            num_best += 1
        elif num_best == 0 or path_prob <= best[0]:
            return num_best
        else:
            best[0] = path_prob
            _sift_down(best)
    return num_best


@inlined_kernel
def num_at_floor(best):
    """Returns how many of the best ones are no better than the least."""
    num = 0
    for path_prob in best:
        num += path_prob == best[0]
    return num


@inlined_kernel
def cut(best, path_probs, at_floor):
    """Returns how many nodes of a tree are among the best, and how many places at the floor are left.

    Args:
        best: float32[n]  the heap, full.
        path_probs: float32[m]  of the tree, falling.
        at_floor: places for nodes that are as good as the least of the best; earlier trees come first.
    """
    num = 0
    for path_prob in path_probs:
        if path_prob < best[0] or (path_prob == best[0] and at_floor == 0):
            break
        at_floor -= path_prob == best[0]
        num += 1
    return num, at_floor
