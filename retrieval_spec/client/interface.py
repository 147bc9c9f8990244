"""What a generation loop may ask of a source of drafts, in process or remote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from retrieval_spec.budget import CostCurve
from retrieval_spec.feedback import Feedback
from retrieval_spec.projection import Projection
from retrieval_spec.tree import DraftTree

TokenIds = Sequence[int] | NDArray[Any]


@runtime_checkable
class DraftSession(Protocol):
    """One generation. Belongs to one caller at a time."""

    @property
    def context_length(self) -> int:
        """Tokens decided so far, prompt included."""
        ...

    def draft(self, max_nodes: int = 16, cost_curve: CostCurve | None = None) -> DraftTree:
        """Returns at most `max_nodes` nodes that continue the context; none is a legal answer.

        With a cost curve only nodes that pay: those that make the step yield the most tokens per cost.
        """
        ...

    def commit(self, token_ids: TokenIds, feedback: Feedback | None = None) -> None:
        """Appends decided tokens, accepted ones and the bonus token, to the context."""
        ...

    def truncate(self, length: int) -> None:
        """Cuts the context to its first `length` tokens."""
        ...

    def close(self) -> None:
        """Ends the session; closing twice is harmless."""
        ...


@runtime_checkable
class DraftSource(Protocol):
    """What opens sessions: `LocalClient` and `DraftClient`."""

    @property
    def vocab_size(self) -> int:
        """Token ids lie in `0 .. vocab_size - 1`."""
        ...

    @property
    def source_names(self) -> tuple[str, ...]:
        """The drafter behind each bit of a tree's `sources`, lowest first."""
        ...

    @property
    def wanted_topk(self) -> int:
        """Ids a node that are of use in `Feedback.topk_ids`; 0 if no source learns from them."""
        ...

    @property
    def projection(self) -> Projection | None:
        """What turns the target's state into `Feedback.hidden_state`; None if no source is asked with it."""
        ...

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> DraftSession:
        """Returns a session whose context is the prompt, which may be empty."""
        ...

    def draft_batch(
        self,
        sessions: Sequence[Any],
        total_nodes: int,
        cost_curve: CostCurve | None = None,
        max_nodes: int | None = None,
    ) -> list[DraftTree]:
        """Returns one tree a session of this source, together at most `total_nodes` nodes.

        With the cost curve of the pass that verifies them all, only nodes that pay. Hosts whose rows all have
        the same room bound each tree: `max_nodes`.
        """
        ...

    def close(self) -> None:
        """Releases what the source itself holds; sessions are closed by those who opened them."""
        ...


@runtime_checkable
class SuffixSource(Protocol):
    """What drafts for hosts that say what stands in each row of a batch, but not which row is whose."""

    def draft_suffixes(
        self,
        contexts: Sequence[TokenIds],
        max_nodes: int = 16,
        total_nodes: int | None = None,
        cost_curve: CostCurve | None = None,
        namespace: str = "default",
    ) -> list[DraftTree]:
        """Returns one tree a row, at most `max_nodes` nodes each and `total_nodes` together.

        A row is the whole context of one generation, in any order and place: what it continues is found by
        its tokens, among rows of the namespace alone. Nothing is opened, committed or closed; a row that has
        not come for some hundred steps has ended. What a source refuses to do for a row costs its draft.

        Raises:
            InvalidTokens: an id outside the vocabulary.
        """
        ...
