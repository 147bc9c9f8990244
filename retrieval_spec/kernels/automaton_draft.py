"""Expands a suffix automaton into a draft tree, most probable path first.

The longest suffix of the text that occurred before is the suffix link of the last state. From there
every node's children are the edges of its state and of up to `MAX_STATES_PER_NODE - 1` states down
the suffix links: a shorter match gets what the longer ones leave over (they may all be wrong), so
the children's probabilities add up to less than one. A state at the end of the text has no edges and
passes everything on to its link: copying runs on into its own draft, and periodic text drafts on.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.automaton import (
    COUNT,
    EDGE_NEXT,
    EDGE_TARGET,
    EDGE_TOKEN,
    EDGE_WORDS,
    EDGES_AT,
    HEADER_WORDS,
    LAST,
    LAST_END,
    LENGTH,
    LINK,
    NUM_TOKENS,
    OVERFLOW,
    STATE_WORDS,
    TARGET,
    TOKEN,
)
from retrieval_spec.kernels.jit import kernel

MAX_STATES_PER_NODE = 5
MAX_EDGES_PER_STATE = 32
"""Edges looked at in a state with many: its oldest one and its newest ones."""
MAX_CHILDREN = 8
MIN_PATH_PROB = 1e-4
"""A node that is less probable costs more to verify than it can save."""
RECENT_COUNT = 1.0
"""Occurrences that the most recent continuation counts extra: a text resembles its latest part most."""

# Words of one candidate: what a node that may still join the tree needs to be ranked and expanded.
CANDIDATE_WORDS = 5
NODE_TOKEN, NODE_PARENT, NODE_STATE, NODE_MATCH, NODE_DEPTH = range(CANDIDATE_WORDS)


@kernel
def _add_child(children, child_probs, num_children, token, state, match_length, prob):
    """Adds `prob` to the child with that token, or makes one, in place of the least probable if full."""
    least = 0
    for child in range(num_children):
        if children[child, NODE_TOKEN] == token:
            child_probs[child] += prob
            return num_children
        if child_probs[child] < child_probs[least]:
            least = child
    if num_children < MAX_CHILDREN:
        least = num_children
        num_children += 1
    elif prob <= child_probs[least]:
        return num_children
    children[least, NODE_TOKEN] = token
    children[least, NODE_STATE] = state
    children[least, NODE_MATCH] = match_length + 1
    child_probs[least] = prob
    return num_children


@kernel
def _newest_end(arena, state):
    """Returns the last end among the targets of the edges that are looked at."""
    record = HEADER_WORDS + state * STATE_WORDS
    edges_at = np.int64(arena[EDGES_AT])
    newest = arena[HEADER_WORDS + np.int64(arena[record + TARGET]) * STATE_WORDS + LAST_END]
    edge_index = np.int64(arena[record + OVERFLOW])
    for _ in range(MAX_EDGES_PER_STATE - 1):
        if edge_index == 0:
            break
        edge = edges_at + edge_index * EDGE_WORDS
        target = HEADER_WORDS + np.int64(arena[edge + EDGE_TARGET]) * STATE_WORDS
        newest = max(newest, arena[target + LAST_END])
        edge_index = np.int64(arena[edge + EDGE_NEXT])
    return newest


@kernel
def _add_edges(arena, state, match_length, weight, children, child_probs, num_children):
    """Adds the continuations of one state, which share `weight` by their counts."""
    record = HEADER_WORDS + state * STATE_WORDS
    edges_at = np.int64(arena[EDGES_AT])
    at_end = arena[record + LAST_END] == arena[NUM_TOKENS] - 1
    total = max(arena[record + COUNT] - (1 if at_end else 0), 1) + RECENT_COUNT
    newest = _newest_end(arena, state)
    edge_index = np.int64(0)
    token = arena[record + TOKEN]
    target = np.int64(arena[record + TARGET])
    next_edge = np.int64(arena[record + OVERFLOW])
    for _ in range(MAX_EDGES_PER_STATE):
        above = HEADER_WORDS + target * STATE_WORDS
        count = arena[above + COUNT] + (RECENT_COUNT if arena[above + LAST_END] == newest else 0.0)
        prob = weight * min(count / total, 1.0)
        num_children = _add_child(children, child_probs, num_children, token, target, match_length, prob)
        edge_index = next_edge
        if edge_index == 0:
            break
        edge = edges_at + edge_index * EDGE_WORDS
        token = arena[edge + EDGE_TOKEN]
        target = np.int64(arena[edge + EDGE_TARGET])
        next_edge = np.int64(arena[edge + EDGE_NEXT])
    return num_children


@kernel
def _find_children(arena, reliability, state, match_length, path_prob, children, child_probs):
    """Blends the continuations of a match and of its suffixes; returns how many there are."""
    num_children = 0
    left = 1.0
    states_left = MAX_STATES_PER_NODE
    while state > 0 and states_left > 0 and left * path_prob >= MIN_PATH_PROB:
        record = HEADER_WORDS + state * STATE_WORDS
        if arena[record + TARGET] >= 0:
            worth = reliability[min(match_length, reliability.shape[0] - 1)]
            num_children = _add_edges(
                arena, state, match_length, left * worth, children, child_probs, num_children
            )
            left *= 1.0 - worth
            states_left -= 1
        state = np.int64(arena[record + LINK])
        match_length = np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LENGTH])
    return num_children


@kernel
def _comes_first(nodes, path_probs, left, right):
    """Whether candidate `left` ranks before `right`: probability, then depth, token and parent."""
    if path_probs[left] != path_probs[right]:
        return path_probs[left] > path_probs[right]
    for word in (NODE_DEPTH, NODE_TOKEN, NODE_PARENT):
        if nodes[left, word] != nodes[right, word]:
            return nodes[left, word] < nodes[right, word]
    return False


@kernel
def _push(heap, size, nodes, path_probs, candidate):
    at = size
    while at > 0 and _comes_first(nodes, path_probs, candidate, heap[(at - 1) // 2]):
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = candidate


@kernel
def _pop(heap, size, nodes, path_probs):
    best = heap[0]
    moved = heap[size - 1]
    at = 0
    while 2 * at + 1 < size - 1:
        child = 2 * at + 1
        if child + 1 < size - 1 and _comes_first(nodes, path_probs, heap[child + 1], heap[child]):
            child += 1
        if not _comes_first(nodes, path_probs, heap[child], moved):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moved
    return best


@kernel
def draft(arena, reliability, max_depth_nodes, token_ids, parents, probs):
    """Fills a draft tree with the most probable continuations, best first; returns its size.

    Args:
        arena: int32[words]  the automaton (`kernels.automaton`).
        reliability: float32[m]  P(the next token is among those seen) by match length; the last entry
            stands for all longer ones.
        max_depth_nodes: no path is longer.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
    """
    max_nodes = token_ids.shape[0]
    max_candidates = max_nodes * MAX_CHILDREN
    nodes = np.empty((max_candidates, CANDIDATE_WORDS), np.int32)
    node_probs = np.empty(max_candidates, np.float32)
    path_probs = np.empty(max_candidates, np.float32)
    heap = np.empty(max_candidates, np.int32)
    children = np.empty((MAX_CHILDREN, CANDIDATE_WORDS), np.int32)
    child_probs = np.empty(MAX_CHILDREN, np.float64)
    state = np.int64(arena[HEADER_WORDS + np.int64(arena[LAST]) * STATE_WORDS + LINK])
    match_length = np.int64(arena[HEADER_WORDS + max(state, 0) * STATE_WORDS + LENGTH])
    path_prob = np.float32(1.0)
    parent, depth, size, num_candidates, heap_size = -1, 1, 0, 0, 0
    while True:
        num_children = 0
        if depth <= max_depth_nodes:
            num_children = _find_children(
                arena, reliability, state, match_length, path_prob, children, child_probs
            )
        for child in range(num_children):
            prob = np.float32(min(child_probs[child], 1.0))
            if prob * path_prob < MIN_PATH_PROB:
                continue
            nodes[num_candidates] = children[child]
            nodes[num_candidates, NODE_PARENT] = parent
            nodes[num_candidates, NODE_DEPTH] = depth
            node_probs[num_candidates] = prob
            path_probs[num_candidates] = prob * path_prob
            _push(heap, heap_size, nodes, path_probs, num_candidates)
            heap_size += 1
            num_candidates += 1
        if heap_size == 0:
            return size
        best = _pop(heap, heap_size, nodes, path_probs)
        heap_size -= 1
        token_ids[size] = nodes[best, NODE_TOKEN]
        parents[size] = nodes[best, NODE_PARENT]
        probs[size] = node_probs[best]
        parent = size
        size += 1
        if size == max_nodes:
            return size
        state = np.int64(nodes[best, NODE_STATE])
        match_length = np.int64(nodes[best, NODE_MATCH])
        path_prob = path_probs[best]
        depth = nodes[best, NODE_DEPTH] + 1
