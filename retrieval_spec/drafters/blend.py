"""One calibrated tree over all sources: what the default preset drafts.

Sources that are texts (`base.TextCursor`) are expanded together, node by node; what others propose joins
in as evidence. Every commit corrects the probabilities of its namespace (`kernels.blend_learning`).
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_spec.drafters.base import Budget, Cursor, is_searched
from retrieval_spec.drafters.blended import Blended, Learned
from retrieval_spec.drafters.namespaces import Namespaces
from retrieval_spec.drafters.searched import Corpora, Sources
from retrieval_spec.drafters.stepping import draft_all
from retrieval_spec.structures.context import Context
from retrieval_spec.tree import DraftTree, Float32s


class Blend:
    """Blends the sources of an engine; keeps what it learned apart by namespace.

    Args:
        source_names: of the engine, in the order of its cursors.
        prior: float32[PRIOR_CELLS]  what every namespace starts with; None: what ships with the package.
    """

    def __init__(self, source_names: tuple[str, ...], prior: Float32s | None = None) -> None:
        self.source_names = source_names
        self.namespaces = Namespaces(lambda: Learned(prior))
        self._corpora: dict[Sources, Corpora] = {}

    def start(self, cursors: Sequence[Cursor], namespace: str, context: Context) -> Blended:
        """Returns the cursors of a new session as one."""
        learned = self.namespaces.of(namespace)
        return Blended(cursors, learned, self.source_names, context, self._corpora_among)

    def _corpora_among(self, others: Sequence[tuple[int, Cursor]]) -> Corpora | None:
        """Returns the corpora among sources that are no texts, None if there are others."""
        sources = tuple([(bit, cursor.corpus_source) for bit, cursor in others if is_searched(cursor)])
        if len(sources) < len(others):
            return None
        if sources not in self._corpora:
            self._corpora[sources] = Corpora(sources)
        return self._corpora[sources]

    def draft_all(
        self, joints: Sequence[Blended], budgets: Sequence[Budget], total_nodes: int
    ) -> list[DraftTree]:
        """Returns one tree of each session, all in one kernel call."""
        if len(set(joints)) < len(joints):  # one that is asked for twice moves on once
            return [joint.draft(budget) for joint, budget in zip(joints, budgets, strict=True)]
        return draft_all(joints, budgets, total_nodes) if joints else []

    def cells_of(self, namespace: str) -> Float32s:
        """Returns the tables of a namespace, not a copy: float32[NUM_CELLS], for tools."""
        return self.namespaces.of(namespace).tables
