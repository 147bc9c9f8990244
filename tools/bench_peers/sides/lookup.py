"""What lookups in the own context have in common: they hold nothing but that context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from replaying import chain


class Lookup:
    """Copies what followed an earlier occurrence; `find` gets the context and returns a path."""

    def __init__(self, hold: Callable[[list[int]], Any], find: Callable[[Any], Any]) -> None:
        self.held, self.draft = hold, find

    def open(self, prompt: Any) -> None:
        """Keeps nothing."""

    def commit(self, tokens: Any) -> None:
        """Keeps nothing."""

    def close(self) -> None:
        """Keeps nothing."""

    def tree(self, draft: Any) -> tuple[list[int], list[int]]:
        """Returns the path."""
        return chain(draft if isinstance(draft, list) else draft.tolist())
