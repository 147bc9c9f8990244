"""The in-process way to an engine, for single-process users and for tests of everything above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrieval_spec.budget import CostCurve
from retrieval_spec.client.interface import TokenIds
from retrieval_spec.projection import Projection
from retrieval_spec.tree import DraftTree, as_tokens

if TYPE_CHECKING:  # the engine needs numba, which a remote client's process need not have
    from retrieval_spec.engine import Engine
    from retrieval_spec.session import Session
    from retrieval_spec.suffixes import SuffixBook


class LocalClient:
    """An engine behind the interface of `DraftClient`; its sessions are the engine's own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._book: SuffixBook | None = None

    @property
    def vocab_size(self) -> int:
        """Token ids lie in `0 .. vocab_size - 1`."""
        return self._engine.vocab_size

    @property
    def source_names(self) -> tuple[str, ...]:
        """The drafter behind each bit of a tree's `sources`, lowest first."""
        return self._engine.source_names

    @property
    def datastores(self) -> dict[str, str]:
        """Name -> tokenizer fingerprint of every datastore that is drafted from."""
        return self._engine.datastores

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
        self,
        sessions: Sequence[Session],
        total_nodes: int,
        cost_curve: CostCurve | None = None,
        max_nodes: int | None = None,
    ) -> list[DraftTree]:
        """Returns one tree a session, together at most `total_nodes` nodes, and only such as pay."""
        caps = None if max_nodes is None else [max_nodes] * len(sessions)
        return self._engine.draft_batch(sessions, total_nodes, caps, cost_curve)

    def draft_suffixes(
        self,
        contexts: Sequence[TokenIds],
        max_nodes: int = 16,
        total_nodes: int | None = None,
        cost_curve: CostCurve | None = None,
        namespace: str = "default",
    ) -> list[DraftTree]:
        """Returns one tree a row, for hosts that name no requests: see `SuffixSource`."""
        from retrieval_spec.suffixes import EngineSessions, SuffixBook, SuffixRow

        if self._book is None:
            self._book = SuffixBook(self._engine, EngineSessions(self._engine), self._engine.draft_batch)
        rows = [as_tokens(context, self.vocab_size) for context in contexts]
        nodes = max_nodes * len(rows) if total_nodes is None else total_nodes
        answers = self._book.draft_step(
            [SuffixRow(row, row.shape[0], max_nodes) for row in rows], namespace, nodes, cost_curve
        )
        no_draft = DraftTree.empty(self.source_names)
        return [one.outcome if isinstance(one.outcome, DraftTree) else no_draft for one in answers]

    def close(self) -> None:
        """Ends what `draft_suffixes` opened; the engine belongs to whoever made it."""
        if self._book is not None:
            self._book.close()
