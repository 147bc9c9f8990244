"""The tables that turn evidence into acceptance probabilities: where each lies in their one arena.

    escape    float32[kinds, 2, lengths, counts, widths]   P(the next token is among those of a context)
    mixing    float32[..]      a weight, a bias and one table a feature, added in the log-odds domain
    seen      float32[..]      how often each cell of `escape` was learned
    outcomes  float32[2, n]    accepted and predicted nodes by predicted path probability

Bins are coarse where evidence is rare. Features that are absent have cell 0.
"""

from __future__ import annotations

import math

import numpy as np

from retrieval_spec.kernels.anchor import NUM_SUPPORTS
from retrieval_spec.kernels.jit import inlined_kernel

OWN, OUTPUTS, PROMPTS, TREES, ANCHORED = range(5)
"""Kinds of evidence: the own text, what was written and asked before, what other sources propose, and
where a copy of the own text may go on after an edit."""
NUM_KINDS, NUM_TEXTS = 5, 3

NUM_LENGTHS, NUM_COUNTS, NUM_WIDTHS = 13, 8, 4
ESCAPE_CELLS = NUM_KINDS * 2 * NUM_LENGTHS * NUM_COUNTS * NUM_WIDTHS

LENGTH_STEPS = np.array([1, 2, 3, 4, 5, 7, 10, 16, 32], np.int64)
NUM_MATCHES = 10
SHARE_STEPS = np.array([0.0, 0.02, 0.05, 0.12, 0.25, 0.5, 0.75, 0.97])
NUM_SHARES = 9
TOKEN_SHARE_STEPS = np.array([0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03])
PROB_STEPS = np.array([0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98])
NUM_PROBS = 15
DEPTH_STEPS = np.array([1, 2, 4, 8, 16], np.int64)
NUM_DEPTHS = 6

WEIGHT = ESCAPE_CELLS
BIAS = WEIGHT + 1
SUPPORTS = BIAS + 1  # by kind of text: longest match that a token followed, its share after a shorter one
TREE_SUPPORT = SUPPORTS + NUM_TEXTS * NUM_MATCHES * NUM_SHARES
SUPPORTING_MATCHES = TREE_SUPPORT + NUM_PROBS + 2  # longest matches that a token followed, of all texts
MATCHES = SUPPORTING_MATCHES + NUM_MATCHES**NUM_TEXTS  # longest matches, of all texts
SHARES = MATCHES + NUM_MATCHES**NUM_TEXTS  # shares after the shorter matches, of all texts
DEPTHS = SHARES + NUM_SHARES**NUM_TEXTS  # how many drafted tokens came before, and what the contexts say
ANCHORS = DEPTHS + NUM_DEPTHS * NUM_PROBS  # what an anchor says, and the longest match in the own text
PRIOR_CELLS = ANCHORS + NUM_SUPPORTS * NUM_MATCHES

NUM_FEATURES = NUM_TEXTS + 6

SEEN = PRIOR_CELLS
OUTCOMES = SEEN + ESCAPE_CELLS
NUM_OUTCOMES = 24
NUM_CELLS = OUTCOMES + 2 * NUM_OUTCOMES

LOWEST_PROB = 1e-4
FIRST_LOG_ODDS = -8.0
LOG_ODDS_STEP = 0.5


@inlined_kernel
def bin_of(value, steps):
    """Returns how many of the rising `steps` the value has reached."""
    # All are compared: where to stop would be guessed wrong more often than a comparison costs.
    at = 0
    for step in range(steps.shape[0]):
        at += value >= steps[step]
    return at


@inlined_kernel
def log_odds(prob):
    """Returns ln(p / (1 - p)), of at least `LOWEST_PROB` and at most its complement."""
    bounded = min(max(prob, LOWEST_PROB), 1.0 - LOWEST_PROB)
    return math.log(bounded / (1.0 - bounded))


@inlined_kernel
def length_bin(length):
    """Returns the bin of a match length among `NUM_LENGTHS`."""
    if length <= 6:
        return length
    if length <= 12:
        return 7 if length <= 8 else 8
    if length <= 24:
        return 9 if length <= 16 else 10
    return 11 if length <= 40 else 12


@inlined_kernel
def escape_cell(kind, is_later, stage, total, num_new):
    """Returns the cell of a context by its kind, bin of its match, count and number of continuations.

    `is_later` is 1 if other contexts came before; then count and number are of new continuations.
    """
    bits = 0
    while total > 1 and bits < NUM_COUNTS - 1:
        total >>= 1
        bits += 1
    width = 0 if num_new <= 1 else (1 if num_new == 2 else (2 if num_new <= 4 else 3))
    cell = (kind * 2 + is_later) * NUM_LENGTHS + stage
    return (cell * NUM_COUNTS + bits) * NUM_WIDTHS + width


@inlined_kernel
def outcome_of(path_prob):
    """Returns the bin of a path probability, and how far it lies on the way to the next one."""
    at = (log_odds(path_prob) - FIRST_LOG_ODDS) / LOG_ODDS_STEP
    at = min(max(at, 0.0), NUM_OUTCOMES - 1.001)
    return int(at), at - int(at)
