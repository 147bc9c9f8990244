"""The in-process way to an engine, for single-process users and for tests of everything above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_spec.budget import CostCurve
from retrieval_spec.client.interface import TokenIds
from retrieval_spec.projection import Projection
from retrieval_spec.tree import DraftTree

if TYPE_CHECKING:  # the engine needs numba, which a remote client's process need not have
    from retrieval_spec.engine import Engine, Session


class LocalClient:
    """An engine behind the interface of `DraftClient`; its sessions are the engine's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def vocab_size(self) -> int:
        """Token ids lie in `0 .. vocab_size - 1`."""
        return self._engine.vocab_size

    @property
    def source_names(self) -> tuple[str, ...]:
        """The drafter behind each bit of a tree's `sources`, lowest first."""
        return self._engine.source_names

    @property
    def wanted_topk(self) -> int:
        """Ids a node that are of use in `Feedback.topk_ids`; 0 if no source learns from them."""
        return self._engine.wanted_topk

    @property
    def projection(self) -> Projection | None:
        """What turns the target's state into `Feedback.hidden_state`; None if no source is asked with it."""
        return self._engine.projection

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> Session:
        """Returns a session whose context is the prompt."""
        return self._engine.open_session(prompt_ids, namespace)

    def draft_batch(
        self, sessions: Sequence[Session], total_nodes: int, cost_curve: CostCurve | None = None
    ) -> list[DraftTree]:
        """Returns one tree a session, together at most `total_nodes` nodes, and only such as pay."""
        return self._engine.draft_batch(sessions, total_nodes, cost_curve=cost_curve)

    def close(self) -> None:
        """Does nothing: the engine belongs to whoever made it."""
