"""One draft tree from all evidence, most probable paths first.

The nodes of n most probable paths are the tree that expects most accepted tokens (OPT-Tree, arXiv
2406.17276), if probabilities are true. They are estimated from evidence (`kernels.evidence`) by tables
(`kernels.blend_tables`) that every committed token corrects (`kernels.blend_learning`).
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.blend_tables import (
    NUM_OUTCOMES,
    NUM_TEXTS,
    OUTCOMES,
    log_odds,
    outcome_of,
)
from retrieval_spec.kernels.candidates import (
    CANDIDATE,
    CANDIDATE_PROB,
    CANDIDATE_SOURCES,
    CANDIDATE_WORDS,
    CANDIDATES,
)
from retrieval_spec.kernels.evidence import (
    EVIDENCE_WORDS,
    FEATURES,
    LOWEST_MIXED_PROB,
    begin_walk,
    gather,
    prefetch_walk,
)
from retrieval_spec.kernels.features import describe_candidate, mixed, prefetch_support
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.places import PLACE_WORDS, begin, follow_all, text_of
from retrieval_spec.kernels.ranking import (
    FIRST_OWN_WORD,
    NODE_WORDS,
    PATH_PROB,
    add_to_tree,
    describe,
    enter,
    free_all,
    least_useful,
    order_of,
)
from retrieval_spec.kernels.records import (
    begin_record,
    clear_records,
    end_record,
    record_candidate,
    record_features,
)

NODE_SOURCES = FIRST_OWN_WORD
PLACES = EVIDENCE_WORDS

LEFT_FOR_SHORTER = 3.0
"""Shorter matches are asked while they have so many times what a node must reach: what they offer late
comes true less often than told, and takes the place of better nodes."""
SEARCHED_SHARE = 0.5
"""Of the path probability that a node must reach in the end: what is below is not looked for. Corrections can
lift it, but where sessions share few nodes acceptance stays within 4 in 1,000, at two thirds of the work."""
OUTCOME_PRIOR = 10.0
"""How many accepted nodes the assumption is worth that a path probability is true."""


def scratch_words(max_nodes: int) -> int:
    """Returns how many words of scratch memory `draft` and `learn` need for so many nodes."""
    return PLACES + (max_nodes + 1) * (PLACE_WORDS + NODE_WORDS + 1)


@inlined_kernel
def _mix_candidates(
    own,
    outputs,
    prompts,
    trie,
    tables,
    block,
    floats,
    bits,
    place,
    depth,
    num_candidates,
    least,
    records,
    known,
):
    """Corrects the candidates that are at least so probable; together they are at most certain.

    All are recorded, from the word `known` on; returns where the record goes on.
    """
    for candidate in range(num_candidates):
        at = CANDIDATES + candidate * CANDIDATE_WORDS
        if floats[at + CANDIDATE_PROB] >= least:
            prefetch_support(own, outputs, prompts, block, place, block[at + CANDIDATE])
    total = 0.0
    for candidate in range(num_candidates):
        at = CANDIDATES + candidate * CANDIDATE_WORDS
        prob = floats[at + CANDIDATE_PROB]
        block[at + CANDIDATE_SOURCES] = 0
        known = record_candidate(records, known, block, candidate, prob if prob >= least else 0.0)
        if prob >= least:
            block[at + CANDIDATE_SOURCES] = describe_candidate(
                own, outputs, prompts, trie, block, bits, place, depth, block[at + CANDIDATE], prob
            )
            known = record_features(records, known, block)
            prob = mixed(tables, block, FEATURES, log_odds(prob))
            floats[at + CANDIDATE_PROB] = prob
        total += prob
    if total > 1.0:
        for candidate in range(num_candidates):
            floats[CANDIDATES + candidate * CANDIDATE_WORDS + CANDIDATE_PROB] /= total
    return known


@inlined_kernel
def _find_candidates(
    own,
    outputs,
    prompts,
    own_rows,
    output_rows,
    prompt_rows,
    trie,
    tables,
    bits,
    block,
    floats,
    records,
    max_nodes,
    size,
    place,
    depth,
    least,
    left,
):
    """Finds, records and corrects what may follow a place of the tree; returns how many candidates.

    Those are looked for that are at least so probable, in contexts for which so much is left.
    """
    for kind in range(NUM_TEXTS):
        prefetch_walk(text_of(kind, own, outputs, prompts), block[place + 2 * kind])
    begin_walk(block, place, trie)
    num, num_contexts = gather(
        own,
        outputs,
        prompts,
        own_rows,
        output_rows,
        prompt_rows,
        trie,
        tables,
        block,
        floats,
        left,
    )
    known = begin_record(records, num, num_contexts)
    known = _mix_candidates(
        own,
        outputs,
        prompts,
        trie,
        tables,
        block,
        floats,
        bits,
        place,
        depth,
        num,
        max(LOWEST_MIXED_PROB, 0.5 * least),
        records,
        known,
    )
    end_record(records, max_nodes, known, size, block, num_contexts)
    return num


@inlined_kernel
def _enter_candidates(
    block, floats, ranking, waiting, capacity, num_candidates, floor, depth, parent, path_prob
):
    """Lets the candidates of a node wait for their place in the tree; returns how many nodes wait then."""
    for candidate in range(num_candidates):
        at = CANDIDATES + candidate * CANDIDATE_WORDS
        own_prob = np.float32(floats[at + CANDIDATE_PROB])
        child_path_prob = np.float32(path_prob * own_prob)
        if child_path_prob < floor or block[at + CANDIDATE_SOURCES] == 0:
            continue
        node = block[ranking + waiting]
        order = order_of(depth, block[at + CANDIDATE])
        describe(block, floats, node, child_path_prob, own_prob, order, parent)
        block[node + NODE_SOURCES] = block[at + CANDIDATE_SOURCES]
        waiting = enter(block, floats, ranking, waiting, capacity)
    return waiting


@inlined_kernel
def _correction(tables, path_prob):
    """Returns by what a path probability is to be multiplied, as outcomes say."""
    at, part = outcome_of(path_prob)
    accepted = OUTCOMES + at
    predicted = accepted + NUM_OUTCOMES
    low = (tables[accepted] + OUTCOME_PRIOR) / (tables[predicted] + OUTCOME_PRIOR)
    high = (tables[accepted + 1] + OUTCOME_PRIOR) / (tables[predicted + 1] + OUTCOME_PRIOR)
    return low + part * (high - low)


@inlined_kernel
def _correct(size, parents, probs, reached):
    """Makes the probabilities of the nodes those that lead to what path probabilities are in truth."""
    for node in range(size):
        before = np.float32(1.0) if parents[node] < 0 else reached[parents[node]]
        probs[node] = reached[node] / before if before > 0.0 else 0.0


@allocation_free_kernel
def draft(
    own_text,
    own_rows,
    anchor,
    output_texts,
    output_rows,
    output_place,
    prompt_texts,
    prompt_rows,
    prompt_place,
    trie,
    tables,
    bits,
    max_depth_nodes,
    block,
    records,
    token_ids,
    parents,
    probs,
    sources,
    path_probs,
    reached,
    lowest,
):
    """Fills a draft tree with the most probable continuations, best first; returns its size.

    Args:
        own_text: int32[words]  the automaton of the session's text (`kernels.automaton`).
        own_rows: int32[1, ROW_WORDS]  its commonest tokens (`kernels.commonest`), changed.
        anchor: int64[ANCHOR_WORDS]  where a copy in it stood that the context left (`kernels.anchor`).
        output_texts: int32[words]  that of what was written before (`kernels.shared_automaton`).
        output_rows: int32[r, ROW_WORDS]  its commonest tokens and continuations, changed.
        output_place: int64[2]  state and match length of the context in it.
        prompt_texts: int32[words]  that of what was asked before.
        prompt_rows: int32[r, ROW_WORDS]  likewise.
        prompt_place: int64[2]  likewise.
        trie: int32[10, n]  what other sources propose (`fusion`).
        tables: float32[NUM_CELLS]  see `kernels.blend_tables`.
        bits: int64[3]  the source bit of each text.
        max_depth_nodes: no path is longer.
        block: int64[scratch_words(max_nodes)]  scratch memory.
        records: int32[record_words(max_nodes)]  written: what `learn` learns from (`kernels.records`).
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
        sources: uint16[max_nodes]  written: bit mask of the sources that know the token here.
        path_probs: float32[max_nodes]  written: path probability before outcomes corrected it, for `learn`.
        reached: float32[max_nodes]  written: path probability as it is true on average; never rises.
        lowest: no node is wanted whose path probability is lower, and what is far below is not looked for;
            below 0: all are.
    """
    own, outputs = own_text.view(np.uint32), output_texts.view(np.uint32)
    prompts = prompt_texts.view(np.uint32)
    max_nodes = token_ids.shape[0]
    floats = block.view(np.float64)
    nodes = PLACES + (max_nodes + 1) * PLACE_WORDS
    ranking = nodes + (max_nodes + 1) * NODE_WORDS
    free_all(block, nodes, ranking, max_nodes + 1)
    begin(own, anchor, output_place, prompt_place, block, PLACES)
    clear_records(records, max_nodes)
    size, waiting = 0, 0
    depth, path_prob, place, corrected = np.int64(0), 1.0, np.int64(PLACES), 1.0
    while size < max_nodes:
        capacity = max_nodes - size
        useful = least_useful(block, floats, ranking, waiting, capacity)
        floor = max(useful, SEARCHED_SHARE * lowest)
        # Where `lowest` alone would end it at once, the longest match is read all the same.
        left = max(LEFT_FOR_SHORTER * useful, min(path_prob, LEFT_FOR_SHORTER * floor))
        if depth < max_depth_nodes:
            num = _find_candidates(
                own,
                outputs,
                prompts,
                own_rows,
                output_rows,
                prompt_rows,
                trie,
                tables,
                bits,
                block,
                floats,
                records,
                max_nodes,
                size,
                place,
                depth,
                floor / path_prob,
                left / path_prob,
            )
            waiting = _enter_candidates(
                block, floats, ranking, waiting, capacity, num, floor, depth + 1, size - 1, path_prob
            )
        if waiting == 0:
            break
        waiting -= 1
        best = block[ranking + waiting]
        path_prob = floats[best + PATH_PROB]
        corrected = min(corrected, path_prob * _correction(tables, path_prob))
        if np.float32(corrected) < lowest:
            break
        depth, path_prob = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        sources[size] = block[best + NODE_SOURCES]
        path_probs[size], reached[size] = path_prob, corrected
        size += 1
        before = np.int64(PLACES + (parents[size - 1] + 1) * PLACE_WORDS)
        place = np.int64(PLACES + size * PLACE_WORDS)
        for word in range(PLACE_WORDS):
            block[place + word] = block[before + word]
        if size < max_nodes:
            follow_all(own, outputs, prompts, trie, block, place, np.int64(token_ids[size - 1]))
    _correct(size, parents, probs, reached)
    return size
