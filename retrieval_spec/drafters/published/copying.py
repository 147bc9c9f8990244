"""The published systems that copy from the own context, or the longest match in a corpus; see `presets`."""

from __future__ import annotations

from functools import partial

from retrieval_spec.drafters.combination import longer_match, longer_match_or_last
from retrieval_spec.drafters.copying import Copy
from retrieval_spec.drafters.corpus_sam import SamChain, SamTree
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.recycling import RankTree


def pld() -> Preset:
    """Prompt lookup decoding (Saxena, 2023; github.com/apoorvumang/prompt-lookup-decoding): chains of 10.

    Reproduced: the last 3 tokens of the context are looked for in it, then 2, then 1; the leftmost
    occurrence with 10 tokens after it is the draft, and where there is none nothing is drafted.

    Different on purpose: the chain carries probabilities, by the length of its match; the published ones
    have none. Long contexts are not scanned at every step but kept in an automaton.
    """
    return Preset((Source("session", {"rule": Copy(max_match_tokens=3, if_short="require")}),), max_nodes=10)


def sam() -> Preset:
    """SAM-Decoding without a tree model (Hu et al., 2024, arXiv 2411.10666; github.com/hyx1999/SAM-Decoding).

    Reproduced, with the defaults of its code: the own context drafts int(4 L) tokens, 59 at most, from the
    first occurrence of the longest match, L tokens long; a corpus drafts int(4 (L - 5)) nodes, 59 at most,
    best first by the products of count shares, with 8 children a node and 8 nodes a depth at most. One of
    the two drafts: the corpus where L - 5 of its match is more than L of the own one. (The published
    script passes 0 in place of 5.)

    Different on purpose: nothing is padded up to the budget; the newest token may itself be copied;
    a draft ends with the document it comes from; a corpus match is as long as the datastore is deep at most;
    of more than 4096 occurrences an evenly strided sample is counted. Not added: one document for every
    token of the vocabulary. The published bonus token, sampled without temperature after a full
    acceptance, is the verifier's matter and not reproduced.
    """
    own = Copy(chain_tokens=59, chain_tokens_per_match_token=4.0)
    sources = (Source("session", {"rule": own}), Source("corpus", {"rule": SamTree()}))
    return Preset(sources, partial(longer_match, corpus_bias_tokens=5), max_nodes=59)


def sam_recycling() -> Preset:
    """SAM-Decoding with Token Recycling as its tree model: SAM[TR], for a verifier that reports its top 8.

    Reproduced: where the longest match of the own context, or that of a corpus less 5 tokens, has 5 tokens,
    the longer one drafts a chain of 39 tokens from its first occurrence, the own one where they are equal;
    elsewhere a tree of 60 nodes drafts from one row of 8 ids a token. The own chain climbs to shorter
    matches until 39 tokens follow.

    Different on purpose: as in `sam`; rows are learned from verified nodes alone, not from the logits
    of the prompt; of very many occurrences in a corpus the first one of a sample. Of the tree
    only the sizes of its levels are described, 7, 20, 21, 8 and 4: here it is what these leave of Token
    Recycling's own tree, the best ranks first.
    """
    own, tree = Copy(chain_tokens=39, if_short="climb"), RankTree(_SAM_RECYCLING_TREE)
    sources = (
        Source("session", {"rule": own}),
        Source("corpus", {"rule": SamChain()}),
        Source("recycling", {"rule": tree}),
    )
    combine = partial(longer_match_or_last, corpus_bias_tokens=5, min_match_tokens=5)
    return Preset(sources, combine, max_nodes=60)


_SAM_RECYCLING_TREE = (
    *(("", 7), ("0", 8), ("1", 4), ("2", 3), ("3", 2), ("4", 1), ("5", 1), ("6", 1)),
    *(("00", 6), ("01", 3), ("02", 2), ("03", 1), ("04", 1), ("05", 1)),
    *(("10", 2), ("11", 1), ("20", 1), ("30", 1), ("40", 1), ("50", 1)),
    *(("000", 3), ("001", 2), ("002", 1), ("010", 1), ("100", 1)),
    *(("0000", 2), ("0001", 1), ("0010", 1)),
)
