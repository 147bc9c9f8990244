"""The published systems that keep pools of phrases."""

from __future__ import annotations

from retrieval_spec.drafters.combination import FillInOrder
from retrieval_spec.drafters.corpus_rows import Rows
from retrieval_spec.drafters.phrases import Pooling, Suffixes
from retrieval_spec.drafters.preset import Preset, Source


def lookahead_pool() -> Preset:
    """Lookahead decoding (arXiv 2402.02057; github.com/hao-ai-lab/LookaheadDecoding): its pool and guesses.

    Reproduced, with LEVEL 5, WINDOW 7 and GUESS 7: the pool keeps the 7 newest phrases of 4 tokens behind a
    token, one that comes again counts as new, and all of the last token's are guesses. Neither prompt nor
    output fills it (POOL_FROM_PROMPT 0), and it ends with its session.

    Different on purpose: the Jacobi window of 7 runs where the target runs, and its 5-grams come as
    `Feedback.phrases`. Guesses share their beginnings in a tree; published ones are verified apart. The trie
    of alipay's Lookahead (arXiv 2312.12728) has the name alone in common; SGLang's trie comes from it.
    """
    rule = Pooling(
        key_tokens=1,
        phrase_tokens=4,
        min_phrase_tokens=4,
        max_phrases=7,
        from_text=False,
        from_rejected=False,
        scope="session",
    )
    return Preset((Source("phrases", {"rule": rule}),), max_nodes=28)


def ouroboros_pool() -> Preset:
    """Ouroboros (arXiv 2402.13720; github.com/thunlp/Ouroboros): phrases from drafts that were rejected.

    Reproduced, with level 7, window and guess 20, gamma 12 and 3 suffixes: the pool keeps the 20 newest
    phrases of 6 tokens behind a token and outlives its session; the last token of a chain of 12 is
    continued by its 3 newest phrases; what the target says along rejected tokens becomes a phrase if it
    is 6 tokens long; the target's tokens along a verified guess overwrite it.

    Different on purpose: no draft model. Newest phrases, joined until there are 12 tokens, stand in for
    its chain, and the draft model's window of 20 for whatever comes as `Feedback.phrases`. Guesses are
    nodes of a tree like the chain, so that runs are read off them too. The published overwriting replaces
    the last entries of a list that runs may have changed meanwhile, and can fill it with equal ones; here
    a guess itself is replaced, and no phrase stands twice.
    """
    rule = Pooling(
        key_tokens=1,
        phrase_tokens=6,
        min_phrase_tokens=6,
        max_phrases=20,
        from_text=False,
        suffixes=Suffixes(chain_tokens=12, num_phrases=3),
    )
    return Preset((Source("phrases", {"rule": rule}),), max_nodes=30)


def hierarchy() -> Preset:
    """Hierarchy Drafting "WSL" (arXiv 2502.05609; github.com/zomss/Hierarchy_Drafting): three databases.

    Reproduced: 7 parallel branches of 4 tokens, from the context's pool of 7 newest phrases a token (prompt,
    output and Jacobi window), then from the commonest 5-grams of earlier outputs, then from a corpus, asked
    with the last 2 tokens and then with the last one. A row that equals a kept one adds nothing.

    Different on purpose: the model's database is learned from the namespace's own finished sessions,
    where the published one counts greedy outputs to OASST1 once. Of the corpus, the most frequent rows
    among 256 occurrences are taken, and rows cut short are left out, where they are filled up with random
    ids. Not reproduced: a `break` left in the script that counts model outputs, which also drops the last
    n-gram; and a loop that appends the last accepted token once for every one.
    """
    pool = Pooling(
        key_tokens=1,
        phrase_tokens=4,
        min_phrase_tokens=4,
        max_phrases=7,
        from_rejected=False,
        scope="session",
    )
    sources = (Source("phrases", {"rule": pool}), Source("frequent"), Source("corpus", {"rule": Rows()}))
    return Preset(sources, FillInOrder(max_rows=7, row_tokens=4), max_nodes=28)
