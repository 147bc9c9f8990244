"""What corpora propose to a session, as a trie."""

from __future__ import annotations

import numpy as np

from retrieval_spec.fusion import TRIE_ROWS
from retrieval_spec.kernels import context_draft
from retrieval_spec.kernels.card_arrays import context_of, newest_tokens
from retrieval_spec.kernels.cards import (
    BUCKETS,
    CONTEXT_LENGTH,
    CORPUS_BIT,
    IS_WIDE,
    NUM_BUCKETS,
    NUM_POSITIONS,
    NUM_TOKENS,
    POSITIONS,
    SORTED_TOKENS,
    TOKENS,
    array_at,
)
from retrieval_spec.kernels.fusion import insert
from retrieval_spec.kernels.jit import allocation_free_kernel, inlined_kernel

SEARCH_WORDS = context_draft.SCRATCH_WORDS


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
def ask_corpora(corpora, card, max_depth_nodes, reliability, block, trie, token_ids, parents, probs, sources):
    """Lets all corpora propose to a session.

    Args:
        corpora: int64[.., CORPUS_WORDS]  a row each (`kernels.cards`).
        card: int64[CARD_WORDS]  of the session (`kernels.cards`).
        max_depth_nodes: no path is longer.
        reliability: float32[..]  see `context_draft.draft`.
        block: int64[SEARCH_WORDS]  scratch memory.
        trie: int32[TRIE_ROWS, ..]  written; a column for the root and for each node of all corpora.
        token_ids: int32[n]  scratch memory: n nodes are wanted of each corpus.
        parents: int32[n]  likewise.
        probs: float32[n]  likewise.
        sources: uint16[n]  likewise.
    """
    size = np.int64(1)
    for row in range(TRIE_ROWS):
        trie[row, 0] = 0
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
