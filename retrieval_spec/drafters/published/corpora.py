"""The published systems that draft from a corpus alone."""

from __future__ import annotations

from retrieval_spec.drafters.corpus_rest import Rest
from retrieval_spec.drafters.dense import SHARE, Neighbours
from retrieval_spec.drafters.preset import Preset, Source


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
