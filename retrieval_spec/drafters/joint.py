"""How the sources of one session draft together: the contract, and the rule that fuses one tree of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any, Protocol

from retrieval_spec.drafters.base import Budget, Cursor, trial_of
from retrieval_spec.drafters.guarded import GuardedCursor
from retrieval_spec.drafters.searched import Corpora
from retrieval_spec.errors import RetrievalSpecError
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import fuse_sources
from retrieval_spec.kernels.fusion import COMPILED
from retrieval_spec.structures.context import Context
from retrieval_spec.tree import DraftTree, Tokens


class Group:
    """What sessions have in common that kernels step together; compared by identity.

    Attributes:
        locks: around what they read and learn together, in the order to take them.
        corpora: that are searched for them.
    """

    __slots__ = ("corpora", "locks")

    def __init__(self, locks: tuple[Lock, ...], corpora: Corpora) -> None:
        self.locks = locks
        self.corpora = corpora


Combination = Callable[[Sequence[Cursor], Budget], list[DraftTree]]
"""Asks cursors and returns one tree each, in their order (`drafters.combination`)."""


def trials_of(cursors: Sequence[Cursor]) -> list[Cursor] | None:
    """Returns a trial of each cursor, None if one of them allows none."""
    trials = [trial_of(cursor) for cursor in cursors]
    return None if None in trials else trials  # type: ignore[return-value]  # mypy sees no None go


class Joint(Protocol):
    """All cursors of one session; owned by that session, not thread-safe.

    Attributes:
        address: where its card lies (`kernels.cards`).
        group: of sessions that kernels step together; None if its sources have to be told and asked.
        source_names: of the engine.
    """

    address: int
    group: Group | None
    source_names: tuple[str, ...]

    def draft(self, budget: Budget) -> DraftTree:
        """Returns one tree from all sources; equal states give equal trees."""
        ...

    def keep(self, num_nodes: int) -> None:
        """Says that of the tree drafted last only the first nodes will be verified; unsaid, all will."""
        ...

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Appends committed tokens to the context; moves cursors on, at the latest with the next draft."""
        ...

    def settle(self) -> None:
        """Moves all cursors on now by what was observed: before they are closed."""
        ...

    def make_room(self, num_left: int) -> None:
        """Makes room for tokens to come, and for the last ones, for so many of which kernels found none."""
        ...

    def trial(self) -> Joint | None:
        """Returns one in the same state, whose moves show nowhere else; None if a source allows none."""
        ...


class Joining(Protocol):
    """A rule that combines the sources of an engine, and what it learned; safe to share between threads.

    Attributes:
        source_names: of the engine, in the order of its cursors; a datastore that is added comes last.
    """

    source_names: tuple[str, ...]

    def start(self, cursors: Sequence[Cursor], namespace: str, context: Context) -> Joint:
        """Returns the cursors of a new session as one; they have observed the context, which is its own."""
        ...

    def draft_all(
        self, joints: Sequence[Any], budgets: Sequence[Budget], total_nodes: int
    ) -> list[DraftTree]:
        """Returns one tree of each session, when all have worked in what they observed.

        0 nodes are a budget too. Nodes that are not among the `total_nodes` most probable ones of all trees
        may be left out, and what is far below them need not be looked for.
        """
        ...


class Fuse:
    """Fuses one tree of each source by longest prefix; learns nothing."""

    def __init__(self, combine: Combination, source_names: tuple[str, ...]) -> None:
        self._combine = combine
        self.source_names = source_names

    def start(self, cursors: Sequence[Cursor], namespace: str, context: Context) -> Fused:
        """Returns the cursors of a new session as one."""
        return Fused(cursors, self._combine, self.source_names, context)

    def draft_all(
        self, joints: Sequence[Joint], budgets: Sequence[Budget], total_nodes: int
    ) -> list[DraftTree]:
        """Returns one tree of each session, whole."""
        return [
            joint.draft(budget) if budget.max_nodes else DraftTree.empty(self.source_names)
            for joint, budget in zip(joints, budgets, strict=True)
        ]


class Fused:
    """Cursors that each propose a tree; owned by one session."""

    address = 0
    group: Group | None = None

    __slots__ = ("_combine", "_context", "_cursors", "source_names")

    def __init__(
        self,
        cursors: Sequence[Cursor],
        combine: Combination,
        source_names: tuple[str, ...],
        context: Context | None,
    ) -> None:
        self._cursors = cursors
        self._combine = combine
        self.source_names = source_names
        self._context = context

    def draft(self, budget: Budget) -> DraftTree:
        """Returns the most probable paths of all trees."""
        trees = self._combined(budget)
        return fuse_sources(trees, budget.max_nodes, self.source_names, COMPILED)

    def _combined(self, budget: Budget) -> list[DraftTree]:
        try:
            return self._combine(self._cursors, budget)
        except RetrievalSpecError:
            # From here on what fails drafts nothing; the step is not lost, since drafting changes no cursor.
            self._cursors = [GuardedCursor(cursor) for cursor in self._cursors]
            return self._combine(self._cursors, budget)

    def trial(self) -> Fused | None:
        """Returns one in the same state, whose moves show nowhere else; None if a source allows none."""
        cursors = trials_of(self._cursors)
        return None if cursors is None else Fused(cursors, self._combine, self.source_names, None)

    def keep(self, num_nodes: int) -> None:
        """Does nothing: no source asks what became of its tree."""

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Moves all cursors on."""
        for cursor in self._cursors:
            cursor.observe(tokens, feedback)
        if self._context is not None:
            self._context.append(tokens)

    def settle(self) -> None:
        """Does nothing: all is moved on at once."""

    def make_room(self, num_left: int) -> None:
        """Does nothing: cursors make room themselves."""
