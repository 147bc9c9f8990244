"""Steps of many sessions in one call: each learns from what was committed, moves on and drafts.

What Python does for each session of a batch takes as long as the search, so little is left to it: it says
where a session's arrays lie (`kernels.cards`).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels import context_draft
from retrieval_spec.kernels.automaton import append, is_nearly_full
from retrieval_spec.kernels.blend import draft
from retrieval_spec.kernels.blend_learning import MAX_LEARNED_TOKENS, learn
from retrieval_spec.kernels.blend_tables import NUM_TEXTS, OUTPUTS, OWN, PROMPTS
from retrieval_spec.kernels.card_arrays import (
    arena_of,
    card_at,
    context_of,
    drafted_of,
    newest_tokens,
    place_of,
    records_of,
    rows_of,
    tables_of,
    text_of,
    tokens_between,
)
from retrieval_spec.kernels.card_prefetch import (
    prefetch_card,
    prefetch_ends,
    prefetch_named,
    prefetch_states,
)
from retrieval_spec.kernels.cards import (
    BITS,
    BUCKETS,
    CONTEXT_LENGTH,
    CORPORA,
    CORPUS_BIT,
    CORPUS_WORDS,
    IS_WIDE,
    NOTICE_LENGTH,
    NUM_BUCKETS,
    NUM_CORPORA,
    NUM_DRAFTED,
    NUM_KEPT,
    NUM_POSITIONS,
    NUM_ROWS,
    NUM_TOKENS,
    NUM_WORKED_IN,
    NUMBER,
    POSITIONS,
    SEEN_NUMBER,
    SEEN_VERSION,
    SORTED_TOKENS,
    TOKENS,
    TRIE,
    TRIE_COLUMNS,
    VERSION,
    array_at,
)
from retrieval_spec.kernels.fusion import insert
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.places import MAX_MATCH_TOKENS
from retrieval_spec.kernels.selection import admit, cut, floor_of, num_at_floor
from retrieval_spec.kernels.shared_automaton import MATCH, STATE, find_again, follow

CARD, LENGTH, END, MAX_NODES, NUM_LEFT, SIZE, IS_DUE, FIRST, TURN, STEP_WORDS = range(10)
"""Words of a step. The last two are the kernel's own: where its tree begins, and who comes in its place when
those that had most nodes draft first."""
SEARCH_WORDS = context_draft.SCRATCH_WORDS


@allocation_free_kernel
def _learn(card, tokens, block):
    """Learns from what became of the tree that was drafted last, and moves on in the texts."""
    token_ids, parents, path_probs = drafted_of(card)
    size = card[NUM_DRAFTED]
    learn(
        arena_of(card, OWN),
        place_of(card, OWN),
        arena_of(card, OUTPUTS),
        place_of(card, OUTPUTS),
        arena_of(card, PROMPTS),
        place_of(card, PROMPTS),
        tables_of(card),
        tokens,
        token_ids[:size],
        parents[:size],
        path_probs[:size],
        card[NUM_KEPT],
        block,
        records_of(card),
    )


@allocation_free_kernel
def _look_up(card, tokens):
    """Finds the place in the texts after tokens that no tree foresaw, or too many to learn from."""
    place_of(card, OWN)[:] = 0  # an anchor that does not move along would mislead
    newest = tokens[max(tokens.shape[0] - MAX_MATCH_TOKENS, 0) :]
    for kind in range(OUTPUTS, NUM_TEXTS):
        if text_of(card, kind)[NUM_ROWS] > 0:
            place = place_of(card, kind)
            if tokens.shape[0] >= MAX_MATCH_TOKENS:
                place[STATE] = place[MATCH] = 0
            follow(arena_of(card, kind), place, newest, MAX_MATCH_TOKENS)


@allocation_free_kernel
def _find_again(card, context):
    """Finds the places anew in texts that have grown since."""
    for kind in range(OUTPUTS, NUM_TEXTS):
        text = text_of(card, kind)
        place = place_of(card, kind)
        if place[SEEN_VERSION] != text[VERSION]:
            if place[SEEN_NUMBER] != text[NUMBER]:
                place[STATE] = place[MATCH] = 0
            before = newest_tokens(context, card[NUM_WORKED_IN], MAX_MATCH_TOKENS)
            find_again(arena_of(card, kind), place, before, MAX_MATCH_TOKENS)
            place[SEEN_VERSION], place[SEEN_NUMBER] = text[VERSION], text[NUMBER]


@allocation_free_kernel
def _move_on(card, tokens, block):
    """Takes in committed tokens; returns for how many the session's own text had no room."""
    if tokens.shape[0] == 0:
        return np.int64(0)
    was_drafted = card[NUM_DRAFTED] >= 0
    if was_drafted:
        _learn(card, tokens, block)
        card[NUM_DRAFTED] = -1
    if not was_drafted or tokens.shape[0] > MAX_LEARNED_TOKENS:
        _look_up(card, tokens)
    if text_of(card, OWN)[NUM_ROWS] == 0:
        return np.int64(0)
    return np.int64(tokens.shape[0] - append(arena_of(card, OWN), tokens, 0))


@inlined_kernel
def _search_in(tokens, corpus, context, reliability, max_depth_nodes, block, token_ids, parents, probs):
    return np.int64(
        context_draft.draft(
            tokens,
            array_at(corpus[POSITIONS], (corpus[NUM_POSITIONS],), np.uint32),
            array_at(corpus[BUCKETS], (corpus[NUM_BUCKETS],), np.uint32),
            context,
            reliability,
            corpus[SORTED_TOKENS],
            max_depth_nodes,
            block,
            token_ids,
            parents,
            probs,
        )
    )


@inlined_kernel
def _search(corpus, context, reliability, max_depth_nodes, block, token_ids, parents, probs):
    """Drafts from one corpus; returns the size of the tree."""
    newest = newest_tokens(context, context[CONTEXT_LENGTH], corpus[SORTED_TOKENS])
    if newest.shape[0] == 0:
        return np.int64(0)
    num_tokens = (corpus[NUM_TOKENS],)
    if corpus[IS_WIDE] != 0:
        wide = array_at(corpus[TOKENS], num_tokens, np.int32)
        return _search_in(
            wide, corpus, newest, reliability, max_depth_nodes, block, token_ids, parents, probs
        )
    narrow = array_at(corpus[TOKENS], num_tokens, np.uint16)
    return _search_in(narrow, corpus, newest, reliability, max_depth_nodes, block, token_ids, parents, probs)


@allocation_free_kernel
def _ask_corpora(card, reliability, max_depth_nodes, block, trie, token_ids, parents, probs, sources):
    """Lets all corpora propose, into one trie; returns its size."""
    size = np.int64(1)
    for row in range(TRIE_ROWS):
        trie[row, 0] = 0
    corpora = array_at(card[CORPORA], (card[NUM_CORPORA], np.int64(CORPUS_WORDS)), np.int64)
    for at in range(corpora.shape[0]):
        corpus, context = corpora[at], context_of(card)
        num = _search(corpus, context, reliability, max_depth_nodes, block, token_ids, parents, probs)
        for node in range(num):
            sources[node] = 1
        for row in range(TRIE_ROWS):
            trie[row, size : size + num] = 0
        size = np.int64(
            insert(
                trie,
                size,
                token_ids[:num],
                parents[:num],
                probs[:num],
                sources[:num],
                corpora[at, CORPUS_BIT],
            )
        )
    return size


@allocation_free_kernel
def _draft(
    card, max_depth_nodes, floor, reliability, block, trie, token_ids, parents, probs, sources, reached
):
    """Fills in a session's tree, and keeps what it will learn from; returns its size."""
    proposed = trie
    if card[TRIE_COLUMNS] > 0:
        proposed = array_at(card[TRIE], (np.int64(TRIE_ROWS), card[TRIE_COLUMNS]), np.int32)
    else:
        _ask_corpora(card, reliability, max_depth_nodes, block, trie, token_ids, parents, probs, sources)
    drafted_ids, drafted_parents, path_probs = drafted_of(card)
    size = draft(
        arena_of(card, OWN),
        rows_of(card, OWN),
        place_of(card, OWN),
        arena_of(card, OUTPUTS),
        rows_of(card, OUTPUTS),
        place_of(card, OUTPUTS),
        arena_of(card, PROMPTS),
        rows_of(card, PROMPTS),
        place_of(card, PROMPTS),
        proposed,
        tables_of(card),
        card[BITS : BITS + NUM_TEXTS],
        max_depth_nodes,
        block,
        records_of(card),
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


@inlined_kernel
def _take_turns(steps):
    """Finds where each tree begins, and who drafts when: first those of whose nodes most were kept last time.

    They go on as they did, mostly, and the others learn early what a node must reach.
    """
    first = np.int64(0)
    for at in range(steps.shape[0]):
        steps[at, FIRST], steps[at, SIZE] = first, card_at(steps[at, CARD])[NUM_KEPT]
        first += steps[at, MAX_NODES]
        turn = at
        while turn > 0 and steps[steps[turn - 1, TURN], SIZE] < steps[at, SIZE]:
            steps[turn, TURN] = steps[turn - 1, TURN]
            turn -= 1
        steps[turn, TURN] = at


@inlined_kernel
def _cut_all(steps, best, reached):
    """Keeps the nodes that are among the best."""
    at_floor = num_at_floor(best)
    for at in range(steps.shape[0]):
        if steps[at, SIZE] > 0:
            path_probs = reached[steps[at, FIRST] : steps[at, FIRST] + steps[at, SIZE]]
            steps[at, SIZE], at_floor = cut(best, path_probs, at_floor)
            card_at(steps[at, CARD])[NUM_KEPT] = steps[at, SIZE]


@inlined_kernel
def _pack(steps, token_ids, parents, probs, sources):
    """Puts each tree right behind the one before; returns how many nodes they have together."""
    end = np.int64(0)
    for at in range(steps.shape[0]):
        ahead = steps[at, FIRST] - end
        for node in range(end, end + steps[at, SIZE]):
            token_ids[node], parents[node] = token_ids[node + ahead], parents[node + ahead]
            probs[node], sources[node] = probs[node + ahead], sources[node + ahead]
        end += steps[at, SIZE]
    return end


@allocation_free_kernel
def _work_in(card, block):
    """Works in what was committed since the last step; returns for how much the own text had no room."""
    context = context_of(card)
    _find_again(card, context)
    num_left = _move_on(card, tokens_between(context, card[NUM_WORKED_IN], context[CONTEXT_LENGTH]), block)
    card[NUM_WORKED_IN] = context[CONTEXT_LENGTH]
    return num_left


@inlined_kernel
def _is_due(card):
    """Whether the session is to be looked at: room is short, or its length was waited for."""
    context = context_of(card)
    has_own_text = text_of(card, OWN)[NUM_ROWS] > 0
    return context[CONTEXT_LENGTH] >= context[NOTICE_LENGTH] or (
        has_own_text and is_nearly_full(arena_of(card, OWN))
    )


@inlined_kernel
def _prefetch_next(steps, turn):
    """Asks for what those will read whose turn comes next."""
    ahead = steps.shape[0] - 1 - turn
    if ahead > 3:
        prefetch_card(steps[steps[turn + 4, TURN], CARD])
    if ahead > 2:
        prefetch_named(steps[steps[turn + 3, TURN], CARD])
    if ahead > 1:
        prefetch_ends(steps[steps[turn + 2, TURN], CARD])
    if ahead > 0:
        prefetch_states(steps[steps[turn + 1, TURN], CARD])


@allocation_free_kernel
def take_steps(
    steps,
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
    """Works in what sessions committed, and drafts for those that have room: one session after the other.

    Of all trees together it keeps the most probable nodes, ties in the order of the sessions, and returns how
    many these are.

    Args:
        steps: int64[n, STEP_WORDS]  a row each session: where its card lies (`kernels.cards`), how many nodes
            its tree may have, 0 if none is wanted; and written, for how many tokens its own text had no
            room, the nodes of its tree, and whether the session is to be looked at (`_is_due`). Where there
            was no room, nothing is drafted: the tokens are to be appended, and the session comes again.
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
    num_best = 0
    _take_turns(steps)
    for turn in range(steps.shape[0]):
        at = steps[turn, TURN]
        card = card_at(steps[at, CARD])
        _prefetch_next(steps, turn)
        first, last = steps[at, FIRST], steps[at, FIRST] + steps[at, MAX_NODES]
        steps[at, NUM_LEFT], steps[at, SIZE] = _work_in(card, block), 0
        steps[at, IS_DUE] = _is_due(card)
        if last > first and steps[at, NUM_LEFT] == 0:
            steps[at, SIZE] = _draft(
                card,
                max_depth_nodes,
                floor_of(best, num_best),
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
    if 0 < best.shape[0] == num_best:
        _cut_all(steps, best, reached)
    return _pack(steps, token_ids, parents, probs, sources)
