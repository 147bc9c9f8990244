"""The published systems as configurations, and ours: which sources an engine opens, and how it combines them.

Each is a function that returns a `Preset` with the published defaults. Its docstring names the source,
what is reproduced, and what differs on purpose.
"""

from __future__ import annotations

from collections.abc import Callable

from retrieval_spec.drafters.combination import (
    FillInOrder,
    PruneByModel,
    trust_last,
)
from retrieval_spec.drafters.copying_presets import pld, sam, sam_recycling
from retrieval_spec.drafters.corpus_rest import Rest
from retrieval_spec.drafters.corpus_rows import Rows
from retrieval_spec.drafters.dense import SHARE, Neighbours
from retrieval_spec.drafters.ngram import Chain
from retrieval_spec.drafters.output_presets import sglang_ngram, suffix, suffix_vllm
from retrieval_spec.drafters.phrases import Pooling, Suffixes
from retrieval_spec.drafters.preset import MAX_NODES as MAX_NODES
from retrieval_spec.drafters.preset import Preset as Preset
from retrieval_spec.drafters.preset import Source as Source
from retrieval_spec.drafters.recycling import RankTree
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.fusion import Pruning
from retrieval_spec.model_tree import DraftModel


def default() -> Preset:
    """All that needs no model and no training: own context, earlier outputs and the datastores, fused."""
    return Preset((Source("session"), Source("history"), Source("corpus")))


def session() -> Preset:
    """The own context alone."""
    return Preset((Source("session"),))


def corpus() -> Preset:
    """The datastores alone."""
    return Preset((Source("corpus"),))


def rest() -> Preset:
    """REST (He et al., 2023, arXiv 2311.08252; github.com/FasterDecoding/REST): a corpus by exact match.

    Reproduced: the context's last 16 tokens are looked for, then 15, down to 2, and the first span that
    occurs decides; of at most 5,000 occurrences the next 10 tokens are read, every prefix of them is
    counted, and the 64 most frequent prefixes are the draft.

    Different on purpose: of more than 5,000 occurrences REST reads the first ones in the order of their
    continuations, so that it drafts what begins with small token ids; here they are an evenly strided
    sample. REST cuts a set of 64 prefixes that lacks some of their parents down by a heuristic, with ties
    in the order of a hash map; here the best 64 by count, depth and token ids are complete, and the same
    every time. Continuations end with their document instead of running into the next one, and a span
    found at such ends alone is not found. Without a span there is no draft, not the token 100 as a dummy.
    Several datastores are asked one by one and fused, where REST adds the counts of its chunks up.
    """
    return Preset((Source("corpus", {"rule": Rest()}),), max_nodes=64)


def dresd() -> Preset:
    """DReSD (Gritta et al., 2025; github.com/huawei-noah/HEBO, branch DReSD): a corpus by hidden states.

    Reproduced: the query is the target's last hidden state, z-scored, projected on 64 components and
    normalised; of its 50 nearest neighbours by cosine, the first 10 whose next token is the token just
    decided give the 10 tokens after it.

    Different on purpose: the 10 rows, of which many begin alike, are one tree instead of a batch with
    the cache repeated, so no token is verified twice; a node's probability is its share of its parent's
    rows, where the published system has none. Neighbours come from FAISS instead of ScaNN, stored as one
    byte a dimension. Rows end with their document, where the published ones are filled with end tokens.
    Its sampling is not reproduced: it verifies each row against the probabilities of its own tokens,
    which changes the distribution.
    """
    rule = Neighbours(
        num_neighbours=50, max_rows=10, continuation_tokens=10, temperature=float("inf"), worth=SHARE
    )
    return Preset((Source("dense", {"rule": rule}),), max_nodes=100)


def anpd() -> Preset:
    """ANPD (Ou et al., 2024, arXiv 2404.08698; github.com/oujieww/ANPD): adaptive n-grams, one chain.

    Reproduced: n-grams of 2 to 5 tokens are counted in prompts and outputs while they come; each drafted
    token is the most frequent successor of the longest n-gram prefix that is known, drafted tokens
    included; 6 tokens are drafted. The published code is incomplete and names neither number.

    Different on purpose: counts are kept for each namespace, not for all users together, and bounded;
    equally frequent successors rank by token id.
    """
    return Preset((Source("ngram", {"max_order": 5, "chain": Chain(max_nodes=6)}),), max_nodes=6)


def token_recycling() -> Preset:
    """Token Recycling (Luo et al., 2024, arXiv 2408.08696; github.com/Luowaterbi/TokenRecycling).

    Reproduced: one row of 8 ids a token, overwritten by the target's top 8 at every verified node,
    rejected ones too; the fixed tree "2.2.2" of 80 nodes filled with them from the last token down;
    rows that outlive a session; nothing learned from prompts or committed text.

    Different on purpose: a row that is not known yet gives no drafts, where the published code drafts
    token 0; two nodes with one token in a step leave the later one's row, where the published code
    leaves either; rows are shared within a namespace, not by all. Nodes come by the sum of their ranks
    and steps, so that a budget below 80 keeps the likeliest ones.
    """
    return Preset((Source("recycling", {"rule": RankTree()}),), max_nodes=80)


def session_recycling() -> Preset:
    """The own context and what the target found likely before: for a verifier that reports its top-k."""
    return Preset((Source("session"), Source("recycling")), trust_last)


def aded() -> Preset:
    """ADED (Liu et al., 2024, arXiv 2407.12021; github.com/liuxukun2000/Adaptix): trigrams that adapt.

    Reproduced: a store of P(c | a, b), of which the 12 most frequent successors count; for every search
    each trigram within the last 16 tokens gains 0.04, up to 3.0; drafts are 4 tokens deep, each path then
    one longer by its best successor, at most 24 paths and 64 nodes.

    Different on purpose: of paths ranked by the product of their shares, the best are taken exactly, where
    the published code estimates them by 150 rounds of Monte Carlo tree search. What is added is kept for
    each namespace, beside the store, which never changes. It is added when tokens are committed, once for
    each of them as if each had been searched for, so that drafts change nothing and all depends on the text
    alone; of a prompt, the last 16 tokens count once. Values are kept in ten-thousandths, and a share is a
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
    with 2 times and 50 %. The chain ends where nothing passes, or after 16 tokens.

    Different on purpose: earlier outputs are those of the namespace, not of all users, and without their
    prompts, and bounded. Equally good successors rank by token id, not by a hash map's order. Of very many
    successors only the 6 most frequent and those among the corpus's 16 most frequent are compared. Without
    a datastore the corpus is empty; several datastores are asked one by one and fused.

    Not reproduced: the server keeps a slot's counts for the next request, whose acceptance suffers; here
    they end with the session.
    """
    return Preset((Source("ngram_cache", {"max_nodes": 16}),), max_nodes=16)


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


def opt_tree(model: DraftModel | None = None) -> Preset:
    """OPT-Tree (Wang et al., 2024, arXiv 2406.17276; github.com/Jikai0Wang/OPT-Tree): a model's best tree.

    Reproduced: the tree of 60 nodes with the largest sum of path probabilities, grown layer by layer until
    a layer raises the sum by 0.5 or less, or to a depth of 10.

    Different on purpose: of a layer, only nodes that are among the best 60 of all layers so far are
    continued, not the best 60 of the layer; the others could add nothing to the tree. Ties go to the lower
    depth, then to the smaller token id.

    Args:
        model: the draft model. By its name alone the preset opens no engine: pass `opt_tree(model)`.
    """
    return Preset((Source("model", {"model": model}),), max_nodes=60)


def rasd(model: DraftModel | None = None, pruning: Pruning | None = None) -> Preset:
    """RASD (ACL Findings 2025, arXiv 2503.03434): retrieval pruned by a draft model and fused with its tree.

    Reproduced: what the own context and the datastores hold is drafted, paths whose first token is not
    among the 10 most probable ones of the draft model are dropped, and the rest is fused with the model's
    tree along the longest common prefixes. The paper's thresholds could not be checked: both are parameters.

    Different on purpose: the retrieval is this package's, with calibrated probabilities, and the most
    probable nodes of the fused tree stay within the budget. The model's tree is OPT-Tree's. With a
    service in another process, `verifier.FusedSource` does the same where the model runs.

    Args:
        model: the draft model. By its name alone the preset opens no engine: pass `rasd(model)`.
        pruning: which retrieved paths pass.
    """
    sources = (Source("session"), Source("corpus"), Source("model", {"model": model}))
    return Preset(sources, PruneByModel(pruning or Pruning()))


PRESETS: dict[str, Callable[[], Preset]] = {
    "default": default,
    "session": session,
    "corpus": corpus,
    "rest": rest,
    "dresd": dresd,
    "pld": pld,
    "sam": sam,
    "sam-recycling": sam_recycling,
    "anpd": anpd,
    "token-recycling": token_recycling,
    "session+recycling": session_recycling,
    "aded": aded,
    "llamacpp-cache": llamacpp_cache,
    "lookahead-pool": lookahead_pool,
    "ouroboros-pool": ouroboros_pool,
    "hierarchy": hierarchy,
    "opt-tree": opt_tree,
    "rasd": rasd,
    "suffix": suffix,
    "suffix-vllm": suffix_vllm,
    "sglang-ngram": sglang_ngram,
}


def preset(name: str) -> Preset:
    """Returns a preset by its name.

    Raises:
        InvalidRequest: no preset has that name.
    """
    if name not in PRESETS:
        raise InvalidRequest("unknown preset", got=name, expected=" or ".join(sorted(PRESETS)))
    return PRESETS[name]()
