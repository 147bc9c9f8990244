"""What may follow one place in several texts and trees: candidates with probabilities, and their features.

Contexts are visited by falling match length over all texts together, at the end the empty ones, where a
text has but its commonest tokens to offer. Each gives the tokens that it is the first to know the probability
that the longer ones left over (PPM with exclusion; Cleary and Witten, 1984), as a learned table says; then
every candidate's probability is corrected in the log-odds domain by what each text knows of it (as in PAQ;
Mahoney, 2005).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.fusion import FIRST_CHILD, NEXT_SIBLING, PROB
from retrieval_spec.fusion import TOKEN as TRIE_TOKEN
from retrieval_spec.kernels.automaton import (
    COUNT,
    EDGE_NEXT,
    EDGE_TARGET,
    EDGE_TOKEN,
    EDGE_WORDS,
    EDGES_AT,
    LENGTH,
    NONE,
    NUM_TOKENS,
    OVERFLOW,
    TARGET,
    TOKEN,
    record_of,
)
from retrieval_spec.kernels.blend_tables import (
    NUM_FEATURES,
    NUM_KINDS,
    NUM_TEXTS,
    OUTPUTS,
    OWN,
    PROMPTS,
    TREES,
    bin_of,
    escape_cell,
)
from retrieval_spec.kernels.commonest import (
    COMMON_COUNT,
    NUM_EDGES,
    NUM_PAIRS,
    PAIRS,
    TOTAL,
    row_of,
)
from retrieval_spec.kernels.jit import inlined_kernel
from retrieval_spec.kernels.places import link_of

MAX_CANDIDATES = 48
MAX_CONTEXTS = 12
"""Contexts of all texts that are asked for candidates at one place, beside the empty ones."""
MAX_EDGES = 128
"""Continuations that are read of one context: the oldest one and the newest ones."""
RARE = 0.25
"""Exclusion can make a continuation so many times as probable as its count alone says, and hardly more."""
LOWEST_MIXED_PROB = 0.003
"""Candidates below are not worth correcting."""

# Words of a candidate; the second is float64, seen through a view of the block.
CANDIDATE, CANDIDATE_PROB, CANDIDATE_SOURCES, CANDIDATE_WORDS = range(4)
# Words of a context that gave candidates: its cell, and from which candidate to which.
CELL, FIRST, STOP, CONTEXT_WORDS = range(4)

# The scratch memory of one place: its walk down to shorter matches, candidates, contexts, features.
WALK = 0
CANDIDATES = WALK + 2 * NUM_KINDS
CONTEXTS = CANDIDATES + MAX_CANDIDATES * CANDIDATE_WORDS
FEATURES = CONTEXTS + (MAX_CONTEXTS + NUM_TEXTS) * CONTEXT_WORDS
EVIDENCE_WORDS = FEATURES + NUM_FEATURES

TREE_LENGTHS = np.array([0.41, 0.46, 0.56, 0.74, 0.86, 0.95])
TREE_MATCHES = np.array([1, 2, 3, 4, 7, 12, 24], np.int64)
"""The match length in a text that is worth as much as the probability which a tree gives its children."""


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
def begin_walk(block, place, trie):
    """Starts at the longest match in every text and at the node in the trees."""
    for word in range(2 * NUM_TEXTS):
        block[WALK + word] = block[place + word]
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
def _is_known(block, num_known, token):
    at = CANDIDATES
    for _ in range(num_known):
        if block[at + CANDIDATE] == token:
            return True
        at += CANDIDATE_WORDS
    return False


@inlined_kernel
def _add_candidate(block, floats, first, num, token, count):
    """Adds a continuation, in place of the rarest one of this context if there are enough."""
    at = CANDIDATES + num * CANDIDATE_WORDS
    if num == MAX_CANDIDATES:
        if first == num:
            return num
        at = CANDIDATES + first * CANDIDATE_WORDS
        for other in range(first + 1, num):
            place = CANDIDATES + other * CANDIDATE_WORDS
            if floats[place + CANDIDATE_PROB] < floats[at + CANDIDATE_PROB]:
                at = place
        if count <= floats[at + CANDIDATE_PROB]:
            return num
        num -= 1
    block[at + CANDIDATE] = token
    floats[at + CANDIDATE_PROB] = count
    return num + 1


@inlined_kernel
def _read_edges(words, state, block, floats, first, rarest):
    """Adds the new continuations of a state that came at least `rarest` times.

    Returns how many candidates there are then, how often and how many new continuations came.
    """
    record = record_of(state)
    token, target = np.int64(words[record + TOKEN]), words[record + TARGET]
    edge = words[record + OVERFLOW]
    num, total, num_new, known = first, np.int64(0), 0, np.int64(0)
    for _ in range(MAX_EDGES):
        count = np.int64(words[record_of(target) + COUNT])
        if _is_known(block, first, token):
            known += count
        elif count > 0:
            total += count
            num_new += 1
            if count >= rarest:
                num = _add_candidate(block, floats, first, num, token, np.float64(count))
        if edge == 0:
            return num, total, num_new
        row = np.int64(words[EDGES_AT]) + np.int64(edge) * EDGE_WORDS
        token, target = np.int64(words[row + EDGE_TOKEN]), words[row + EDGE_TARGET]
        edge = words[row + EDGE_NEXT]
    # Edges were left out, so the state's own count tells the total.
    return num, max(total, np.int64(words[record + COUNT]) - known), num_new


@inlined_kernel
def _read_commonest(words, commonest, state, block, floats, first, rarest):
    """Does as `_read_edges`, but reads a row of `kernels.commonest` in place of many edges."""
    row = row_of(words, commonest, state)
    num, num_new, known = first, np.int64(commonest[row, NUM_EDGES]), np.int64(0)
    for at in range(PAIRS, PAIRS + 2 * commonest[row, NUM_PAIRS], 2):
        token, count = np.int64(commonest[row, at]), np.int64(commonest[row, at + 1])
        if _is_known(block, first, token):
            known += count
            num_new -= 1
        elif count >= rarest:
            num = _add_candidate(block, floats, first, num, token, np.float64(count))
    return num, max(np.int64(commonest[row, TOTAL]) - known, np.int64(0)), num_new


@inlined_kernel
def _read_state(words, commonest, state, block, floats, first, rarest):
    if state == 0 or (commonest.shape[0] > 1 and words[record_of(state) + COUNT] >= COMMON_COUNT):
        return _read_commonest(words, commonest, state, block, floats, first, rarest)
    return _read_edges(words, state, block, floats, first, rarest)


@inlined_kernel
def _read_node(trie, node, block, floats, first):
    """Adds the new children of a node in the trees; returns how many candidates, their total and number."""
    probs = trie.view(np.float32)
    num, total, num_new = first, 0.0, 0
    child = trie[FIRST_CHILD, node]
    for _ in range(MAX_CANDIDATES):
        if child == 0:
            break
        token, prob = np.int64(trie[TRIE_TOKEN, child]), np.float64(probs[PROB, child])
        if prob > 0.0 and not _is_known(block, first, token):
            num = _add_candidate(block, floats, first, num, token, prob)
            total += prob
            num_new += 1
        child = trie[NEXT_SIBLING, child]
    return num, total, num_new


@inlined_kernel
def _shorten(words, block, kind):
    """Goes on to the next shorter match in a text."""
    link = link_of(words, block[WALK + 2 * kind])
    block[WALK + 2 * kind] = link
    block[WALK + 2 * kind + 1] = np.int64(words[record_of(link) + LENGTH])


@inlined_kernel
def _settle(block, floats, tables, kind, num_contexts, first, num, total, bits_of_total, num_new, left):
    """Gives the candidates of a context their probabilities; returns what it leaves over."""
    later = 1 if num_contexts > 0 else 0
    cell = escape_cell(kind, later, block[WALK + 2 * kind + 1], bits_of_total, num_new)
    escape = np.float64(tables[cell])
    for candidate in range(first, num):
        at = CANDIDATES + candidate * CANDIDATE_WORDS
        floats[at + CANDIDATE_PROB] *= left * escape / total
    context = CONTEXTS + num_contexts * CONTEXT_WORDS
    block[context + CELL] = cell
    block[context + FIRST] = first
    block[context + STOP] = num
    return left * (1.0 - escape)


@inlined_kernel
def _visit_text(words, commonest, tables, block, floats, kind, num_contexts, num, left, least):
    """Adds what a text knows at its place in the walk; returns how many candidates and what is left then."""
    state = block[WALK + 2 * kind]
    if words[record_of(state) + TARGET] == NONE:
        return num, left
    count = words[record_of(state) + COUNT] if state > 0 else words[NUM_TOKENS]
    rarest = np.float64(count) * RARE * least / left
    stop, total, num_new = _read_state(words, commonest, state, block, floats, num, rarest)
    if num_new > 0 and stop > num:
        left = _settle(
            block, floats, tables, kind, num_contexts, num, stop, np.float64(total), total, num_new, left
        )
    return stop, left


@inlined_kernel
def _visit_trees(trie, tables, block, floats, num_contexts, num, left):
    """Adds the children of the place in the trees; returns as `_visit_text` does."""
    stop, mass, num_new = _read_node(trie, block[WALK + 2 * TREES] - 1, block, floats, num)
    if num_new > 0 and stop > num:
        left = _settle(
            block, floats, tables, TREES, num_contexts, num, stop, mass, np.int64(1), num_new, left
        )
    return stop, left


@inlined_kernel
def gather(own, outputs, prompts, own_rows, output_rows, prompt_rows, trie, tables, block, floats, least):
    """Finds the candidates of the place where the walk begins; returns their number and that of contexts.

    Stops where less than `least` is left for shorter matches, and leaves out what is clearly less probable.
    """
    num, num_contexts, left = 0, 0, 1.0
    for _ in range(MAX_CONTEXTS):
        kind = _longest(block)
        if kind < 0 or left < least:
            break
        first = num
        if kind == TREES:
            num, left = _visit_trees(trie, tables, block, floats, num_contexts, first, left)
            block[WALK + 2 * kind] = 0
        else:
            words = own if kind == OWN else (outputs if kind == OUTPUTS else prompts)
            rows = own_rows if kind == OWN else (output_rows if kind == OUTPUTS else prompt_rows)
            num, left = _visit_text(
                words, rows, tables, block, floats, kind, num_contexts, first, left, least
            )
            _shorten(words, block, kind)
        num_contexts += 1 if num > first else 0
    for kind in (OUTPUTS, OWN, PROMPTS):
        words = own if kind == OWN else (outputs if kind == OUTPUTS else prompts)
        rows = own_rows if kind == OWN else (output_rows if kind == OUTPUTS else prompt_rows)
        if left >= least and rows.shape[0] > 0:
            first = num
            block[WALK + 2 * kind] = 0
            block[WALK + 2 * kind + 1] = 0
            num, left = _visit_text(
                words, rows, tables, block, floats, kind, num_contexts, first, left, least
            )
            num_contexts += 1 if num > first else 0
    return num, num_contexts
