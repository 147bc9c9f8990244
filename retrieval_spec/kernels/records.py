"""What a draft knew of the places that it expanded, kept until outcomes say what it was worth.

An arena of int32: the first free word, where each place's record starts (0: none), then the records. A
record tells its numbers of candidates and contexts; each candidate's token, what its contexts made it worth
and, if it was described, the cells of its features; each context's cell and which candidates it gave.
Place 0 is the context itself, place n + 1 is node n.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.anchor import WAYS
from retrieval_spec.kernels.blend_tables import NUM_FEATURES, NUM_TEXTS
from retrieval_spec.kernels.candidates import CANDIDATE, CANDIDATE_WORDS, CANDIDATES, MAX_CANDIDATES
from retrieval_spec.kernels.evidence import (
    CELL,
    CONTEXT_WORDS,
    CONTEXTS,
    FEATURES,
    FIRST,
    MAX_CONTEXTS,
    STOP,
)
from retrieval_spec.kernels.jit import inlined_kernel

FREE, STARTS = 0, 1
# Words of a record, of a candidate that was not described, and of a context.
NUM_CANDIDATES, NUM_CONTEXTS, HEAD_WORDS = range(3)
KNOWN_TOKEN, KNOWN_PROB, KNOWN_WORDS = range(3)
KNOWN_CELL, KNOWN_FIRST, KNOWN_STOP, KNOWN_CONTEXT_WORDS = range(4)

MAX_RECORD_WORDS = (
    HEAD_WORDS
    + MAX_CANDIDATES * (KNOWN_WORDS + NUM_FEATURES)
    + (MAX_CONTEXTS + WAYS + NUM_TEXTS) * KNOWN_CONTEXT_WORDS
)
USUAL_RECORD_WORDS = 48


def record_words(max_nodes: int) -> int:
    """Returns how many words an arena needs for the places of a tree of so many nodes.

    One that holds the largest record of each place would be twelve times as large; where there is no room for
    a place, nothing is learned there.
    """
    # The last record that is kept, and behind it one that is not.
    return STARTS + (max_nodes + 1) * (1 + USUAL_RECORD_WORDS) + 3 * MAX_RECORD_WORDS


@inlined_kernel
def _end_of_room(max_nodes):
    """Returns the word before which the records of a tree of so many nodes start."""
    return STARTS + (max_nodes + 1) * (1 + USUAL_RECORD_WORDS) + MAX_RECORD_WORDS


@inlined_kernel
def clear_records(records, max_nodes):
    """Forgets all records, and makes room for where those of a tree's places start."""
    records[FREE] = STARTS + max_nodes + 1
    for place in range(max_nodes + 1):
        records[STARTS + place] = 0


@inlined_kernel
def begin_record(records, num, num_contexts):
    """Starts a record at the first free word; returns where it goes on."""
    at = np.int64(records[FREE])
    records[at + NUM_CANDIDATES] = num
    records[at + NUM_CONTEXTS] = num_contexts
    return at + HEAD_WORDS


@inlined_kernel
def record_candidate(records, at, block, candidate, prob):
    """Adds a candidate that was not described, or will be with `record_features`; returns as above."""
    records[at + KNOWN_TOKEN] = block[CANDIDATES + candidate * CANDIDATE_WORDS + CANDIDATE]
    records.view(np.float32)[at + KNOWN_PROB] = prob
    return at + KNOWN_WORDS


@inlined_kernel
def record_features(records, at, block):
    """Adds the features of the candidate that was added last; returns as above."""
    for feature in range(NUM_FEATURES):
        records[at + feature] = block[FEATURES + feature]
    return at + NUM_FEATURES


@inlined_kernel
def end_record(records, max_nodes, at, place, block, num_contexts):
    """Adds the contexts; the record is kept if there was room left, else the next one overwrites it."""
    context = CONTEXTS
    for _ in range(num_contexts):
        records[at + KNOWN_CELL] = block[context + CELL]
        records[at + KNOWN_FIRST] = block[context + FIRST]
        records[at + KNOWN_STOP] = block[context + STOP]
        context += CONTEXT_WORDS
        at += KNOWN_CONTEXT_WORDS
    start = np.int64(records[FREE])
    if start < _end_of_room(max_nodes):
        records[STARTS + place] = start
        records[FREE] = at
