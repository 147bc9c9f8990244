"""The published systems that draft from counted n-grams."""

from __future__ import annotations

from retrieval_spec.drafters.ngram import Chain
from retrieval_spec.drafters.preset import Preset, Source


def anpd() -> Preset:
    """ANPD (Ou et al., 2024, arXiv 2404.08698; github.com/oujieww/ANPD): adaptive n-grams, one chain.

    Reproduced: n-grams of 2 to 5 tokens are counted in prompts and outputs while they come; each drafted
    token is the most frequent successor of the longest n-gram prefix that is known, drafted tokens
    included; 6 tokens are drafted. The published code is incomplete and names neither number.

    Different on purpose: counts are kept for each namespace, not for all users together, and bounded;
    equally frequent successors rank by token id.
    """
    return Preset((Source("ngram", {"max_order": 5, "chain": Chain(max_nodes=6)}),), max_nodes=6)


def aded() -> Preset:
    """ADED (Liu et al., 2024, arXiv 2407.12021; github.com/liuxukun2000/Adaptix): trigrams that adapt.

    Reproduced: a store of P(c | a, b), of which the 12 most frequent successors count; for every search
    each trigram within the last 16 tokens gains 0.04, up to 3.0; drafts are 4 tokens deep, each path then
    one longer by its best successor, at most 24 paths and 64 nodes.

    Different on purpose: of paths ranked by the product of their shares, the best are taken exactly, where
    the published code estimates them by 150 rounds of Monte Carlo tree search. What is added is kept for
    each namespace, beside the store, which never changes. It is added when tokens are committed, once for
    each of them as if each had been searched for, so that drafts change nothing and all depends on the text
    alone; of a prompt, the last 16 tokens count once. Where a host truncates a session, what was added stays,
    and the text that is kept is added for once more. Values are kept in ten-thousandths, and a share is a
    value over the sum of the 12 best after the same two tokens. Without a datastore the store begins empty;
    several datastores are asked one by one and fused.
    """
    return Preset((Source("trigram"),), max_nodes=64)


def llamacpp_cache() -> Preset:
    """llama.cpp's n-gram cache (github.com/ggml-org/llama.cpp, `lookup` and `--spec-type ngram-cache`).

    Reproduced: counts after 1 to 4 tokens in the session's own text and in earlier outputs, and after 2 in
    a corpus. At each token the longest known context of the own text is asked first: the successor of the
    largest count, times 100 of its count in the corpus where it has one, is drafted if the context
    occurred 2, 2, 1, 1 times and the successor makes up 66, 50, 50, 50 % of that; else the next shorter one
    is asked. Then the earlier outputs, with 4, 3, 2, 2 times and 75, 66, 66, 66 %, then the corpus alone,
    with 2 times and 50 %. The chain ends where nothing passes.

    Different on purpose: a chain has 16 tokens at most, which is our choice. Earlier outputs are those of
    the namespace, not of all users, and without their prompts, and bounded. Equally good successors rank by
    token id, not by a hash map's order. Of very many successors only the 6 most frequent and those among
    the corpus's 16 most frequent are compared. Without a datastore the corpus is empty; several datastores
    are asked one by one and fused.

    Not reproduced: the server keeps a slot's counts for the next request, whose acceptance suffers; here
    they end with the session.
    """
    return Preset((Source("ngram_cache", {"max_nodes": 16}),), max_nodes=16)
