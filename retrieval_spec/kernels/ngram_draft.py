"""Drafts from n-gram counts: the most probable paths, or one chain of the most frequent successors.

Every node of a draft is asked anew: its context is its own path and, before that, the text. What
followed the longest known context comes first; what probability that leaves over goes on to what else
followed the shorter ones.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.ngram import (
    DISTINCT,
    MAX_CONTEXT,
    MAX_CONTEXT_TOKENS,
    MIN_CONTEXT,
    NOWHERE,
    SUCCESSOR_WORDS,
    SUCCESSORS,
    TOTAL,
    longer,
    num_kept,
    record_of,
)
from retrieval_spec.kernels.ranking import (
    NODE_WORDS,
    add_to_tree,
    describe,
    enter,
    free_all,
    least_useful,
    order_of,
)
from retrieval_spec.kernels.worth import MORE_CONTINUATIONS, ONE_CONTINUATION, SHORTER_MATCH, worth_of

MAX_CHILDREN = 8

NEWEST, OLDER, BASE = range(3)
KNOWN_IN, KNOWN_ROW, KNOWN_WORDS = range(3)
CHILD_TOKEN, CHILD_PROB, CHILD_WORDS = range(3)

# The scratch memory: the contexts known, the children of one node, the nodes, their ranking.
KNOWN = 0
CHILDREN = KNOWN + MAX_CONTEXT_TOKENS * KNOWN_WORDS
NODES = CHILDREN + MAX_CHILDREN * CHILD_WORDS


def scratch_words(max_nodes: int) -> int:
    """Returns how many words of scratch memory `draft` needs for so many nodes."""
    return NODES + (max_nodes + 1) * (NODE_WORDS + 1)


@allocation_free_kernel
def find_known(arena, older, base, context, token_ids, parents, node, block):
    """Writes the rows of the contexts that end at a node, or at -1 with the text; returns how many.

    A context that the newest counts lack is looked up in the older ones, then in the base.
    """
    row, older_row, base_row = np.int64(0), np.int64(0), np.int64(0)
    length, at = 0, context.shape[0]
    while length < min(arena[MAX_CONTEXT], MAX_CONTEXT_TOKENS):
        if node >= 0:
            token, node = token_ids[node], np.int64(parents[node])
        elif at > 0:
            at -= 1
            token = context[at]
        else:
            break
        row = longer(arena, row, token)
        older_row, base_row = longer(older, older_row, token), longer(base, base_row, token)
        known = KNOWN + length * KNOWN_WORDS
        if row != NOWHERE:
            block[known + KNOWN_IN], block[known + KNOWN_ROW] = NEWEST, row
        elif older_row != NOWHERE:
            block[known + KNOWN_IN], block[known + KNOWN_ROW] = OLDER, older_row
        elif base_row != NOWHERE:
            block[known + KNOWN_IN], block[known + KNOWN_ROW] = BASE, base_row
        else:
            break
        length += 1
    return length


@inlined_kernel
def source_of(arena, older, base, block, length):
    """Returns the arena that knows the context of so many tokens, and its row's address there."""
    known = KNOWN + (length - 1) * KNOWN_WORDS
    source = arena
    if block[known + KNOWN_IN] == OLDER:
        source = older
    elif block[known + KNOWN_IN] == BASE:
        source = base
    return source, record_of(source, block[known + KNOWN_ROW])


@inlined_kernel
def _is_child(block, num_children, token):
    for child in range(CHILDREN, CHILDREN + num_children * CHILD_WORDS, CHILD_WORDS):
        if block[child + CHILD_TOKEN] == token:
            return True
    return False


@allocation_free_kernel
def _add_children(source, record, length, worth, left, block, num_children):
    """Adds the successors of one context that are no children yet; returns their number and what is left."""
    floats = block.view(np.float64)
    total, num_new = np.int64(source[record + TOTAL]), np.int64(source[record + DISTINCT])
    kept = num_kept(source, record)
    for place in range(kept):
        successor = record + SUCCESSORS + place * SUCCESSOR_WORDS
        if _is_child(block, num_children, source[successor]):
            total -= source[successor + 1]
            num_new -= 1
    if total <= 0:
        return num_children, left
    kind = ONE_CONTINUATION if num_new == 1 else MORE_CONTINUATIONS
    if num_children > 0:
        kind = SHORTER_MATCH
    share = worth_of(worth, kind, length, total)
    before = num_children
    for place in range(kept):
        successor = record + SUCCESSORS + place * SUCCESSOR_WORDS
        if num_children < MAX_CHILDREN and not _is_child(block, before, source[successor]):
            child = CHILDREN + num_children * CHILD_WORDS
            block[child + CHILD_TOKEN] = source[successor]
            floats[child + CHILD_PROB] = np.float32(left * share * source[successor + 1] / total)
            num_children += 1
    return num_children, left * (1.0 - share)


@inlined_kernel
def _find_children(arena, older, base, worth, context, token_ids, parents, node, path_prob, floor, block):
    """Writes the children of a node, those of the longest context first; returns how many there are."""
    length = find_known(arena, older, base, context, token_ids, parents, node, block)
    num_children, left = 0, 1.0
    while length >= arena[MIN_CONTEXT] and left * path_prob >= floor:
        source, record = source_of(arena, older, base, block, length)
        num_children, left = _add_children(source, record, length, worth, left, block, num_children)
        length -= 1
    return num_children


@allocation_free_kernel
def draft(arena, older, base, worth, context, max_depth_nodes, block, token_ids, parents, probs):
    """Fills a draft tree with the most probable continuations, best first; returns its size.

    Args:
        arena: int32[words]  the newest counts (`kernels.ngram`).
        older: int32[words]  for contexts that `arena` does not hold.
        base: int32[words]  for contexts that neither holds.
        worth: float32[3, lengths, bits]  P(the next token is among the successors found), by kind of
            context, by its length (the last entry stands for longer ones) and by log2 of their count.
        context: int32[c]  the tokens before the draft, the newest last.
        max_depth_nodes: no path is longer.
        block: int64[scratch_words(max_nodes)]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
    """
    max_nodes = token_ids.shape[0]
    floats = block.view(np.float64)
    ranking = NODES + (max_nodes + 1) * NODE_WORDS
    free_all(block, NODES, ranking, max_nodes + 1)
    size, waiting, depth, path_prob = 0, 0, np.int64(0), 1.0
    while size < max_nodes:
        capacity = max_nodes - size
        floor = least_useful(block, floats, ranking, waiting, capacity)
        if depth < max_depth_nodes:
            num_children = _find_children(
                arena,
                older,
                base,
                worth,
                context,
                token_ids,
                parents,
                np.int64(size - 1),
                path_prob,
                floor,
                block,
            )
            for child in range(CHILDREN, CHILDREN + num_children * CHILD_WORDS, CHILD_WORDS):
                child_path_prob = np.float32(path_prob * floats[child + CHILD_PROB])
                if child_path_prob >= floor:
                    node = block[ranking + waiting]
                    order = order_of(depth + 1, block[child + CHILD_TOKEN])
                    describe(
                        block, floats, node, child_path_prob, floats[child + CHILD_PROB], order, size - 1
                    )
                    waiting = enter(block, floats, ranking, waiting, capacity)
        if waiting == 0:
            break
        waiting -= 1
        best = block[ranking + waiting]
        depth, path_prob = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        size += 1
    return size


@allocation_free_kernel
def draft_chain(arena, older, base, context, block, token_ids, parents, probs):
    """Fills a chain with the most frequent successor of each longest known context; returns its length.

    Args:
        arena: int32[words]  as in `draft`.
        older: int32[words]  as in `draft`.
        base: int32[words]  as in `draft`.
        context: int32[c]  the tokens before the draft, the newest last.
        block: int64[scratch_words(0)]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: the node before.
        probs: float32[max_nodes]  written: the successor's share of what followed the context.
    """
    size = 0
    while size < token_ids.shape[0]:
        length = find_known(arena, older, base, context, token_ids, parents, np.int64(size - 1), block)
        if length < arena[MIN_CONTEXT]:
            break
        source, record = source_of(arena, older, base, block, length)
        if source[record + DISTINCT] == 0:
            break
        token_ids[size] = source[record + SUCCESSORS]
        parents[size] = size - 1
        probs[size] = source[record + SUCCESSORS + 1] / source[record + TOTAL]
        size += 1
    return size
