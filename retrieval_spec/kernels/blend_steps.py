"""Steps of many sessions in one call: each learns from what was committed, moves on and drafts.

What Python does for each session of a batch takes as long as the search, so little is left to it: it says
where a session's arrays lie (`kernels.cards`).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels.blend import draft
from retrieval_spec.kernels.blend_tables import NUM_TEXTS, OUTPUTS, OWN, PROMPTS
from retrieval_spec.kernels.card_arrays import (
    arena_of,
    card_at,
    drafted_of,
    place_of,
    records_of,
    rows_of,
    tables_of,
)
from retrieval_spec.kernels.cards import (
    BITS,
    LAST_FLOOR,
    NUM_DRAFTED,
    NUM_KEPT,
    SIDE,
    TRIE,
    TRIE_COLUMNS,
    array_at,
)
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.outcomes import set_aside
from retrieval_spec.kernels.proposals import ask_corpora
from retrieval_spec.kernels.selection import ALL, admit, floor_of
from retrieval_spec.kernels.steps import (
    CARD,
    FIRST,
    IS_DUE,
    MAX_NODES,
    NUM_LEFT,
    NUM_PARTS,
    SIZE,
    TURN,
    WHOLE,
    cut_all,
    note_floor,
    pack,
    prefetch_next,
    take_turns,
)
from retrieval_spec.kernels.work_in import is_due, work_in

GUESS_SCATTER = 6.4
"""What a node must reach is guessed by this part of what it had to reach last time less, over the root of how
many nodes are kept: of many nodes that changes little, and the first sessions know nothing else."""


@inlined_kernel
def _lowest(card, best, num_best, num_wanted):
    """Returns what a node of a session must reach, as far as is known or to be guessed; below 0: nothing."""
    if best.shape[0] == 0:
        return ALL
    guessed_share = max(0.0, 1.0 - GUESS_SCATTER / np.sqrt(num_wanted))
    return max(floor_of(best, num_best), guessed_share * card.view(np.float64)[LAST_FLOOR])


@allocation_free_kernel
def _draft(
    card,
    part,
    corpora,
    max_depth_nodes,
    floor,
    reliability,
    block,
    trie,
    token_ids,
    parents,
    probs,
    sources,
    reached,
):
    """Fills in a session's tree, and keeps what it will learn from; returns its size."""
    side, proposed = card[SIDE], trie
    if card[TRIE_COLUMNS] > 0:
        proposed = array_at(card[TRIE], (np.int64(TRIE_ROWS), card[TRIE_COLUMNS]), np.int32)
    else:
        ask_corpora(
            corpora, card, max_depth_nodes, reliability, block, trie, token_ids, parents, probs, sources
        )
    drafted_ids, drafted_parents, path_probs = drafted_of(card, side)
    size = draft(
        arena_of(card, OWN),
        rows_of(card, OWN, part),
        place_of(card, OWN),
        arena_of(card, OUTPUTS),
        rows_of(card, OUTPUTS, part),
        place_of(card, OUTPUTS),
        arena_of(card, PROMPTS),
        rows_of(card, PROMPTS, part),
        place_of(card, PROMPTS),
        proposed,
        tables_of(card),
        card[BITS : BITS + NUM_TEXTS],
        max_depth_nodes,
        block,
        records_of(card, side),
        token_ids,
        parents,
        probs,
        sources,
        path_probs[: token_ids.shape[0]],
        reached,
        floor,
    )
    for node in range(size):
        drafted_ids[node], drafted_parents[node] = token_ids[node], parents[node]
    card[NUM_DRAFTED] = card[NUM_KEPT] = size
    return size


@allocation_free_kernel
def begin_steps(steps):
    """Sets aside what became of the last trees, and finds who drafts when.

    Args:
        steps: int64[n, STEP_WORDS]  as for `take_steps`.
    """
    for at in range(steps.shape[0]):
        set_aside(card_at(steps[at, CARD]))
    take_turns(steps)


@allocation_free_kernel
def draft_turns(
    steps,
    part,
    num_wanted,
    corpora,
    max_depth_nodes,
    best,
    reliability,
    block,
    trie,
    token_ids,
    parents,
    probs,
    sources,
    reached,
):
    """Works in what the sessions of one part committed, and drafts for those that have room, in their turns.

    Parts may be drafted at the same time, each with scratch memory of its own.

    Args:
        steps: int64[n, STEP_WORDS]  as `begin_steps` left it; the other words are written.
        part: which of them (`kernels.steps`), or `WHOLE`.
        num_wanted: nodes of all parts together.
        corpora: int64[.., CORPUS_WORDS]  as for `take_steps`.
        max_depth_nodes: likewise.
        best: float32[..]  scratch memory, as long as nodes are wanted of the part; empty: all are.
        reliability: float32[..]  as for `take_steps`.
        block: int64[..]  scratch memory, likewise.
        trie: int32[TRIE_ROWS, ..]  likewise.
        token_ids: int32[..]  written, each tree where the words of its step say.
        parents: int32[..]  likewise.
        probs: float32[..]  likewise.
        sources: uint16[..]  likewise.
        reached: float32[..]  likewise: path probabilities.
    """
    num_best, stride = 0, 1 if part == WHOLE else NUM_PARTS
    for turn in range(max(part, 0), steps.shape[0], stride):
        prefetch_next(steps, turn, stride)
        at = steps[turn, TURN]
        card = card_at(steps[at, CARD])
        steps[at, NUM_LEFT], steps[at, SIZE] = work_in(card, block), 0
        steps[at, IS_DUE] = is_due(card)
        first, last = steps[at, FIRST], steps[at, FIRST] + steps[at, MAX_NODES]
        if last > first and steps[at, NUM_LEFT] == 0:
            steps[at, SIZE] = _draft(
                card,
                max(part, 0),
                corpora,
                max_depth_nodes,
                _lowest(card, best, num_best, num_wanted),
                reliability,
                block,
                trie,
                token_ids[first:last],
                parents[first:last],
                probs[first:last],
                sources[first:last],
                reached[first:last],
            )
            num_best = admit(best, num_best, reached[first : first + steps[at, SIZE]])


@allocation_free_kernel
def end_steps(steps, best, token_ids, parents, probs, sources, reached):
    """Keeps the most probable nodes of all trees, ties in the order of the sessions; returns how many.

    Args:
        steps: int64[n, STEP_WORDS]  as all parts left them; sizes are written.
        best: float32[..]  scratch memory, as long as nodes are wanted of all trees; empty: all are.
        token_ids: int32[..]  the trees, put one right after the other; as the next ones.
        parents: int32[..]  as `take_steps` says.
        probs: float32[..]  likewise.
        sources: uint16[..]  likewise.
        reached: float32[..]  as `draft_turns` left it.
    """
    num_best = 0
    for at in range(steps.shape[0]):
        num_best = admit(best, num_best, reached[steps[at, FIRST] : steps[at, FIRST] + steps[at, SIZE]])
    note_floor(steps, floor_of(best, num_best))
    if 0 < best.shape[0] == num_best:
        cut_all(steps, best, reached)
    return pack(steps, token_ids, parents, probs, sources)


@allocation_free_kernel
def take_steps(
    steps,
    corpora,
    max_depth_nodes,
    best,
    reliability,
    block,
    trie,
    token_ids,
    parents,
    probs,
    sources,
    reached,
):
    """Works in what sessions committed and drafts for those that have room: one after the other.

    Of all trees together it keeps the most probable nodes, ties in the order of the sessions, and returns how
    many these are.

    Args:
        steps: int64[n, STEP_WORDS]  a row each session (`kernels.steps`); the last words are written. Where
            an own text had no room, nothing is drafted: the tokens are to be appended, and the session comes
            again.
        corpora: int64[.., CORPUS_WORDS]  those that sessions search for which nothing else is proposed
            (`kernels.cards`).
        max_depth_nodes: no path is longer.
        best: float32[..]  scratch memory, as long as nodes are wanted of all trees; empty: all are.
        reliability: float32[..]  for corpora (`context_draft.draft`).
        block: int64[..]  scratch memory for the largest tree (`blend.scratch_words`) and for corpora.
        trie: int32[TRIE_ROWS, ..]  scratch memory: columns for the root and what a session's corpora draft.
        token_ids: int32[..]  written, the trees one after the other; room for all that all may have.
        parents: int32[..]  written: index of an earlier node of the tree, or -1.
        probs: float32[..]  written: P(node accepted | parent accepted).
        sources: uint16[..]  written: bit mask of the sources that know the token here.
        reached: float32[..]  scratch memory for path probabilities.
    """
    begin_steps(steps)
    draft_turns(
        steps,
        WHOLE,
        best.shape[0],
        corpora,
        max_depth_nodes,
        best,
        reliability,
        block,
        trie,
        token_ids,
        parents,
        probs,
        sources,
        reached,
    )
    return end_steps(steps, best, token_ids, parents, probs, sources, reached)
