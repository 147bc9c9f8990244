"""What is known of one candidate beside its contexts, and the probability that all of it comes to.

Each feature is a cell of `kernels.blend_tables`: the numbers in the cells are added to the log-odds that
the contexts give (logistic mixing, as in PAQ; Mahoney, 2005).
"""

from __future__ import annotations

import math

import numpy as np

from retrieval_spec.fusion import FIRST_CHILD, NEXT_SIBLING, PROB
from retrieval_spec.fusion import SOURCE as TRIE_SOURCE
from retrieval_spec.fusion import TOKEN as TRIE_TOKEN
from retrieval_spec.kernels.anchor import anchor_support, target_of
from retrieval_spec.kernels.automaton import COUNT, LENGTH, NUM_TOKENS, prefetch_edge, record_of
from retrieval_spec.kernels.blend_tables import (
    ANCHORS,
    BIAS,
    DEPTH_STEPS,
    DEPTHS,
    LENGTH_STEPS,
    MATCHES,
    NUM_FEATURES,
    NUM_MATCHES,
    NUM_PROBS,
    NUM_SHARES,
    NUM_TEXTS,
    PROB_STEPS,
    SHARE_STEPS,
    SHARES,
    SUPPORTING_MATCHES,
    SUPPORTS,
    TOKEN_SHARE_STEPS,
    TREE_SUPPORT,
    WEIGHT,
    bin_of,
)
from retrieval_spec.kernels.evidence import FEATURES
from retrieval_spec.kernels.jit import inlined_kernel
from retrieval_spec.kernels.places import ANCHOR, link_of, text_of

MAX_HOPS = 12
"""Shorter matches in which a candidate is looked for."""
PREFETCHED_HOPS = 3
"""Most searches end within so many."""


@inlined_kernel
def _support(words, state, length, token):
    """Returns bins of the longest match that a token followed, and of a share: after the next shorter one.

    Without such a match, 0 and a bin of its share of the text, 0 if it does not occur there.
    """
    for _ in range(MAX_HOPS):
        if state <= 0:
            break
        if target_of(words, state, token) > 0:
            shorter = link_of(words, state)
            share = -1.0
            if shorter > 0:
                target = target_of(words, shorter, token)
                count = np.float64(words[record_of(target) + COUNT])
                share = count / max(np.float64(words[record_of(shorter) + COUNT]), 1.0)
            return bin_of(length, LENGTH_STEPS), bin_of(share, SHARE_STEPS)
        state = link_of(words, state)
        length = np.int64(words[record_of(state) + LENGTH])
    found = target_of(words, np.int64(0), token)
    if found == 0:
        return 0, 0
    share = np.float64(words[record_of(found) + COUNT]) / max(np.float64(words[NUM_TOKENS]), 1.0)
    return 0, 1 + bin_of(share, TOKEN_SHARE_STEPS)


@inlined_kernel
def prefetch_support(own, outputs, prompts, block, place, token):
    """Asks for what the support of a token will read first, in all texts."""
    for kind in range(NUM_TEXTS):
        words = text_of(kind, own, outputs, prompts)
        state = block[place + 2 * kind]
        for _ in range(PREFETCHED_HOPS):
            prefetch_edge(words, state, np.uint32(token))
            if state == 0:
                break
            state = link_of(words, state)


@inlined_kernel
def _tree_support(trie, node, token):
    """Returns the cell of a token in the trees, and which of their sources propose it."""
    if node < 0 or trie[FIRST_CHILD, node] == 0:
        return 0, np.int64(0)
    floats = trie.view(np.float32)
    child = trie[FIRST_CHILD, node]
    while child > 0:
        if trie[TRIE_TOKEN, child] == token:
            return 2 + bin_of(floats[PROB, child], PROB_STEPS), np.int64(trie[TRIE_SOURCE, child])
        child = trie[NEXT_SIBLING, child]
    return 1, np.int64(0)


@inlined_kernel
def describe_candidate(own, outputs, prompts, trie, block, bits, place, depth, token, prob):
    """Writes the cells of a candidate's features; returns the sources that know it here, else at all."""
    sources, holders = np.int64(0), np.int64(0)
    matches, supporting, shares = 0, 0, 0
    for kind in range(NUM_TEXTS):
        words = text_of(kind, own, outputs, prompts)
        length = block[place + 2 * kind + 1]
        match, share = _support(words, block[place + 2 * kind], length, token)
        if match > 0:
            sources |= np.int64(1) << bits[kind]
        elif share > 0:
            holders |= np.int64(1) << bits[kind]
        matches = matches * NUM_MATCHES + bin_of(length, LENGTH_STEPS)
        supporting = supporting * NUM_MATCHES + match
        shares = shares * NUM_SHARES + (share if match > 0 else 1)
        block[FEATURES + kind] = SUPPORTS + (kind * NUM_MATCHES + match) * NUM_SHARES + share
    support, tree_sources = _tree_support(trie, block[place + 2 * NUM_TEXTS] - 1, token)
    block[FEATURES + NUM_TEXTS] = TREE_SUPPORT + support
    block[FEATURES + NUM_TEXTS + 1] = SUPPORTING_MATCHES + supporting
    block[FEATURES + NUM_TEXTS + 2] = MATCHES + matches
    block[FEATURES + NUM_TEXTS + 3] = SHARES + shares
    depths = bin_of(depth, DEPTH_STEPS) * NUM_PROBS + bin_of(prob, PROB_STEPS)
    block[FEATURES + NUM_TEXTS + 4] = DEPTHS + depths
    match = bin_of(block[place + 1], LENGTH_STEPS)
    support = anchor_support(own, block, place + ANCHOR, token)
    block[FEATURES + NUM_TEXTS + 5] = ANCHORS + support * NUM_MATCHES + match
    sources |= tree_sources
    return sources if sources > 0 else holders


@inlined_kernel
def mixed(tables, words, cells, evidence):
    """Returns the probability of a candidate whose features' cells stand in `words` from `cells` on.

    `evidence` is the log-odds from its contexts.
    """
    score = np.float64(tables[BIAS]) + np.float64(tables[WEIGHT]) * evidence
    for feature in range(cells, cells + NUM_FEATURES):
        score += np.float64(tables[words[feature]])
    return 1.0 / (1.0 + math.exp(-score))
