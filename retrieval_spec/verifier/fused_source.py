"""Retrieval and a draft model as one source of drafts, fused where the target model runs (RASD).

Knows the contracts of sources and draft models alone: no torch, no engine.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.budget import CostCurve, cut, share_nodes
from retrieval_spec.errors import InvalidInput, InvalidRequest, RetrievalSpecError, ServiceUnavailable
from retrieval_spec.fusion import Pruning, fuse, prune
from retrieval_spec.model_tree import (
    DraftModel,
    Growth,
    ModelTree,
    Predictions,
    Proposals,
    check_same_ids,
    draw,
    fingerprint_of,
    grow,
)
from retrieval_spec.tree import TOKEN, DraftTree
from retrieval_spec.verifier.drafts import GuardedSession, OneWarning, draft_together

if TYPE_CHECKING:
    from retrieval_spec.client import DraftSource
    from retrieval_spec.feedback import Feedback
    from retrieval_spec.projection import Projection

logger = logging.getLogger(__name__)

MODEL_NAME = "model"
MAX_SOURCES = 16
"""One bit each in `DraftTree.sources`."""

_WORD = (1 << 64) - 1
TokenIds = Sequence[int] | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Draws:
    """How children are drawn from a draft model, for a target that is sampled from too.

    Attributes:
        branching: children of a node at each depth, drawn without replacement.
        seed: decides the draws, together with the length of the context.
    """

    branching: tuple[int, ...] = (3, 2, 1, 1)
    seed: int = 0


class FusedSource:
    """Several sources and a draft model behind the interface of one (RASD, arXiv 2503.03434).

    Retrieved paths whose first token the draft model does not expect are dropped; the others are fused
    with the model's tree along their longest common prefixes, and the most probable nodes are the draft.
    A source that fails, the model included, leaves the drafts to the others.

    Args:
        sources: where retrieved trees come from: `LocalClient`, `DraftClient` or other sources.
        model: a draft model whose ids are the target's; without one, nothing is pruned.
        pruning: which retrieved paths pass.
        growth: when the model's tree is deep enough.
        draws: draws the model's children at random instead of taking the most probable ones. Only a
            sampled generation gains: its verifier accepts them by the ratio of target to draft.
        tokenizer_fingerprint: the target model's, if known.

    Raises:
        InvalidRequest: neither a source nor a model, or draws without a model.
        TokenizerMismatch: the model's ids are known to mean other text.
    """

    def __init__(
        self,
        sources: Sequence[DraftSource],
        model: DraftModel | None = None,
        *,
        pruning: Pruning | None = None,
        growth: Growth | None = None,
        draws: Draws | None = None,
        tokenizer_fingerprint: str = "",
    ) -> None:
        if model is None and (draws is not None or not sources):
            raise InvalidRequest("nothing to draft with", expected="a source, or a draft model")
        if model is not None:
            check_same_ids(fingerprint_of(model), tokenizer_fingerprint)
        self.sources = tuple(sources)
        self.model = model
        self.pruning = pruning or Pruning()
        self.growth = growth or Growth()
        self.draws = draws

    @property
    def vocab_size(self) -> int:
        """Token ids lie in `0 .. vocab_size - 1`: that of the largest part.

        Raises:
            ServiceUnavailable: no part can tell.
        """
        sizes = [self.model.vocab_size] if self.model is not None else []
        sizes += [size for source in self.sources if (size := _told(source, "vocab_size", 0))]
        if not sizes:
            raise ServiceUnavailable("none of the fused sources can be reached")
        return max(sizes)

    @property
    def source_names(self) -> tuple[str, ...]:
        """The drafter behind each bit of a tree's `sources`, lowest first, the model last."""
        names = [name for source in self.sources for name in _told(source, "source_names", ())]
        return (*names, MODEL_NAME) if self.model is not None else tuple(names)

    @property
    def wanted_topk(self) -> int:
        """Ids a node that are of use in `Feedback.topk_ids`; 0 if no source learns from them."""
        return max((_told(source, "wanted_topk", 0) for source in self.sources), default=0)

    @property
    def projection(self) -> Projection | None:
        """What turns the target's state into `Feedback.hidden_state`; None if no source is asked with it.

        Raises:
            InvalidRequest: the sources want different ones, and a step tells one state.
        """
        found = [one for source in self.sources if (one := _told(source, "projection", None)) is not None]
        if any(not other.equals(found[0]) for other in found[1:]):
            raise InvalidRequest(
                "the fused sources are asked with different projections",
                remedy="fuse dense datastores of one build",
            )
        return found[0] if found else None

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> FusedSession:
        """Returns a session whose context is the prompt.

        Raises:
            InvalidRequest: the sources together have more names than a tree has bits.
        """
        if len(self.source_names) > MAX_SOURCES:
            raise InvalidRequest(
                "too many drafting sources", got=len(self.source_names), expected=f"<= {MAX_SOURCES}"
            )
        return FusedSession(self, [int(token) for token in prompt_ids], namespace)

    def draft_batch(
        self,
        sessions: Sequence[FusedSession],
        total_nodes: int,
        cost_curve: CostCurve | None = None,
        max_nodes: int | None = None,
    ) -> list[DraftTree]:
        """Returns one tree a session, together at most `total_nodes` nodes, and only such as pay.

        Every source is asked once for all of them.
        """
        share = total_nodes // len(sessions)
        grown = [session.ask_model(share) for session in sessions]
        by_part = [
            draft_together(part, [one.retrieval[place] for one in sessions], share, total_nodes, None, warn)
            for place, (part, warn) in enumerate(zip(self.sources, sessions[0].warnings, strict=True))
        ]
        trees = [
            session.fused(own, [drafted[index] for drafted in by_part], share)
            for index, (session, own) in enumerate(zip(sessions, grown, strict=True))
        ]
        return share_nodes(trees, max(total_nodes, 0), cost_curve)

    def close(self) -> None:
        """Does nothing: sources and model belong to whoever made them."""


def _told(source: Any, name: str, otherwise: Any) -> Any:
    """What a source says of itself; one that cannot be reached says nothing."""
    try:
        return getattr(source, name)
    except ServiceUnavailable:
        return otherwise


class FusedSession:
    """One generation over the parts of a `FusedSource`; belongs to one caller at a time.

    Attributes:
        proposals: the children in the last tree that were drawn at random.
        retrieval: the sessions of the sources.
        warnings: where their errors are said.
    """

    def __init__(self, source: FusedSource, prompt_ids: list[int], namespace: str) -> None:
        self._source = source
        self._context = prompt_ids
        self.warnings = [OneWarning() for _ in source.sources]
        self.retrieval = [
            GuardedSession(part, prompt_ids.copy(), namespace, source.vocab_size, warn)
            for part, warn in zip(source.sources, self.warnings, strict=True)
        ]
        self._predictions = self._started()
        self._warned = False
        self.proposals: Proposals = {}

    @property
    def context_length(self) -> int:
        """Tokens decided so far, prompt included."""
        return len(self._context)

    def draft(self, max_nodes: int = 16, cost_curve: CostCurve | None = None) -> DraftTree:
        """Returns at most `max_nodes` nodes that continue the context; only nodes that pay, with a curve."""
        grown = self.ask_model(max_nodes)
        tree = self.fused(grown, [session.draft(max_nodes) for session in self.retrieval], max_nodes)
        return tree if cost_curve is None else cut(tree, cost_curve)

    def fused(self, grown: ModelTree | None, trees: list[DraftTree], max_nodes: int) -> DraftTree:
        """Returns the sources' trees and the model's as one."""
        self.proposals = {}
        if grown is not None:
            trees = [prune(tree, grown.first_probs, self._source.pruning) for tree in trees]
            trees.append(grown.tree)
            self.proposals = grown.proposals
        return fuse(self._labelled(trees, has_model=grown is not None), max_nodes)

    def commit(self, token_ids: TokenIds, feedback: Feedback | None = None) -> None:
        """Appends decided tokens, accepted ones and the bonus token, to the context."""
        tokens = [int(token) for token in token_ids]
        self._context = self._context + tokens
        if self._predictions is not None:
            self._predictions.observe(np.array(tokens, TOKEN))
        for session in self.retrieval:
            session.commit(tokens, feedback)

    def truncate(self, length: int) -> None:
        """Cuts the context to its first `length` tokens."""
        self._context = self._context[:length]
        for session in self.retrieval:
            session.truncate(length)
        if self._predictions is not None:
            self._predictions = self._started()

    def close(self) -> None:
        """Ends the session, so that the sources learn from it; closing twice is harmless."""
        for session in self.retrieval:
            session.finish()
        self._predictions = None

    def _started(self) -> Predictions | None:
        if self._source.model is None:
            return None
        predictions = self._source.model.start()
        predictions.observe(np.array(self._context, TOKEN))
        return predictions

    def ask_model(self, max_nodes: int) -> ModelTree | None:
        """Returns the draft model's tree; None without a model, or where it fails."""
        if self._predictions is None or max_nodes <= 0 or not self._context:
            return None
        try:
            return self._model_tree(self._predictions, max_nodes)
        except RetrievalSpecError as error:
            if not self._warned:
                self._warned = True
                logger.warning("going on without the draft model where it fails: %s", error)
            if isinstance(error, InvalidInput):
                self._predictions = None  # the same numbers would come in every step
            return None

    def _model_tree(self, predictions: Predictions, max_nodes: int) -> ModelTree:
        source = self._source
        assert source.model is not None
        if source.draws is None:
            return grow(predictions, source.model.vocab_size, max_nodes, source.growth)
        # Another family of generators than that of the verifier's own noise.
        generator = np.random.default_rng([source.draws.seed & _WORD, len(self._context)])
        return draw(predictions, source.model.vocab_size, max_nodes, source.draws.branching, generator)

    def _labelled(self, trees: list[DraftTree], has_model: bool) -> list[DraftTree]:
        """Gives every tree bits of its own; a source that is out of reach has none."""
        names: list[tuple[str, ...]] = [_told(part, "source_names", ()) for part in self._source.sources]
        if has_model:
            names.append((MODEL_NAME,))
        everyone = tuple(name for part in names for name in part)
        labelled, bit = [], 0
        for tree, own in zip(trees, names, strict=True):
            sources = (tree.sources.astype(np.int64) << bit).astype(np.uint16)
            labelled.append(DraftTree(tree.token_ids, tree.parents, tree.probs, sources, everyone))
            bit += len(own)
        return labelled
