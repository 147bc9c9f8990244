"""Drafts by count shares from the suffix of the context whose draft scores best (SuffixDecoding).

Every length of suffix that occurs makes a draft of its own: longer ones may draft more tokens. A node's
path probability is the product of count shares, a draft's score the sum of those. The best score wins,
the longer suffix among equals.
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
    LENGTH,
    LINK,
    OVERFLOW,
    STATE_WORDS,
    TARGET,
    TOKEN,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.ranking import (
    FIRST_OWN_WORD,
    NODE_WORDS,
    ORDER,
    OWN_PROB,
    PARENT,
    PATH_PROB,
    depth_of,
    describe,
    enter,
    free_all,
    order_of,
    token_of,
)

NODE_STATE = FIRST_OWN_WORD
MAX_EDGES = 4_096
"""Edges looked at in a state: its oldest one and its newest ones."""
ROUNDING = 1e-6
"""Added before a number of tokens is cut to an integer, as SuffixDecoding does."""


def scratch_words(max_nodes: int) -> int:
    """Returns how many words of scratch memory `draft` needs for so many nodes."""
    return (max_nodes + 1) * (NODE_WORDS + 1) + 3 * max_nodes


@inlined_kernel
def _enter_children(
    arena, state, min_prob, is_path, block, floats, ranking, waiting, capacity, depth, parent
):
    """Lets the continuations of a state wait for their place: all that are probable enough, or the best."""
    record = HEADER_WORDS + state * STATE_WORDS
    token, target = arena[record + TOKEN], np.int64(arena[record + TARGET])
    edge_index = np.int64(arena[record + OVERFLOW])
    total = np.int64(arena[record + COUNT])
    path_prob = 1.0 if parent < 0 else floats[block[ranking + waiting] + PATH_PROB]
    for _ in range(MAX_EDGES):
        if target < 0:
            break
        count = np.int64(arena[HEADER_WORDS + target * STATE_WORDS + COUNT])
        prob = path_prob * (count / total)
        if count > 0 and prob >= min_prob:
            node = block[ranking + waiting]
            describe(block, floats, node, prob, count / total, order_of(depth, np.int64(token)), parent)
            block[node + NODE_STATE] = target
            waiting = enter(block, floats, ranking, waiting, 1 if is_path else capacity)
        if edge_index == 0:
            break
        edge = np.int64(arena[EDGES_AT]) + edge_index * EDGE_WORDS
        token, target = arena[edge + EDGE_TOKEN], np.int64(arena[edge + EDGE_TARGET])
        edge_index = np.int64(arena[edge + EDGE_NEXT])
    return waiting


@inlined_kernel
def _expand(arena, state, min_prob, is_path, max_nodes, max_depth, block, floats, nodes):
    """Writes the draft of one suffix to `nodes`; returns its size and its score."""
    ranking = (max_nodes + 1) * NODE_WORDS
    free_all(block, 0, ranking, max_nodes + 1)
    size, waiting, score = 0, 0, 0.0
    depth = np.int64(0)
    while True:
        if depth < max_depth:
            waiting = _enter_children(
                arena,
                state,
                min_prob,
                is_path,
                block,
                floats,
                ranking,
                waiting,
                max_nodes - size,
                depth + 1,
                size - 1,
            )
        if waiting == 0:
            break
        waiting -= 1
        best = block[ranking + waiting]
        word = nodes + 3 * size
        block[word] = token_of(block[best + ORDER])
        block[word + 1] = block[best + PARENT]
        floats[word + 2] = floats[best + OWN_PROB]
        score += floats[best + PATH_PROB]
        state, depth = block[best + NODE_STATE], depth_of(block[best + ORDER])
        size += 1
        if size == max_nodes:
            break
    return size, score


@allocation_free_kernel
def draft(
    arena, place, factor, offset, min_prob, is_path, max_depth, max_length, block, token_ids, parents, probs
):
    """Fills a draft tree, best first; returns its size.

    Args:
        arena: int32[words]  an automaton with exact counts (`kernels.shared_automaton`).
        place: int64[2]  state and length of the longest suffix to draft from.
        factor: tokens that may be drafted for each token of the suffix.
        offset: tokens that may be drafted beside those.
        min_prob: path probability of every node at least.
        is_path: whether only the most frequent continuation is followed.
        max_depth: no path is longer.
        max_length: of a suffix with the draft after it.
        block: int64[scratch_words(max_nodes)]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
    """
    floats = block.view(np.float64)
    nodes = (token_ids.shape[0] + 1) * (NODE_WORDS + 1)
    state, best_size, best_score = np.int64(place[0]), 0, 0.0
    for length in range(place[1], 0, -1):
        link = np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LINK])
        if length <= arena[HEADER_WORDS + link * STATE_WORDS + LENGTH]:
            state = link
        limit = min(np.int64(length * factor + offset + ROUNDING), token_ids.shape[0])
        if limit <= best_score:  # no path probability exceeds 1
            continue
        if arena[HEADER_WORDS + state * STATE_WORDS + COUNT] <= 0:
            continue
        depth = min(max_depth, max_length - length)
        size, score = _expand(arena, state, min_prob, is_path, limit, depth, block, floats, nodes)
        if score > best_score:
            best_size, best_score = size, score
            for node in range(size):
                word = nodes + 3 * node
                token_ids[node], parents[node] = block[word], block[word + 1]
                probs[node] = floats[word + 2]
    return best_size
