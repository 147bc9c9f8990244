"""The published systems that learn from what the target said at verified nodes."""

from __future__ import annotations

from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.recycling import RankTree


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
