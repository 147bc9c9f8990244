"""The published systems that draft from what all requests write, while they write it; see `presets`."""

from __future__ import annotations

from retrieval_spec.drafters.combination import best_score
from retrieval_spec.drafters.ngram_trie import SuffixTrie
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.suffix import Suffix


def suffix() -> Preset:
    """SuffixDecoding (Oliaro et al., 2024, arXiv 2411.04975; snowflakedb/ArcticInference): its tree mode.

    Reproduced: one tree of the request's own prompt and output, one of all outputs as they are written,
    both of suffixes of 64 tokens; every match shorter than the context is tried and may draft a token for
    each token of it; path probabilities are products of count shares and at least 0.1; the best sum of
    them wins, the longer match and the own context among equals. 100,000 outputs are kept, first in first
    out; in the own context the current occurrence itself is counted.

    Different on purpose: outputs are kept for each namespace, not for all users together, and in bounded
    memory; equally frequent continuations rank by token id. Counts come from a suffix automaton, not from a
    tree of suffixes, and are the same.
    """
    return _suffix(Suffix(), max_outputs=100_000)


def suffix_vllm() -> Preset:
    """SuffixDecoding as vLLM's method `suffix` configures it: paths, depth 24, 10,000 outputs.

    Otherwise like `suffix`.
    """
    return _suffix(Suffix(max_length_tokens=24, shape="path"), max_outputs=10_000)


def _suffix(rule: Suffix, max_outputs: int) -> Preset:
    outputs = {"rule": rule, "max_outputs": max_outputs}
    return Preset(
        (Source("suffix_context", {"rule": rule}), Source("suffix_outputs", outputs)),
        combine=best_score,
        max_nodes=rule.max_length_tokens,
    )


def sglang_ngram() -> Preset:
    """SGLang's NGRAM speculation (github.com/sgl-project/sglang, `--speculative-algorithm NGRAM`).

    Reproduced: a trie of every n-gram of up to 18 tokens that ends in an output, also if it begins in the
    prompt, at most 10,000,000 nodes, of which the leaf used longest ago makes room; all suffixes of the
    context that it knows are expanded into one tree, the longest first and shorter ones as far as 12
    drafted tokens allow; level by level, the newest children first, from 10 of them below the shortest
    suffix to 1 below the longest and one less every other level. `SuffixTrie(order="frequency")` is its
    mode PROB.

    Different on purpose: one trie a namespace, not one for all users. An n-gram is counted once when its
    last token is decided, where the published worker inserts a request's last tokens again at every step.
    No thread inserts later: what is committed is known at once. Trees are not padded with token 0.
    """
    source = Source("ngram_trie", {"rule": SuffixTrie(), "max_trie_nodes": 10_000_000})
    return Preset((source,), max_nodes=12)
