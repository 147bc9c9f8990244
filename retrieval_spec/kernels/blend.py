"""One draft tree from all evidence, most probable paths first; and what its tables learn from outcomes.

The nodes of n most probable paths are the tree that expects most accepted tokens (OPT-Tree, arXiv
2406.17276), if probabilities are true. They are estimated from evidence (`kernels.evidence`) by tables
(`kernels.blend_tables`) that every committed token corrects.
"""

from __future__ import annotations

import numpy as np

from retrieval_spec.kernels.anchor import ANCHOR_WORDS
from retrieval_spec.kernels.blend_tables import (
    BIAS,
    NUM_FEATURES,
    NUM_OUTCOMES,
    OUTCOMES,
    OUTPUTS,
    PROMPTS,
    SEEN,
    WEIGHT,
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
    CELL,
    CONTEXT_WORDS,
    CONTEXTS,
    EVIDENCE_WORDS,
    FEATURES,
    FIRST,
    LOWEST_MIXED_PROB,
    STOP,
    begin_walk,
    gather,
)
from retrieval_spec.kernels.features import describe_candidate, mixed
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel
from retrieval_spec.kernels.places import ANCHOR, PLACE_WORDS, begin, follow_all
from retrieval_spec.kernels.ranking import (
    FIRST_OWN_WORD,
    NODE_WORDS,
    add_to_tree,
    describe,
    enter,
    free_all,
    least_useful,
    order_of,
)

NODE_SOURCES = FIRST_OWN_WORD
PLACES = EVIDENCE_WORDS

MAX_LEARNED_TOKENS = 64
"""Tokens of one commit that the tables learn from."""
TABLE_RATE = 0.05
WEIGHT_RATE = 0.001
LOWEST_LEARNED_PROB = 1e-5
PRIOR_COUNT = 20.0
"""How many outcomes the shipped value of an escape cell is worth."""
MOST_SEEN = 2_000.0
"""A cell goes on following what changes as fast as after so many outcomes."""
LEFT_FOR_SHORTER = 3.0
"""Shorter matches are asked while they have so many times what a node must reach: what they offer late
comes true less often than told, and takes the place of better nodes."""
OUTCOME_PRIOR = 10.0
"""How many accepted nodes the assumption is worth that a path probability is true."""
OUTCOME_DECAY = 0.998


def scratch_words(max_nodes: int) -> int:
    """Returns how many words of scratch memory `draft` and `learn` need for so many nodes."""
    return PLACES + (max_nodes + 1) * (PLACE_WORDS + NODE_WORDS + 1)


@inlined_kernel
def _mix_candidates(
    own, outputs, prompts, trie, tables, block, floats, bits, place, depth, num_candidates, least
):
    """Corrects the candidates that are at least so probable; together they are at most certain."""
    total = 0.0
    for candidate in range(num_candidates):
        at = CANDIDATES + candidate * CANDIDATE_WORDS
        prob = floats[at + CANDIDATE_PROB]
        block[at + CANDIDATE_SOURCES] = 0
        if prob >= least:
            block[at + CANDIDATE_SOURCES] = describe_candidate(
                own, outputs, prompts, trie, block, bits, place, depth, block[at + CANDIDATE], prob
            )
            prob = mixed(tables, block, log_odds(prob))
            floats[at + CANDIDATE_PROB] = prob
        total += prob
    if total > 1.0:
        for candidate in range(num_candidates):
            floats[CANDIDATES + candidate * CANDIDATE_WORDS + CANDIDATE_PROB] /= total


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
def _correct(tables, size, parents, probs, path_probs, block):
    """Makes the probabilities of the tree true on average, without changing the order of the nodes."""
    floats = block.view(np.float64)
    last = 1.0
    for node in range(size):
        last = min(last, path_probs[node] * _correction(tables, path_probs[node]))
        floats[PLACES + node] = last
        before = 1.0 if parents[node] < 0 else floats[PLACES + parents[node]]
        probs[node] = last / before if before > 0.0 else 0.0


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
    token_ids,
    parents,
    probs,
    sources,
    path_probs,
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
        token_ids: int32[max_nodes]  written.
        parents: int32[max_nodes]  written: index of an earlier node, or -1.
        probs: float32[max_nodes]  written: P(node accepted | parent accepted).
        sources: uint16[max_nodes]  written: bit mask of the sources that know the token here.
        path_probs: float32[max_nodes]  written: path probability before outcomes corrected it, for `learn`.
    """
    own, outputs = own_text.view(np.uint32), output_texts.view(np.uint32)
    prompts = prompt_texts.view(np.uint32)
    max_nodes = token_ids.shape[0]
    floats = block.view(np.float64)
    nodes = PLACES + (max_nodes + 1) * PLACE_WORDS
    ranking = nodes + (max_nodes + 1) * NODE_WORDS
    free_all(block, nodes, ranking, max_nodes + 1)
    begin(own, anchor, output_place, prompt_place, block, PLACES)
    size, waiting = 0, 0
    depth, path_prob, place = np.int64(0), 1.0, np.int64(PLACES)
    while size < max_nodes:
        capacity = max_nodes - size
        floor = least_useful(block, floats, ranking, waiting, capacity)
        if depth < max_depth_nodes:
            begin_walk(block, place, trie)
            least = floor / path_prob
            num, _ = gather(
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
                LEFT_FOR_SHORTER * least,
            )
            least = max(LOWEST_MIXED_PROB, 0.5 * least)
            _mix_candidates(
                own, outputs, prompts, trie, tables, block, floats, bits, place, depth, num, least
            )
            waiting = _enter_candidates(
                block, floats, ranking, waiting, capacity, num, floor, depth + 1, size - 1, path_prob
            )
        if waiting == 0:
            break
        waiting -= 1
        best = block[ranking + waiting]
        depth, path_prob = add_to_tree(block, floats, best, size, token_ids, parents, probs)
        sources[size] = block[best + NODE_SOURCES]
        path_probs[size] = path_prob
        size += 1
        before = np.int64(PLACES + (parents[size - 1] + 1) * PLACE_WORDS)
        place = np.int64(PLACES + size * PLACE_WORDS)
        for word in range(PLACE_WORDS):
            block[place + word] = block[before + word]
        if size < max_nodes:
            follow_all(own, outputs, prompts, trie, block, place, np.int64(token_ids[size - 1]))
    _correct(tables, size, parents, probs, path_probs, block)
    return size


@inlined_kernel
def _learn_contexts(tables, block, num_contexts, token):
    """Corrects the escape cells of all contexts up to the one that knew the token."""
    for context in range(CONTEXTS, CONTEXTS + num_contexts * CONTEXT_WORDS, CONTEXT_WORDS):
        is_found = False
        for candidate in range(block[context + FIRST], block[context + STOP]):
            if block[CANDIDATES + candidate * CANDIDATE_WORDS + CANDIDATE] == token:
                is_found = True
        cell = block[context + CELL]
        seen = tables[SEEN + cell]
        tables[cell] += ((1.0 if is_found else 0.0) - tables[cell]) / (seen + PRIOR_COUNT + 1.0)
        tables[SEEN + cell] = min(seen + 1.0, MOST_SEEN)
        if is_found:
            break


@inlined_kernel
def _learn_candidates(own, outputs, prompts, trie, tables, block, floats, bits, depth, num_candidates, token):
    """Corrects the mixing tables by how far each candidate's probability was off."""
    for candidate in range(num_candidates):
        at = CANDIDATES + candidate * CANDIDATE_WORDS
        prob = floats[at + CANDIDATE_PROB]
        if prob < LOWEST_MIXED_PROB:
            continue
        describe_candidate(
            own, outputs, prompts, trie, block, bits, PLACES, depth, block[at + CANDIDATE], prob
        )
        evidence = log_odds(prob)
        error = (1.0 if block[at + CANDIDATE] == token else 0.0) - mixed(tables, block, evidence)
        for feature in range(FEATURES, FEATURES + NUM_FEATURES):
            tables[block[feature]] += TABLE_RATE * error
        tables[BIAS] += WEIGHT_RATE * error
        tables[WEIGHT] += WEIGHT_RATE * error * evidence


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


@allocation_free_kernel
def learn(
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
    tokens,
    token_ids,
    parents,
    path_probs,
    num_verified,
    block,
):
    """Corrects the tables by what followed the context in fact, before the texts grow.

    Args:
        own_text: int32[words]  as for `draft`.
        own_rows: int32[1, ROW_WORDS]  likewise.
        anchor: int64[ANCHOR_WORDS]  likewise, moved on by the tokens.
        output_texts: int32[words]  likewise.
        output_rows: int32[r, ROW_WORDS]  likewise.
        output_place: int64[2]  likewise, moved on.
        prompt_texts: int32[words]  as for `draft`.
        prompt_rows: int32[r, ROW_WORDS]  likewise.
        prompt_place: int64[2]  likewise, moved on.
        trie: int32[10, n]  what other sources proposed there.
        tables: float32[NUM_CELLS]  changed.
        bits: int64[3]  as for `draft`.
        tokens: int32[n]  committed tokens: the accepted ones and the bonus token; the first
            `MAX_LEARNED_TOKENS` of them are followed and learned from.
        token_ids: int32[m]  the tree that was drafted.
        parents: int32[m]  likewise.
        path_probs: float32[m]  as `draft` wrote them.
        num_verified: so many nodes, the first ones, went to the target.
        block: int64[scratch_words(0)]  scratch memory.
    """
    own, outputs = own_text.view(np.uint32), output_texts.view(np.uint32)
    prompts = prompt_texts.view(np.uint32)
    floats = block.view(np.float64)
    begin(own, anchor, output_place, prompt_place, block, PLACES)
    for depth in range(min(tokens.shape[0], MAX_LEARNED_TOKENS)):
        token = np.int64(tokens[depth])
        begin_walk(block, np.int64(PLACES), trie)
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
            LOWEST_LEARNED_PROB,
        )
        _learn_candidates(
            own, outputs, prompts, trie, tables, block, floats, bits, np.int64(depth), num, token
        )
        _learn_contexts(tables, block, num_contexts, token)
        follow_all(own, outputs, prompts, trie, block, np.int64(PLACES), token)
    for word in range(ANCHOR_WORDS):
        anchor[word] = block[PLACES + ANCHOR + word]
    for word in range(2):
        output_place[word] = block[PLACES + 2 * OUTPUTS + word]
        prompt_place[word] = block[PLACES + 2 * PROMPTS + word]
    _judge(token_ids, parents, path_probs, num_verified, tokens, tables)
