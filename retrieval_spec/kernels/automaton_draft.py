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
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.ranking import (
    FIRST_OWN_WORD,
    NODE_WORDS,
    add_to_tree,
    describe,
    enter,
    free_all,
    least_useful,
    order_of,
)
from retrieval_spec.kernels.worth import MORE_CONTINUATIONS, ONE_CONTINUATION, SHORTER_MATCH, worth_of

MAX_MATCHES = 2
"""Matches that are blended at a node: the longest and the next shorter; more gained nothing."""
MAX_EDGES = 32
MAX_EDGES_IF_MINOR = 8
"""Edges looked at in a state with many: its oldest one and its newest ones; few under a rare node and
for the shorter match."""
RARE_PATH_PROB = 0.05
MAX_CHILDREN = 8

# Words of a continuation that was found, of one that becomes a child, and further ones of a node.
FOUND_TOKEN, FOUND_STATE, FOUND_COUNT, FOUND_WORDS = range(4)
CHILD_TOKEN, CHILD_STATE, CHILD_MATCH, CHILD_PROB, CHILD_WORDS = range(5)
NODE_STATE, NODE_MATCH = range(FIRST_OWN_WORD, FIRST_OWN_WORD + 2)

# The scratch memory: what was found in one state, the children of one node, the nodes, their ranking.
FOUND = 0
CHILDREN = FOUND + MAX_EDGES * FOUND_WORDS
NODES = CHILDREN + MAX_CHILDREN * CHILD_WORDS


def scratch_words(max_nodes: int) -> int:
    """Returns how many words of scratch memory `draft` needs for so many nodes."""
    return NODES + (max_nodes + 1) * (NODE_WORDS + 1)


@inlined_kernel
def _is_child(block, num_children, token):
    for child in range(CHILDREN, CHILDREN + num_children * CHILD_WORDS, CHILD_WORDS):
        if block[child + CHILD_TOKEN] == token:
            return True
    return False


@inlined_kernel
def _gather(arena, state, max_edges, block, num_children):
    """Writes the continuations of a state that are no children yet; returns how many and their total."""
    record = HEADER_WORDS + state * STATE_WORDS
    edges_at = np.int64(arena[EDGES_AT])
    token = arena[record + TOKEN]
    target = np.int64(arena[record + TARGET])
    edge_index = np.int64(arena[record + OVERFLOW])
    num_found, total, known_total = 0, np.int64(0), np.int64(0)
    for _ in range(max_edges):
        count = np.int64(arena[HEADER_WORDS + target * STATE_WORDS + COUNT])
        if _is_child(block, num_children, token):
            known_total += count
        else:
            found = FOUND + num_found * FOUND_WORDS
            block[found + FOUND_TOKEN] = token
            block[found + FOUND_STATE] = target
            block[found + FOUND_COUNT] = count
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


@inlined_kernel
def _keep_child(block, floats, num_children, found, match_length, prob):
    """Makes a continuation a child, in place of the least probable one if there are enough."""
    place = CHILDREN + num_children * CHILD_WORDS
    if num_children == MAX_CHILDREN:
        place = CHILDREN
        for child in range(CHILDREN, NODES, CHILD_WORDS):
            if floats[child + CHILD_PROB] < floats[place + CHILD_PROB]:
                place = child
        if prob <= floats[place + CHILD_PROB]:
            return num_children
    block[place + CHILD_TOKEN] = block[found + FOUND_TOKEN]
    block[place + CHILD_STATE] = block[found + FOUND_STATE]
    block[place + CHILD_MATCH] = match_length
    floats[place + CHILD_PROB] = np.float32(prob)
    return min(num_children + 1, MAX_CHILDREN)


@inlined_kernel
def _find_children(arena, worth, state, match_length, path_prob, floor, block, floats):
    """Writes the children of a node, best matches first; returns how many there are."""
    num_children, num_matches, left = 0, 0, 1.0
    max_edges = MAX_EDGES_IF_MINOR if path_prob < RARE_PATH_PROB else MAX_EDGES
    while state > 0 and num_matches < MAX_MATCHES and left * path_prob >= floor:
        record = HEADER_WORDS + state * STATE_WORDS
        if arena[record + TARGET] >= 0:
            num_found, total = _gather(arena, state, max_edges, block, num_children)
            if num_found > 0:
                kind = ONE_CONTINUATION if num_found == 1 else MORE_CONTINUATIONS
                if num_children > 0:
                    kind = SHORTER_MATCH
                share = worth_of(worth, kind, match_length, total)
                for found in range(FOUND, FOUND + num_found * FOUND_WORDS, FOUND_WORDS):
                    prob = left * share * block[found + FOUND_COUNT] / total
                    num_children = _keep_child(block, floats, num_children, found, match_length + 1, prob)
                left *= 1.0 - share
                max_edges = MAX_EDGES_IF_MINOR
            num_matches += 1
        state = np.int64(arena[record + LINK])
        match_length = np.int64(arena[HEADER_WORDS + state * STATE_WORDS + LENGTH])
    return num_children


@inlined_kernel
def _enter_children(block, floats, ranking, waiting, capacity, num_children, floor, depth, parent, path_prob):
    """Lets the children of a node wait for their place in the tree; returns how many nodes wait then."""
    for child in range(CHILDREN, CHILDREN + num_children * CHILD_WORDS, CHILD_WORDS):
        child_path_prob = np.float32(path_prob * floats[child + CHILD_PROB])
        if child_path_prob < floor:
            continue
        node = block[ranking + waiting]
        order = order_of(depth, block[child + CHILD_TOKEN])
        describe(block, floats, node, child_path_prob, floats[child + CHILD_PROB], order, parent)
        block[node + NODE_STATE] = block[child + CHILD_STATE]
        block[node + NODE_MATCH] = block[child + CHILD_MATCH]
        waiting = enter(block, floats, ranking, waiting, capacity)
    return waiting


@inlined_kernel
def _expand(arena, state, match_length, worth, max_depth_nodes, block, token_ids, parents, probs):
    max_nodes = token_ids.shape[0]
    floats = block.view(np.float64)
    ranking = NODES + (max_nodes + 1) * NODE_WORDS
    free_all(block, NODES, ranking, max_nodes + 1)
    size, waiting = 0, 0
    depth, path_prob = np.int64(0), 1.0
    while size < max_nodes:
        capacity = max_nodes - size
        floor = least_useful(block, floats, ranking, waiting, capacity)
        if depth < max_depth_nodes:
            num_children = _find_children(arena, worth, state, match_length, path_prob, floor, block, floats)
            waiting = _enter_children(
                block, floats, ranking, waiting, capacity, num_children, floor, depth + 1, size - 1, path_prob
            )
        if waiting == 0:
            break
        waiting -= 1
        best = block[ranking + waiting]
        depth, path_prob = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        state, match_length = block[best + NODE_STATE], block[best + NODE_MATCH]
        size += 1
    return size


@allocation_free_kernel
def draft(arena, worth, max_depth_nodes, block, token_ids, parents, probs):
    """Fills a draft tree with what may follow the automaton's own text; see `draft_from`."""
    state = np.int64(arena[HEADER_WORDS + np.int64(arena[LAST]) * STATE_WORDS + LINK])
    match_length = np.int64(arena[HEADER_WORDS + max(state, 0) * STATE_WORDS + LENGTH])
    return _expand(arena, state, match_length, worth, max_depth_nodes, block, token_ids, parents, probs)


@allocation_free_kernel
def draft_from(arena, state, match_length, worth, max_depth_nodes, block, token_ids, parents, probs):
    """Fills a draft tree with the most probable continuations, best first; returns its size.

    Args:
        arena: int32[words]  the automaton (`kernels.automaton`).
        state: where the context stands in it.
        match_length: how many of its last tokens that state stands for.
        worth: float32[3, lengths, bits]  P(the next token is among the continuations found), by kind of
            match, by its length (the last entry stands for longer ones) and by log2 of their count.
        max_depth_nodes: no path is longer.
        block: int64[scratch_words(max_nodes)]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
    """
    return _expand(arena, state, match_length, worth, max_depth_nodes, block, token_ids, parents, probs)
