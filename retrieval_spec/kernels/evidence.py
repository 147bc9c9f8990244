"""What may follow one place in several texts and trees: candidates, and what their contexts make them worth.

Contexts are visited by falling match length over all texts together, at the end the empty ones, where a
text has but its commonest tokens to offer. Each gives the tokens that it is the first to know the probability
that the longer ones left over (PPM with exclusion; Cleary and Witten, 1984), as a learned table says. Then
every candidate's probability is corrected by what else is known of it (`kernels.features`).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.fusion import FIRST_CHILD, NEXT_SIBLING, PROB
from retrieval_spec.kernels.anchor import (
    ANCHOR_WORDS,
    FOLLOWED,
    WAYS,
    stage_of,
    state_of,
)
from retrieval_spec.kernels.automaton import (
    COUNT,
    LENGTH,
    NONE,
    NUM_TOKENS,
    TARGET,
    prefetch_edges,
    record_of,
)
from retrieval_spec.kernels.blend_tables import (
    ANCHORED,
    NUM_FEATURES,
    NUM_KINDS,
    NUM_TEXTS,
    OUTPUTS,
    OWN,
    PROMPTS,
    TREES,
    bin_of,
    escape_cell,
    length_bin,
)
from retrieval_spec.kernels.candidates import (
    CANDIDATE_PROB,
    CANDIDATE_WORDS,
    CANDIDATES,
    CANDIDATES_WORDS,
    read_node,
    read_state,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.places import ANCHOR, link_of, text_of

MAX_CONTEXTS = 12
"""Contexts of all texts that are asked for candidates at one place, beside anchors and empty contexts."""
PREFETCHED_CONTEXTS = 3
"""Of each text: most walks visit no more."""
EMPTY_CONTEXTS = (OUTPUTS, OWN, PROMPTS)
"""Whose commonest tokens are asked for, and in which order: what was written says most of what will be."""
RARE = 0.5
"""Exclusion can make a continuation so many times as probable as its count alone says, and hardly more."""
LOWEST_MIXED_PROB = 0.001
"""Candidates below are not worth correcting."""

# Words of a context that gave candidates: its cell, and from which candidate to which.
CELL, FIRST, STOP, CONTEXT_WORDS = range(4)

# The scratch memory of one place: candidates, the walk down to shorter matches, contexts, features.
WALK = CANDIDATES + CANDIDATES_WORDS
WALK_ANCHOR = WALK + 2 * NUM_KINDS
CONTEXTS = WALK_ANCHOR + ANCHOR_WORDS
FEATURES = CONTEXTS + (MAX_CONTEXTS + WAYS + NUM_TEXTS) * CONTEXT_WORDS
EVIDENCE_WORDS = FEATURES + NUM_FEATURES

TREE_LENGTHS = np.array([0.41, 0.46, 0.56, 0.74, 0.86, 0.95])
TREE_MATCHES = np.array([1, 2, 3, 4, 7, 12, 24], np.int64)
"""The match length in a text that is worth as much as the probability which a tree gives its children."""
BROKEN_MATCH, MATCH_PER_FOLLOWED, BEST_ANCHORED_MATCH = 2, 3, 16
"""The match length that an anchor is worth: after a mismatch, for each token that followed since, at most."""


@inlined_kernel
def _tree_length(trie, node):
    """Returns the match length that a tree's word at a node is worth."""
    floats = trie.view(np.float32)
    mass = 0.0
    child = trie[FIRST_CHILD, node]
    while child > 0:
        mass += floats[PROB, child]
        child = trie[NEXT_SIBLING, child]
    return TREE_MATCHES[bin_of(mass, TREE_LENGTHS)]


@inlined_kernel
def prefetch_walk(words, state):
    """Asks for what a walk from a state to shorter matches will read first."""
    for _ in range(PREFETCHED_CONTEXTS):
        if state == 0:
            break
        prefetch_edges(words, state)
        state = link_of(words, state)


@inlined_kernel
def begin_walk(block, place, trie):
    """Starts at the longest match in every text, at the anchor and at the node in the trees."""
    for word in range(2 * NUM_TEXTS):
        block[WALK + word] = block[place + word]
    for word in range(ANCHOR_WORDS):
        block[WALK_ANCHOR + word] = block[place + ANCHOR + word]
    block[WALK + 2 * ANCHORED] = block[place + ANCHOR]
    block[WALK + 2 * ANCHORED + 1] = min(
        BROKEN_MATCH + MATCH_PER_FOLLOWED * block[place + ANCHOR + FOLLOWED], BEST_ANCHORED_MATCH
    )
    node = block[place + 2 * NUM_TEXTS] - 1
    walk = WALK + 2 * TREES
    block[walk] = 0
    if node >= 0 and trie[FIRST_CHILD, node] > 0:
        block[walk] = node + 1
        block[walk + 1] = _tree_length(trie, node)


@inlined_kernel
def _longest(block):
    """Returns the kind with the longest match left, the first of equals, or -1."""
    kind, length = -1, np.int64(-1)
    for other in range(NUM_KINDS):
        if block[WALK + 2 * other] > 0 and block[WALK + 2 * other + 1] > length:
            kind, length = other, block[WALK + 2 * other + 1]
    return kind


@inlined_kernel
def _shorten(words, block, kind):
    """Goes on to the next shorter match in a text."""
    link = link_of(words, block[WALK + 2 * kind])
    block[WALK + 2 * kind] = link
    block[WALK + 2 * kind + 1] = np.int64(words[record_of(link) + LENGTH])


@inlined_kernel
def _settle(block, floats, tables, cell, num_contexts, first, num, total, left):
    """Gives the candidates of a context their probabilities; returns what it leaves over."""
    escape = np.float64(tables[cell])
    for candidate in range(first, num):
        at = CANDIDATES + candidate * CANDIDATE_WORDS
        floats[at + CANDIDATE_PROB] *= left * escape / total
    context = CONTEXTS + num_contexts * CONTEXT_WORDS
    block[context + CELL] = cell
    block[context + FIRST] = first
    block[context + STOP] = num
    return left * (1.0 - escape)


@allocation_free_kernel
def _visit_state(words, rows, tables, block, floats, kind, state, stage, num_contexts, num, left, least):
    """Adds what a text knows to follow a state; returns how many candidates and what is left then."""
    if words[record_of(state) + TARGET] == NONE:
        return num, left
    count = words[record_of(state) + COUNT] if state > 0 else words[NUM_TOKENS]
    rarest = np.float64(count) * RARE * least / left
    stop, total, num_new = read_state(words, rows, state, block, floats, num, rarest)
    if stop > num:
        cell = escape_cell(kind, num_contexts > 0, stage, total, num_new)
        left = _settle(block, floats, tables, cell, num_contexts, num, stop, np.float64(total), left)
    return stop, left


@inlined_kernel
def _visit_trees(trie, tables, block, floats, num_contexts, num, left):
    """Adds the children of the place in the trees; returns as `_visit_state` does."""
    stop, mass, num_new = read_node(trie, block[WALK + 2 * TREES] - 1, block, floats, num)
    if stop > num:
        stage = length_bin(block[WALK + 2 * TREES + 1])
        cell = escape_cell(TREES, num_contexts > 0, stage, np.int64(1), num_new)
        left = _settle(block, floats, tables, cell, num_contexts, num, stop, mass, left)
    return stop, left


@inlined_kernel
def _visit_anchor(own, own_rows, tables, block, floats, num_contexts, num, left, least):
    """Adds what the copy goes on with; returns how many candidates and contexts, and what is left then."""
    block[WALK + 2 * ANCHORED] = 0
    for way in range(WAYS):
        state = state_of(own, block, WALK_ANCHOR, way)
        if state > 0 and left >= least:
            stage, first = stage_of(block, WALK_ANCHOR, way), num
            num, left = _visit_state(
                own, own_rows, tables, block, floats, ANCHORED, state, stage, num_contexts, first, left, least
            )
            num_contexts += 1 if num > first else 0
    return num, num_contexts, left


@allocation_free_kernel
def gather(own, outputs, prompts, own_rows, output_rows, prompt_rows, trie, tables, block, floats, least):
    """Finds the candidates of the place where the walk begins; returns their number and that of contexts.

    Stops where less than `least` is left for shorter matches, and leaves out what is clearly less probable.
    """
    num, num_contexts, left = 0, 0, 1.0
    for _ in range(MAX_CONTEXTS):
        kind, first = _longest(block), num
        if kind < 0 or left < least:
            break
        if kind == ANCHORED:
            num, num_contexts, left = _visit_anchor(
                own, own_rows, tables, block, floats, num_contexts, num, left, least
            )
        elif kind == TREES:
            num, left = _visit_trees(trie, tables, block, floats, num_contexts, num, left)
            num_contexts += 1 if num > first else 0
            block[WALK + 2 * TREES] = 0
        else:
            words = text_of(kind, own, outputs, prompts)
            rows = text_of(kind, own_rows, output_rows, prompt_rows)
            state, stage = block[WALK + 2 * kind], length_bin(block[WALK + 2 * kind + 1])
            num, left = _visit_state(
                words, rows, tables, block, floats, kind, state, stage, num_contexts, num, left, least
            )
            num_contexts += 1 if num > first else 0
            _shorten(words, block, kind)
    for kind in EMPTY_CONTEXTS:
        rows, first = text_of(kind, own_rows, output_rows, prompt_rows), num
        if left >= least and rows.shape[0] > 0:
            words, root = text_of(kind, own, outputs, prompts), np.int64(0)
            num, left = _visit_state(
                words, rows, tables, block, floats, kind, root, 0, num_contexts, num, left, least
            )
            num_contexts += 1 if num > first else 0
    return num, num_contexts
