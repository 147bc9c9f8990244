"""The published systems that have a draft model."""

from __future__ import annotations

from retrieval_spec.drafters.combination import PruneByModel
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.fusion import Pruning
from retrieval_spec.model_tree import DraftModel


def opt_tree(model: DraftModel | None = None, tokenizer_fingerprint: str = "") -> Preset:
    """OPT-Tree (Wang et al., 2024, arXiv 2406.17276; github.com/Jikai0Wang/OPT-Tree): a model's best tree.

    Reproduced: the tree of 60 nodes with the largest sum of path probabilities, grown layer by layer until
    a layer raises the sum by 0.5 or less, or to a depth of 10.

    Different on purpose: of a layer, only nodes that are among the best 60 of all layers so far are
    continued, not the best 60 of the layer; the others could add nothing to the tree. Ties go to the lower
    depth, then to the smaller token id.

    Args:
        model: the draft model. By its name alone the preset opens no engine: pass `opt_tree(model)`.
        tokenizer_fingerprint: the target model's, if known: a model with another tokenizer is refused.
    """
    return Preset((_by_ids(model, tokenizer_fingerprint),), max_nodes=60)


def rasd(
    model: DraftModel | None = None, pruning: Pruning | None = None, tokenizer_fingerprint: str = ""
) -> Preset:
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
        tokenizer_fingerprint: the target model's, if known: a model with another tokenizer is refused.
    """
    sources = (Source("session"), Source("corpus"), _by_ids(model, tokenizer_fingerprint))
    return Preset(sources, PruneByModel(pruning or Pruning()))


def _by_ids(model: DraftModel | None, tokenizer_fingerprint: str) -> Source:
    return Source("model", {"model": model, "tokenizer_fingerprint": tokenizer_fingerprint})
