"""Steps of many sessions in one call: each learns from what was committed, moves on and drafts.

What Python does for each session of a batch takes as long as the search, so little is left to it: it says
where a session's arrays lie (`kernels.cards`).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels import context_draft
from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.automaton import append
from retrieval_spec.kernels.blend import draft
from retrieval_spec.kernels.blend_learning import MAX_LEARNED_TOKENS, learn
from retrieval_spec.kernels.blend_tables import NUM_CELLS, NUM_TEXTS, OUTPUTS, OWN, PROMPTS
from retrieval_spec.kernels.cards import (
    ARENA,
    ARENA_WORDS,
    BITS,
    BUCKETS,
    CARD_WORDS,
    CONTEXT,
    CORPORA,
    CORPUS_BIT,
    CORPUS_WORDS,
    DRAFTED,
    DRAFTED_ROOM,
    IS_WIDE,
    LAST_KEPT,
    NUM_BUCKETS,
    NUM_CONTEXT,
    NUM_CORPORA,
    NUM_DRAFTED,
    NUM_KEPT,
    NUM_POSITIONS,
    NUM_ROWS,
    NUM_SUFFIX,
    NUM_TOKENS,
    PLACE,
    POSITIONS,
    RECORDS,
    RECORDS_WORDS,
    ROWS,
    SORTED_TOKENS,
    SUFFIX,
    TABLES,
    TEXT_WORDS,
    TOKENS,
    TRIE,
    TRIE_COLUMNS,
    array_at,
)
from retrieval_spec.kernels.commonest import ROW_WORDS
from retrieval_spec.kernels.fusion import insert
from retrieval_spec.kernels.jit import allocation_free_kernel, expanded_kernel, inlined_kernel
from retrieval_spec.kernels.places import MAX_MATCH_TOKENS
from retrieval_spec.kernels.selection import admit, cut, floor_of, num_at_floor
from retrieval_spec.kernels.shared_automaton import find_again, follow

CARD, END, MAX_NODES, NUM_ADDED, SIZE, FIRST, TURN, STEP_WORDS = range(8)
"""Words of a step; the last two are the kernel's own: its first node, and whose turn it is as many-th."""
SEARCH_WORDS = context_draft.SCRATCH_WORDS


@expanded_kernel
def _arena(card, kind):
    return array_at(card[kind * TEXT_WORDS + ARENA], (card[kind * TEXT_WORDS + ARENA_WORDS],), np.int32)


@expanded_kernel
def _rows(card, kind):
    num_rows = card[kind * TEXT_WORDS + NUM_ROWS]
    return array_at(card[kind * TEXT_WORDS + ROWS], (num_rows, np.int64(ROW_WORDS)), np.int32)


@expanded_kernel
def _place(card, kind):
    return array_at(
        card[kind * TEXT_WORDS + PLACE], (np.int64(ANCHOR_WORDS if kind == OWN else 2),), np.int64
    )


@expanded_kernel
def _tables(card):
    return array_at(card[TABLES], (np.int64(NUM_CELLS),), np.float32)


@expanded_kernel
def _records(card):
    return array_at(card[RECORDS], (card[RECORDS_WORDS],), np.int32)


@expanded_kernel
def _drafted(card):
    """Returns token ids, parents and path probabilities, each with room for the largest tree."""
    room = card[DRAFTED_ROOM]
    address, words = card[DRAFTED], (room,)
    return (
        array_at(address, words, np.int32),
        array_at(address + 4 * room, words, np.int32),
        array_at(address + 8 * room, words, np.float32),
    )


@allocation_free_kernel
def _learn(card, tokens, block):
    """Learns from what became of the tree that was drafted last, and moves on in the texts."""
    token_ids, parents, path_probs = _drafted(card)
    size = card[NUM_DRAFTED]
    learn(
        _arena(card, OWN),
        _place(card, OWN),
        _arena(card, OUTPUTS),
        _place(card, OUTPUTS),
        _arena(card, PROMPTS),
        _place(card, PROMPTS),
        _tables(card),
        tokens,
        token_ids[:size],
        parents[:size],
        path_probs[:size],
        card[NUM_KEPT],
        block,
        _records(card),
    )


@allocation_free_kernel
def _look_up(card, tokens):
    """Finds the place in the texts after tokens that no tree foresaw, or too many to learn from."""
    _place(card, OWN)[:] = 0  # an anchor that does not move along would mislead
    newest = tokens[max(tokens.shape[0] - MAX_MATCH_TOKENS, 0) :]
    for kind in range(OUTPUTS, NUM_TEXTS):
        if card[kind * TEXT_WORDS + NUM_ROWS] > 0:
            place = array_at(card[kind * TEXT_WORDS + PLACE], (np.int64(2),), np.int64)
            if tokens.shape[0] >= MAX_MATCH_TOKENS:
                place[:] = 0
            follow(_arena(card, kind), place, newest, MAX_MATCH_TOKENS)


@allocation_free_kernel
def _find_again(card):
    """Finds the places anew in texts that have grown since."""
    for kind in range(OUTPUTS, NUM_TEXTS):
        num_suffix = card[kind * TEXT_WORDS + NUM_SUFFIX]
        if num_suffix > 0:
            suffix = array_at(card[kind * TEXT_WORDS + SUFFIX], (num_suffix,), np.int32)
            place = array_at(card[kind * TEXT_WORDS + PLACE], (np.int64(2),), np.int64)
            find_again(_arena(card, kind), place, suffix, MAX_MATCH_TOKENS)


@allocation_free_kernel
def _move_on(card, tokens, block):
    """Takes in committed tokens; returns how many the session's own text had room for."""
    if tokens.shape[0] == 0:
        return np.int64(0)
    was_drafted = card[NUM_DRAFTED] >= 0
    if was_drafted:
        _learn(card, tokens, block)
        card[NUM_DRAFTED] = -1
    if not was_drafted or tokens.shape[0] > MAX_LEARNED_TOKENS:
        _look_up(card, tokens)
    has_own_text = card[OWN * TEXT_WORDS + NUM_ROWS] > 0
    return np.int64(append(_arena(card, OWN), tokens, 0) if has_own_text else tokens.shape[0])


@inlined_kernel
def _search_in(tokens, corpus, reliability, max_depth_nodes, block, token_ids, parents, probs):
    return np.int64(
        context_draft.draft(
            tokens,
            array_at(corpus[POSITIONS], (corpus[NUM_POSITIONS],), np.uint32),
            array_at(corpus[BUCKETS], (corpus[NUM_BUCKETS],), np.uint32),
            array_at(corpus[CONTEXT], (corpus[NUM_CONTEXT],), np.int32),
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
def _search(corpus, reliability, max_depth_nodes, block, token_ids, parents, probs):
    """Drafts from one corpus; returns the size of the tree."""
    if corpus[NUM_CONTEXT] == 0:
        return np.int64(0)
    num_tokens = (corpus[NUM_TOKENS],)
    if corpus[IS_WIDE] != 0:
        wide = array_at(corpus[TOKENS], num_tokens, np.int32)
        return _search_in(wide, corpus, reliability, max_depth_nodes, block, token_ids, parents, probs)
    narrow = array_at(corpus[TOKENS], num_tokens, np.uint16)
    return _search_in(narrow, corpus, reliability, max_depth_nodes, block, token_ids, parents, probs)


@allocation_free_kernel
def _ask_corpora(card, reliability, max_depth_nodes, block, trie, token_ids, parents, probs, sources):
    """Lets all corpora propose, into one trie; returns its size."""
    size = np.int64(1)
    for row in range(TRIE_ROWS):
        trie[row, 0] = 0
    corpora = array_at(card[CORPORA], (card[NUM_CORPORA], np.int64(CORPUS_WORDS)), np.int64)
    for at in range(corpora.shape[0]):
        num = _search(corpora[at], reliability, max_depth_nodes, block, token_ids, parents, probs)
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
    drafted_ids, drafted_parents, path_probs = _drafted(card)
    size = draft(
        _arena(card, OWN),
        _rows(card, OWN),
        _place(card, OWN),
        _arena(card, OUTPUTS),
        _rows(card, OUTPUTS),
        _place(card, OUTPUTS),
        _arena(card, PROMPTS),
        _rows(card, PROMPTS),
        _place(card, PROMPTS),
        proposed,
        _tables(card),
        card[BITS : BITS + NUM_TEXTS],
        max_depth_nodes,
        block,
        _records(card),
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
    begin = first = np.int64(0)
    for at in range(steps.shape[0]):
        card = array_at(steps[at, CARD], (np.int64(CARD_WORDS),), np.int64)
        if steps[at, END] > begin and card[NUM_DRAFTED] >= 0:
            card[LAST_KEPT] = card[NUM_KEPT]
        steps[at, FIRST], steps[at, SIZE] = first, card[LAST_KEPT]
        begin, first = steps[at, END], first + steps[at, MAX_NODES]
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
        card = array_at(steps[at, CARD], (np.int64(CARD_WORDS),), np.int64)
        if steps[at, SIZE] > 0:
            path_probs = reached[steps[at, FIRST] : steps[at, FIRST] + steps[at, SIZE]]
            steps[at, SIZE], at_floor = cut(best, path_probs, at_floor)
            card[NUM_KEPT] = steps[at, SIZE]


@allocation_free_kernel
def take_steps(
    steps,
    tokens,
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
    """Moves sessions on by committed tokens, one after the other, and drafts for those that have room.

    Of all trees together it keeps the most probable nodes, ties in the order of the sessions.

    Args:
        steps: int64[n, STEP_WORDS]  a row each session: where its card lies (`kernels.cards`), where its
            tokens end, how many nodes its tree may have, 0 if none is wanted; and written, how many of the
            tokens its own text had room for, and the nodes of its tree. If there was no room for all,
            nothing is drafted: the others are to be appended, and the session comes again without tokens.
        tokens: int32[..]  committed ones of all sessions, one after the other.
        max_depth_nodes: no path is longer.
        best: float32[..]  scratch memory, as long as nodes are wanted of all trees; empty: all are.
        reliability: float32[..]  for corpora (`context_draft.draft`).
        block: int64[..]  scratch memory for the largest tree (`blend.scratch_words`) and for corpora.
        trie: int32[TRIE_ROWS, ..]  scratch memory: columns for the root and what a session's corpora draft.
        token_ids: int32[..]  written; the trees lie one after the other, each with room for all it may have.
        parents: int32[..]  written: index of an earlier node of the tree, or -1.
        probs: float32[..]  written: P(node accepted | parent accepted).
        sources: uint16[..]  written: bit mask of the sources that know the token here.
        reached: float32[..]  written: path probabilities.
    """
    num_best = 0
    _take_turns(steps)
    for at in steps[:, TURN]:
        card = array_at(steps[at, CARD], (np.int64(CARD_WORDS),), np.int64)
        begin, end = steps[at - 1, END] if at > 0 else np.int64(0), steps[at, END]
        first, last = steps[at, FIRST], steps[at, FIRST] + steps[at, MAX_NODES]
        _find_again(card)
        steps[at, NUM_ADDED] = _move_on(card, tokens[begin:end], block)
        steps[at, SIZE] = 0
        if last > first and steps[at, NUM_ADDED] == end - begin:
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
