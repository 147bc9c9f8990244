"""One calibrated tree over all sources: what the default preset drafts.

Sources that are texts (`base.TextCursor`) are expanded together, node by node; what others propose joins
in as evidence. Every commit corrects the probabilities of its namespace (`kernels.blend_learning`).
"""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_spec.drafters.base import Budget, Cursor
from retrieval_spec.drafters.blended import Blended, Learned
from retrieval_spec.drafters.joint import Drafted, Rows
from retrieval_spec.drafters.namespaces import Namespaces
from retrieval_spec.drafters.stepping import commit_and_draft, draft_all
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

    def start(self, cursors: Sequence[Cursor], namespace: str, context: Context) -> Blended:
        """Returns the cursors of a new session as one."""
        return Blended(cursors, self.namespaces.of(namespace), self.source_names, context)

    def draft_all(
        self, joints: Sequence[Blended], budgets: Sequence[Budget], total_nodes: int
    ) -> list[DraftTree]:
        """Returns one tree of each session, all in one kernel call."""
        if len(set(joints)) < len(joints):  # one that is asked for twice moves on once
            return [joint.draft(budget) for joint, budget in zip(joints, budgets, strict=True)]
        return draft_all(joints, budgets, total_nodes) if joints else []

    def commit_and_draft(
        self, joints: Sequence[Blended], rows: Rows, total_nodes: int, max_depth_nodes: int
    ) -> Drafted | None:
        """Commits and drafts for distinct sessions in two kernel calls, where all is as usual."""
        return commit_and_draft(joints, rows, total_nodes, max_depth_nodes)

    def cells_of(self, namespace: str) -> Float32s:
        """Returns the tables of a namespace, not a copy: float32[NUM_CELLS], for tools."""
        return self.namespaces.of(namespace).tables
