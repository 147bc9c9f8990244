"""A source that failed once, and may fail again, among others that draft on."""

from __future__ import annotations

import logging
from typing import Any

from retrieval_spec.drafters.base import Budget, Cursor
from retrieval_spec.errors import RetrievalSpecError
from retrieval_spec.feedback import Feedback
from retrieval_spec.tree import DraftTree, Tokens

logger = logging.getLogger(__name__)


class GuardedCursor:
    """A cursor whose typed errors become empty trees and one warning; owned by one session."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self._warned = False

    def __getattr__(self, name: str) -> Any:
        # What rules of combination ask a kind of cursor beyond the contract.
        return getattr(self.cursor, name)

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Passes committed tokens on."""
        self.cursor.observe(tokens, feedback)

    def close(self) -> None:
        """Passes the end of the session on."""
        self.cursor.close()

    def propose(self, budget: Budget) -> DraftTree:
        """Returns the cursor's tree, or an empty one."""
        try:
            return self.cursor.propose(budget)
        except RetrievalSpecError as error:
            if not self._warned:
                self._warned = True
                logger.warning("a session goes on without one of its sources: %s", error)
            return DraftTree.empty()
