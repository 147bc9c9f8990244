"""The verifier's side of a draft session: a source that fails costs speed, never output.

Knows the `DraftSource` contract alone: no torch, no model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from retrieval_spec.errors import (
    InvalidFeedback,
    InvalidInput,
    InvalidRequest,
    RetrievalSpecError,
    ServiceUnavailable,
)
from retrieval_spec.tree import DraftTree

if TYPE_CHECKING:
    from retrieval_spec.budget import CostCurve
    from retrieval_spec.client import DraftSession, DraftSource
    from retrieval_spec.feedback import Feedback
    from retrieval_spec.model_tree import Proposals
    from retrieval_spec.projection import Projection

logger = logging.getLogger(__name__)

_EMPTY = DraftTree.empty()
TokenIds = Sequence[int] | NDArray[Any]


def check_source(source: DraftSource, model_vocab_size: int) -> None:
    """Refuses a draft source whose tokens the model does not have.

    Raises:
        InvalidRequest: its vocabulary is larger than the model's.
    """
    try:
        vocab_size = source.vocab_size
    except ServiceUnavailable:
        return  # nothing can be drafted either; the session says so and the generation goes on
    if vocab_size > model_vocab_size:
        raise InvalidRequest(
            "the draft source has a larger vocabulary than the target model",
            got=vocab_size,
            expected=f"<= {model_vocab_size}",
            remedy="open it with the model's vocab_size",
        )


class OneWarning:
    """Says once what goes wrong, however many sessions of a generation it goes wrong in."""

    def __init__(self) -> None:
        self._is_said = False

    def __call__(self, error: RetrievalSpecError) -> None:
        """Warns, the first time."""
        if not self._is_said:
            self._is_said = True
            logger.warning("going on without drafts where they fail: %s", error)


class GuardedSession:
    """One generation's draft session, in which every typed error becomes an empty tree and one warning.

    The session is told of tokens only when a tree is asked for, and always exactly those that it lacks
    by its own `context_length`: whatever was lost on the way is made good with the next draft.

    Args:
        source: where trees come from.
        prompt_ids: the prompt's tokens.
        namespace: whose history the session reads and joins.
        vocab_size: the target model's; a tree with another token never reaches the model.
        warn: where errors are said, common to the sessions of a batch.

    Attributes:
        proposals: which nodes of the tree drafted last have children that were drawn at random; sources
            without a draft model have none. To leave them out is lossless too: they are then accepted
            like any other draft, only less often.
    """

    def __init__(
        self,
        source: DraftSource,
        prompt_ids: list[int],
        namespace: str,
        vocab_size: int,
        warn: OneWarning | None = None,
    ) -> None:
        self._vocab_size = vocab_size
        self._prompt_length = len(prompt_ids)
        self._output_ids: list[int] = []
        self._last_step: tuple[int, Feedback | None] = (0, None)
        self._warn = warn or OneWarning()
        self.proposals: Proposals = {}
        self._session: DraftSession | None = None
        try:
            self._session = source.open_session(prompt_ids, namespace)
        except RetrievalSpecError as error:
            self._warn(error)

    def commit(self, token_ids: list[int], feedback: Feedback | None = None) -> None:
        """Notes decided tokens, and what the step that decided them teaches."""
        self._last_step = (len(self._output_ids), feedback)
        self._output_ids.extend(token_ids)

    def draft(self, max_nodes: int, cost_curve: CostCurve | None = None) -> DraftTree:
        """Returns a tree of at most `max_nodes` nodes that keeps the contract; empty where drafting fails.

        With what a pass of the target costs, only nodes that pay.
        """
        self.proposals = {}
        if self._session is None or max_nodes <= 0:
            return _EMPTY
        try:
            self._catch_up(self._session)
            return self._checked(self._drafted(self._session, max_nodes, cost_curve), max_nodes)
        except RetrievalSpecError as error:
            self._give_up(error)
            return _EMPTY

    def up_to_date(self) -> DraftSession | None:
        """Returns the source's own session, told of everything; None where nothing can be drafted."""
        self.proposals = {}
        if self._session is None:
            return None
        try:
            self._catch_up(self._session)
        except RetrievalSpecError as error:
            self._give_up(error)
            return None
        return self._session

    def taken(self, tree: DraftTree, max_nodes: int) -> DraftTree:
        """Returns the first nodes of a tree that the source drafted; none of one that breaks the contract."""
        try:
            return self._checked(tree, max_nodes)
        except RetrievalSpecError as error:
            self._give_up(error)
            return _EMPTY

    def truncate(self, length: int) -> None:
        """Cuts the context to its first `length` tokens."""
        del self._output_ids[max(length - self._prompt_length, 0) :]
        self._prompt_length = min(length, self._prompt_length)
        self._last_step = (0, None)
        if self._session is None or self._session.context_length <= length:
            return  # what it has not been told it need not forget
        try:
            self._session.truncate(length)
        except RetrievalSpecError as error:
            self._warn(error)
            self.close()

    def finish(self) -> None:
        """Tells the session of the last tokens, so that it learns the whole output, and closes it."""
        if self._session is None:
            return
        try:
            self._catch_up(self._session)
        except RetrievalSpecError as error:
            self._warn(error)
        self.close()

    def close(self) -> None:
        """Closes the session; nothing is drafted from here on."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            session.close()
        except RetrievalSpecError as error:
            self._warn(error)

    def _checked(self, tree: DraftTree, max_nodes: int) -> DraftTree:
        tree = tree.prefix(max_nodes)
        if len(tree) == 0 or self._session is None:
            return _EMPTY
        tree.check(self._vocab_size)
        self.proposals = self._checked_proposals(self._session)
        return tree

    def _give_up(self, error: RetrievalSpecError) -> None:
        self._warn(error)
        if isinstance(error, InvalidInput):
            self.close()  # the same tokens or the same source would fail in every step

    def _drafted(self, session: DraftSession, max_nodes: int, cost_curve: CostCurve | None) -> DraftTree:
        # A source of the user's own need not know of costs as long as nobody tells any.
        return session.draft(max_nodes) if cost_curve is None else session.draft(max_nodes, cost_curve)

    def _catch_up(self, session: DraftSession) -> None:
        known_tokens = session.context_length - self._prompt_length
        if known_tokens >= len(self._output_ids):
            return
        missing = self._output_ids[known_tokens:]
        begin, feedback = self._last_step
        # Feedback is about one step: beside the tokens of several it would be about the wrong root.
        if feedback is not None and begin == known_tokens:
            try:
                session.commit(missing, feedback)
                return
            except InvalidFeedback as error:
                self._warn(error)
        session.commit(missing)

    def _checked_proposals(self, session: DraftSession) -> Proposals:
        drawn: Proposals = getattr(session, "proposals", {})
        return {path: proposal.check(self._vocab_size) for path, proposal in drawn.items()}


def draft_together(
    source: DraftSource,
    sessions: Sequence[GuardedSession],
    max_nodes: int,
    total_nodes: int,
    cost_curve: CostCurve | None,
    warn: OneWarning,
) -> list[DraftTree]:
    """Returns a tree for every session of a batch, of at most `max_nodes` nodes each: one question for all.

    What the source refuses for one of them is asked again one by one, so that the others have theirs.
    """
    if len(sessions) == 1 or max_nodes <= 0:
        return [session.draft(max_nodes, cost_curve) for session in sessions]
    trees = [_EMPTY] * len(sessions)
    asked = {index: own for index, one in enumerate(sessions) if (own := one.up_to_date()) is not None}
    if not asked:
        return trees
    try:
        drafted = source.draft_batch(list(asked.values()), total_nodes, cost_curve)
    except InvalidInput:
        return [session.draft(max_nodes, cost_curve) for session in sessions]
    except RetrievalSpecError as error:
        warn(error)
        return trees
    for index, tree in zip(asked, drafted, strict=False):
        trees[index] = sessions[index].taken(tree, max_nodes)
    return trees


class NoDrafts:
    """The draft source that never drafts: with it the loop decodes plainly, one token a step.

    Args:
        vocab_size: the target model's.
    """

    source_names: tuple[str, ...] = ()
    wanted_topk = 0
    projection: Projection | None = None

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> NoDraftsSession:
        """Returns a session whose trees are all empty."""
        return NoDraftsSession(len(prompt_ids))

    def draft_batch(
        self,
        sessions: Sequence[DraftSession],
        total_nodes: int,
        cost_curve: CostCurve | None = None,
        max_nodes: int | None = None,
    ) -> list[DraftTree]:
        """Returns one empty tree a session."""
        return [_EMPTY] * len(sessions)

    def close(self) -> None:
        """Does nothing: the source holds nothing."""


class NoDraftsSession:
    """A session without drafts; it only counts."""

    def __init__(self, context_length: int) -> None:
        self.context_length = context_length

    def draft(self, max_nodes: int = 16, cost_curve: CostCurve | None = None) -> DraftTree:
        """Returns the empty tree."""
        return _EMPTY

    def commit(self, token_ids: TokenIds, feedback: Feedback | None = None) -> None:
        """Counts the tokens."""
        self.context_length += len(token_ids)

    def truncate(self, length: int) -> None:
        """Sets the count back."""
        self.context_length = length

    def close(self) -> None:
        """Does nothing."""
