"""Fills a draft tree from a trie of substrings: the longest suffix of the context first (SGLang's NGRAM).

Every suffix of the context that the trie holds adds its continuations to the same tree, as long as there
is room. Each is expanded level by level, newest children first, or by their shares of frequency.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.recency_trie import (
    FIRST_CHILD,
    FREQUENCY,
    HEADER_WORDS,
    NODE_WORDS,
    OLDER_SIBLING,
    TOKEN,
    walk,
)

MAX_CHILDREN = 4_096
"""Children looked at, newest first, when the most frequent ones are wanted."""
# A node that waits to be expanded: where in the trie, which drafted node, with which breadth or probability.
ENTRY_NODE, ENTRY_PLACE, ENTRY_VALUE, ENTRY_DEPTH, ENTRY_WORDS = range(5)


def scratch_words(max_nodes: int, max_breadth: int) -> int:
    """Returns how many words of scratch memory the kernels need for so many nodes."""
    return ENTRY_WORDS * (max_nodes + 1) * (max_breadth + 1) + max_breadth


@inlined_kernel
def _place_of(token_ids, parents, size, parent, token):
    """Returns the drafted child with this token, or `size` if there is none."""
    for place in range(parent + 1, size):
        if parents[place] == parent and token_ids[place] == token:
            return place
    return size


@inlined_kernel
def _field(arena, node, field):
    return np.int64(arena[HEADER_WORDS + node * NODE_WORDS + field])


@allocation_free_kernel
def draft_newest(arena, context, max_length, min_breadth, max_breadth, max_depth, block, token_ids, parents):
    """Fills a draft tree level by level, newest children first; returns its size.

    Args:
        arena: int32[words]  the trie (`kernels.recency_trie`).
        context: int32[n]  its last tokens.
        max_length: of the strings in the trie.
        min_breadth: children followed below the longest suffix, at least.
        max_breadth: children followed below the shortest suffix, at most; one less every so many levels.
        max_depth: no path is longer.
        block: int64[scratch_words(max_nodes, max_breadth)]  scratch memory.
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
    """
    floats = block.view(np.float64)
    scale = (max_breadth - min_breadth) / max_length
    size, max_nodes = 0, token_ids.shape[0]
    for length in range(min(context.shape[0], max_length), 0, -1):
        anchor = walk(arena, context[context.shape[0] - length :])
        if anchor < 0:
            continue
        block[ENTRY_NODE], block[ENTRY_PLACE], block[ENTRY_DEPTH] = anchor, -1, 0
        floats[ENTRY_VALUE] = (max_length - length) * scale + min_breadth
        first, end = 0, ENTRY_WORDS
        while first < end and size < max_nodes:
            parent, depth = block[first + ENTRY_PLACE], block[first + ENTRY_DEPTH]
            value = floats[first + ENTRY_VALUE]
            child = _field(arena, block[first + ENTRY_NODE], FIRST_CHILD)
            first += ENTRY_WORDS
            breadth = max(1, int(value)) if depth < max_depth else 0
            while child != 0 and breadth > 0:
                token = arena[HEADER_WORDS + child * NODE_WORDS + TOKEN]
                place = _place_of(token_ids, parents, size, parent, token)
                if place == size:
                    if size == max_nodes:
                        return size
                    token_ids[size], parents[size] = token, parent
                    size += 1
                block[end + ENTRY_NODE], block[end + ENTRY_PLACE] = child, place
                block[end + ENTRY_DEPTH], floats[end + ENTRY_VALUE] = depth + 1, value - scale
                end += ENTRY_WORDS
                breadth -= 1
                child = _field(arena, child, OLDER_SIBLING)
    return size


@inlined_kernel
def _most_frequent(arena, node, max_breadth, block, found):
    """Writes the most frequent children, of equal ones the newer first; returns how many and their sum."""
    num_found, total = 0, 0
    child = _field(arena, node, FIRST_CHILD)
    for _ in range(MAX_CHILDREN):
        if child == 0:
            break
        at = num_found
        while at > 0 and _field(arena, block[found + at - 1], FREQUENCY) < _field(arena, child, FREQUENCY):
            if at < max_breadth:
                block[found + at] = block[found + at - 1]
            at -= 1
        if at < max_breadth:
            block[found + at] = child
            num_found = min(num_found + 1, max_breadth)
        child = _field(arena, child, OLDER_SIBLING)
    for at in range(num_found):
        total += _field(arena, block[found + at], FREQUENCY)
    return num_found, total


@inlined_kernel
def _take_best(block, floats, end):
    """Moves the entry of the largest probability, of equal ones the first, behind the others."""
    best = 0
    for entry in range(ENTRY_WORDS, end, ENTRY_WORDS):
        if floats[entry + ENTRY_VALUE] > floats[best + ENTRY_VALUE]:
            best = entry
    node, place = block[best + ENTRY_NODE], block[best + ENTRY_PLACE]
    prob, depth = floats[best + ENTRY_VALUE], block[best + ENTRY_DEPTH]
    for word in range(best, end - ENTRY_WORDS):  # keeps the order of the rest
        block[word] = block[word + ENTRY_WORDS]
    return node, place, prob, depth


@allocation_free_kernel
def draft_frequent(arena, context, max_length, max_breadth, max_depth, block, token_ids, parents):
    """Fills a draft tree by the product of frequency shares; returns its size.

    A share is among the `max_breadth` most frequent children. Arguments as in `draft_newest`.
    """
    floats = block.view(np.float64)
    size, max_nodes = 0, token_ids.shape[0]
    found = ENTRY_WORDS * (max_nodes + 1) * (max_breadth + 1)
    for length in range(min(context.shape[0], max_length), 0, -1):
        node = walk(arena, context[context.shape[0] - length :])
        if node < 0:
            continue
        parent, prob, depth, end = np.int64(-1), 1.0, np.int64(0), 0
        while size < max_nodes:
            if depth < max_depth:
                num_found, total = _most_frequent(arena, node, max_breadth, block, found)
                for at in range(num_found):
                    child = block[found + at]
                    block[end + ENTRY_NODE], block[end + ENTRY_PLACE] = child, parent
                    block[end + ENTRY_DEPTH] = depth + 1
                    floats[end + ENTRY_VALUE] = prob * (_field(arena, child, FREQUENCY) / max(total, 1))
                    end += ENTRY_WORDS
            if end == 0:
                break
            node, parent, prob, depth = _take_best(block, floats, end)
            end -= ENTRY_WORDS
            token = arena[HEADER_WORDS + node * NODE_WORDS + TOKEN]
            place = _place_of(token_ids, parents, size, parent, token)
            if place == size:
                token_ids[size], parents[size] = token, parent
                size += 1
            parent = place
    return size
