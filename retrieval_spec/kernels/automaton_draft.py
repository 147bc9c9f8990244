"""Expands a suffix automaton into a draft tree, most probable path first.

The longest suffix of the text that occurred before is the suffix link of the last state. From there
every node's children are what followed its match and, with the probability that this leaves over,
what else followed the next shorter match. A state at the end of the text has no edges and passes on
to its link: copying runs on into its own draft, so periodic text drafts to any depth.
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

MAX_MATCHES = 2
"""Matches that are blended at a node: the longest and the next shorter; more gained nothing."""
MAX_EDGES = 32
MAX_EDGES_IF_RARE = 8
"""Edges looked at in a state with many: its oldest one and its newest ones; few under a rare node."""
RARE_PATH_PROB = 0.05
MAX_CHILDREN = 8
MIN_PATH_PROB = 5e-4
"""A node that is less probable costs more to verify than it can save."""

ONE_CONTINUATION, MORE_CONTINUATIONS, SHORTER_MATCH = range(3)
"""First index of `worth`."""

# Words of a continuation that was found and of a node that waits for its place in the tree.
FOUND_TOKEN, FOUND_STATE, FOUND_MATCH, FOUND_COUNT, FOUND_WORDS = range(5)
NODE_TOKEN, NODE_STATE, NODE_MATCH, NODE_PARENT, NODE_DEPTH, NODE_WORDS = range(6)


@kernel
def _is_child(children, num_children, token):
    for child in range(num_children):
        if children[child, FOUND_TOKEN] == token:
            return True
    return False


@kernel
def _gather(arena, state, match_length, max_edges, children, num_children, found):
    """Writes the continuations of a state that are no children yet; returns how many and their total."""
    record = HEADER_WORDS + state * STATE_WORDS
    edges_at = np.int64(arena[EDGES_AT])
    token = arena[record + TOKEN]
    target = np.int64(arena[record + TARGET])
    edge_index = np.int64(arena[record + OVERFLOW])
    num_found, total, known_total = 0, np.int64(0), np.int64(0)
    for _ in range(max_edges):
        count = np.int64(arena[HEADER_WORDS + target * STATE_WORDS + COUNT])
        if _is_child(children, num_children, token):
            known_total += count
        else:
            found[num_found, FOUND_TOKEN] = token
            found[num_found, FOUND_STATE] = target
            found[num_found, FOUND_MATCH] = match_length + 1
            found[num_found, FOUND_COUNT] = count
            num_found += 1
            total += count
        if edge_index == 0:
            return num_found, total
        edge = edges_at + edge_index * EDGE_WORDS
        token = arena[edge + EDGE_TOKEN]
        target = np.int64(arena[edge + EDGE_TARGET])
        edge_index = np.int64(arena[edge + EDGE_NEXT])
    # Edges were left out, so the state's own count tells the total; its end in the text continues nowhere.
    ends_here = 1 if arena[record + LAST_END] == arena[NUM_TOKENS] - 1 else 0
    return num_found, max(total, arena[record + COUNT] - ends_here - known_total)


@kernel
def _worth_of(worth, kind, match_length, total):
    """Returns P(the next token is among these continuations), from the table."""
    bits = 0
    while total > 1 and bits < worth.shape[2] - 1:
        total >>= 1
        bits += 1
    return np.float64(worth[kind, min(match_length, worth.shape[1] - 1), bits])


@kernel
def _keep_child(children, child_probs, num_children, found, index, prob):
    """Makes a continuation a child, in place of the least probable one if there are enough."""
    place = num_children
    if num_children == MAX_CHILDREN:
        place = 0
        for child in range(1, num_children):
            if child_probs[child] < child_probs[place]:
                place = child
        if prob <= child_probs[place]:
            return num_children
    for word in range(FOUND_WORDS):
        children[place, word] = found[index, word]
    child_probs[place] = prob
    return max(num_children, place + 1)


@kernel
def _find_children(arena, worth, state, match_length, path_prob, floor, children, child_probs, found):
    """Writes the children of a node, best matches first; returns how many there are."""
    num_children, num_matches, left = 0, 0, 1.0
    max_edges = MAX_EDGES_IF_RARE if path_prob < RARE_PATH_PROB else MAX_EDGES
    while state > 0 and num_matches < MAX_MATCHES and left * path_prob >= floor:
        record = HEADER_WORDS + state * STATE_WORDS
        if arena[record + TARGET] >= 0:
            num_found, total = _gather(arena, state, match_length, max_edges, children, num_children, found)
            if num_found > 0:
                kind = ONE_CONTINUATION if num_found == 1 else MORE_CONTINUATIONS
                if num_children > 0:
                    kind = SHORTER_MATCH
                share = _worth_of(worth, kind, match_length, total)
                for index in range(num_found):
                    prob = left * share * found[index, FOUND_COUNT] / total
                    num_children = _keep_child(children, child_probs, num_children, found, index, prob)
                left *= 1.0 - share
            num_matches += 1
        state = np.int64(arena[record + LINK])
        match_length = np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LENGTH])
    return num_children


@kernel
def _ranks_before(nodes, path_probs, one, other):
    """Orders nodes as `fusion.best_first` does: path probability, then depth, then token."""
    if path_probs[one] != path_probs[other]:
        return path_probs[one] > path_probs[other]
    if nodes[one, NODE_DEPTH] != nodes[other, NODE_DEPTH]:
        return nodes[one, NODE_DEPTH] < nodes[other, NODE_DEPTH]
    return nodes[one, NODE_TOKEN] < nodes[other, NODE_TOKEN]


@kernel
def _enter(ranking, ranked, size, nodes, path_probs, node):
    """Puts a node in its place among those that wait; returns how many are ranked and a free row.

    If there is no more room the last one of the ranking falls out, which may be the node itself.
    """
    at = ranked
    free = ranked + 1
    if ranked == ranking.shape[0]:
        at -= 1
        free = np.int64(ranking[at])
        if not _ranks_before(nodes, path_probs, node, free):
            return ranked, node
    path_prob = path_probs[node]
    while at > size:
        other = np.int64(ranking[at - 1])
        if path_prob < path_probs[other]:
            break
        if path_prob == path_probs[other] and not _ranks_before(nodes, path_probs, node, other):
            break
        ranking[at] = other
        at -= 1
    ranking[at] = node
    return min(ranked + 1, ranking.shape[0]), free


@kernel
def draft(arena, worth, max_depth_nodes, token_ids, parents, probs, sources):
    """Fills a draft tree with the most probable continuations, best first; returns its size.

    Args:
        arena: int32[words]  the automaton (`kernels.automaton`).
        worth: float32[3, lengths, bits]  P(the next token is among the continuations found), by kind of
            match, by its length (the last entry stands for longer ones) and by log2 of their count.
        max_depth_nodes: no path is longer.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
        sources: uint16[max_nodes]  written: 1 for every node, the mask of a single drafter.
    """
    max_nodes = token_ids.shape[0]
    found = np.empty((MAX_EDGES + MAX_CHILDREN, FOUND_WORDS), np.int32)
    children = found[MAX_EDGES:]
    child_probs = np.empty(MAX_CHILDREN, np.float32)
    nodes = np.empty((max_nodes + 1, NODE_WORDS), np.int32)
    node_probs = np.empty(max_nodes + 1, np.float32)
    path_probs = np.empty(max_nodes + 1, np.float32)
    ranking = np.empty(max_nodes, np.int32)  # rows of nodes: first the tree, then those that wait
    size, ranked, free = 0, 0, np.int64(0)
    state = np.int64(arena[HEADER_WORDS + np.int64(arena[LAST]) * STATE_WORDS + LINK])
    match_length = np.int64(arena[HEADER_WORDS + max(state, 0) * STATE_WORDS + LENGTH])
    parent, depth, path_prob = -1, 1, np.float32(1.0)
    while size < max_nodes:
        floor = np.float32(MIN_PATH_PROB)
        if ranked == max_nodes:
            floor = path_probs[ranking[max_nodes - 1]]
        num_children = 0
        if depth <= max_depth_nodes:
            num_children = _find_children(
                arena, worth, state, match_length, path_prob, floor, children, child_probs, found
            )
        for child in range(num_children):
            path_probs[free] = path_prob * child_probs[child]
            if path_probs[free] < floor:
                continue
            node_probs[free] = child_probs[child]
            nodes[free, NODE_TOKEN] = children[child, FOUND_TOKEN]
            nodes[free, NODE_STATE] = children[child, FOUND_STATE]
            nodes[free, NODE_MATCH] = children[child, FOUND_MATCH]
            nodes[free, NODE_PARENT] = parent
            nodes[free, NODE_DEPTH] = depth
            ranked, free = _enter(ranking, ranked, size, nodes, path_probs, free)
        if size == ranked:
            return size
        best = np.int64(ranking[size])
        token_ids[size] = nodes[best, NODE_TOKEN]
        parents[size] = nodes[best, NODE_PARENT]
        probs[size] = node_probs[best]
        sources[size] = 1
        state = np.int64(nodes[best, NODE_STATE])
        match_length = np.int64(nodes[best, NODE_MATCH])
        depth = nodes[best, NODE_DEPTH] + 1
        path_prob = path_probs[best]
        parent = size
        size += 1
    return size
