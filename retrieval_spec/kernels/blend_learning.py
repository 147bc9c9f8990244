"""What the tables of `kernels.blend_tables` learn from outcomes.

A draft records what it knew of every place that it expanded (`kernels.records`), so that nothing has to be
looked up again when the tokens come that followed in fact.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.blend_tables import (
    BIAS,
    ESCAPE_CELLS,
    NUM_FEATURES,
    NUM_KINDS,
    NUM_OUTCOMES,
    OUTCOMES,
    SEEN,
    TREES,
    WEIGHT,
    log_odds,
    outcome_of,
)
from retrieval_spec.kernels.features import mixed
from retrieval_spec.kernels.jit import inlined_kernel
from retrieval_spec.kernels.records import (
    HEAD_WORDS,
    KNOWN_CELL,
    KNOWN_CONTEXT_WORDS,
    KNOWN_FIRST,
    KNOWN_PROB,
    KNOWN_STOP,
    KNOWN_TOKEN,
    KNOWN_WORDS,
    NUM_CANDIDATES,
    NUM_CONTEXTS,
    STARTS,
)

MAX_LEARNED_TOKENS = 64
"""Tokens of one commit that the tables learn from."""
TABLE_RATE = 0.05
WEIGHT_RATE = 0.001
PRIOR_COUNT = 20.0
"""How many outcomes the shipped value of an escape cell is worth."""
TREE_PRIOR_COUNT = 2.0
"""For cells of trees: whether a datastore fits what a namespace writes is seen there alone."""
KIND_CELLS = ESCAPE_CELLS // NUM_KINDS
MOST_SEEN = 2_000.0
"""A cell goes on following what changes as fast as after so many outcomes."""
OUTCOME_DECAY = 0.998


@inlined_kernel
def _learn_candidate(tables, records, cells, prob, came):
    """Corrects the mixing tables by how far a candidate's probability was off."""
    evidence = log_odds(prob)
    error = (1.0 if came else 0.0) - mixed(tables, records, cells, evidence)
    for feature in range(cells, cells + NUM_FEATURES):
        tables[records[feature]] += TABLE_RATE * error
    tables[BIAS] += WEIGHT_RATE * error
    tables[WEIGHT] += WEIGHT_RATE * error * evidence


@inlined_kernel
def _learn_contexts(tables, records, at, num_contexts, found):
    """Corrects the escape cells of all contexts up to the one that gave the candidate which came true."""
    for context in range(at, at + num_contexts * KNOWN_CONTEXT_WORDS, KNOWN_CONTEXT_WORDS):
        is_found = records[context + KNOWN_FIRST] <= found < records[context + KNOWN_STOP]
        cell = np.int64(records[context + KNOWN_CELL])
        seen = tables[SEEN + cell]
        prior_count = TREE_PRIOR_COUNT if cell // KIND_CELLS == TREES else PRIOR_COUNT
        tables[cell] += ((1.0 if is_found else 0.0) - tables[cell]) / (seen + prior_count + 1.0)
        tables[SEEN + cell] = min(seen + 1.0, MOST_SEEN)
        if is_found:
            break


@inlined_kernel
def _learn_place(tables, records, start, token):
    """Corrects the tables by the token that came where a record was written."""
    num, found = np.int64(records[start + NUM_CANDIDATES]), np.int64(-1)
    at, probs = start + HEAD_WORDS, records.view(np.float32)
    for candidate in range(num):
        prob, came = np.float64(probs[at + KNOWN_PROB]), records[at + KNOWN_TOKEN] == token
        at += KNOWN_WORDS
        if came:
            found = candidate
        if prob > 0.0:
            _learn_candidate(tables, records, at, prob, came)
            at += NUM_FEATURES
    _learn_contexts(tables, records, at, np.int64(records[start + NUM_CONTEXTS]), found)


@inlined_kernel
def _learn_path(tables, records, token_ids, parents, tokens):
    """Learns at the places of the tree that the tokens passed, as long as they stay in it."""
    node = -1
    for depth in range(min(tokens.shape[0], MAX_LEARNED_TOKENS)):
        start = np.int64(records[STARTS + node + 1])
        if start > 0:
            _learn_place(tables, records, start, tokens[depth])
        after = node
        for child in range(node + 1, token_ids.shape[0]):
            if parents[child] == node and token_ids[child] == tokens[depth]:
                after = child
                break
        if after == node:
            break
        node = after


@inlined_kernel
def _judge(token_ids, parents, path_probs, num_verified, tokens, tables):
    """Notes which nodes of a drafted tree came true.

    Of nodes that were not verified, the children of verified ones are judged too: what follows a verified
    node is known wherever the node came true. Of their own children nothing is known exactly where it would
    speak for them, so they are left out.
    """
    for cell in range(OUTCOMES, OUTCOMES + 2 * NUM_OUTCOMES):
        tables[cell] *= np.float32(OUTCOME_DECAY)
    node, num_accepted = -1, 0
    for other in range(token_ids.shape[0]):
        if parents[other] >= num_verified:
            continue
        at, part = outcome_of(path_probs[other])
        is_next = num_accepted < tokens.shape[0] and parents[other] == node
        if is_next and token_ids[other] == tokens[num_accepted]:
            node = other
            num_accepted += 1
            tables[OUTCOMES + at] += 1.0 - part
            tables[OUTCOMES + at + 1] += part
        tables[OUTCOMES + NUM_OUTCOMES + at] += path_probs[other] * (1.0 - part)
        tables[OUTCOMES + NUM_OUTCOMES + at + 1] += path_probs[other] * part


@inlined_kernel
def learn(tables, tokens, token_ids, parents, path_probs, num_verified, records):
    """Corrects the tables by what followed the context in fact.

    Args:
        tables: float32[NUM_CELLS]  changed.
        tokens: int32[n]  committed tokens: the accepted ones and the bonus token; the first
            `MAX_LEARNED_TOKENS` of them are learned from while the tree goes along.
        token_ids: int32[m]  the tree that was drafted.
        parents: int32[m]  likewise.
        path_probs: float32[m]  as `blend.draft` wrote them.
        num_verified: so many nodes, the first ones, went to the target.
        records: int32[words]  as `blend.draft` wrote them.
    """
    _learn_path(tables, records, token_ids, parents, tokens)
    _judge(token_ids, parents, path_probs, num_verified, tokens, tables)
