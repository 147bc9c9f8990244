"""The contract between the engine and every source of drafts.

A drafter is opened once and shared by all sessions; a cursor is one session's position in it. Neither
knows of sessions, sockets or clocks. `tests/contract/` runs over every registered drafter.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeGuard, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.feedback import Feedback
from retrieval_spec.projection import Projection
from retrieval_spec.tree import DraftTree, Tokens, Uint16s

if TYPE_CHECKING:
    from retrieval_spec.drafters.text_card import TextCard
    from retrieval_spec.structures.context_array import ContextArray

Int64s = NDArray[np.int64]

MAX_DEPTH_NODES = 64
"""No path of a draft tree is longer."""


class Budget(NamedTuple):
    """What a tree may cost: an upper bound, never a target; the root is not counted.

    Attributes:
        max_nodes: drafted nodes at most; 0 means "no draft".
        max_depth_nodes: nodes on one path at most.
    """

    max_nodes: int = 16
    max_depth_nodes: int = MAX_DEPTH_NODES


_OWN_SOURCE = np.ones(4096, np.uint16)
_OWN_SOURCE.setflags(write=False)


def own_source(num_nodes: int) -> Uint16s:
    """Returns read-only uint16[num_nodes], the `sources` of every tree that a cursor proposes: all 1."""
    if num_nodes > _OWN_SOURCE.shape[0]:
        return np.ones(num_nodes, np.uint16)
    sources: Uint16s = _OWN_SOURCE[:num_nodes]
    return sources


@runtime_checkable
class Cursor(Protocol):
    """One session's position in one drafter; owned by that session, not thread-safe."""

    def observe(self, tokens: Tokens, feedback: Feedback | None = None) -> None:
        """Moves on by committed tokens; drafts that were rejected come at most as feedback.

        Feedback has passed `Feedback.check`. It is about the step that decided `tokens`: its root is the
        token before them.
        """
        ...

    def close(self) -> None:
        """Ends the session: what the source learns from whole outputs, it learns now.

        Closing twice is as closing once. Not called for a cursor that `truncate` replaced.
        """
        ...

    def propose(self, budget: Budget) -> DraftTree:
        """Returns a tree that continues the context; equal states give equal trees.

        Nodes come best first, by path probability. The tree's `sources` are all 1 and its
        `source_names` empty: the engine sets both.
        """
        ...


@runtime_checkable
class TextCursor(Cursor, Protocol):
    """A cursor whose source is a text in an automaton, so that it can be blended with others of its kind.

    Kernels read the text and move the place on, over all sessions of a step; the cursor is told later.
    """

    kind: int
    """`OWN`, `OUTPUTS` or `PROMPTS` of `kernels.blend_tables`."""
    lock: Lock | None
    """Held while kernels read the text; None if no other session reads it."""
    card: TextCard
    """Where the text lies; always the same one."""
    place: Int64s
    """int64[PLACE_WORDS]  where the context stands in it; in its own text, its anchor (`kernels.anchor`)."""
    learns_at_once: bool
    """Whether it is to be told after every step, not only before the session ends."""

    def refresh(self, num_new: int) -> None:
        """Brings the card of a trial up to date, before so many tokens are worked in; the lock is held."""
        ...

    def advance(self, tokens: Tokens) -> None:
        """Notes committed tokens that kernels have worked in."""
        ...

    def make_room(self, left: Tokens) -> None:
        """Makes room in the context's own text, and appends tokens for which kernels found none."""
        ...


class CorpusSource(Protocol):
    """A source whose corpus kernels can search; which one that is may change."""

    @property
    def searchable(self) -> ContextArray | None:
        """The corpus as it is now; None if cursors themselves have to be asked."""
        ...


@runtime_checkable
class SearchedCursor(Cursor, Protocol):
    """A cursor whose source is a corpus, so that a kernel can search it together with others' texts.

    Where it is not asked itself, it is told of commits late, and of many at once.
    """

    corpus_source: CorpusSource


@runtime_checkable
class TrialCursor(Cursor, Protocol):
    """A cursor of which a trial can be made: what it would draft after tokens that are only supposed."""

    def trial(self) -> Cursor | None:
        """Returns a cursor in the same state, whose moves show nowhere else; never closed.

        It lends the scratch memory of this one, is used in the same thread and no longer once this one
        moves on. None if the source learns while a text is written: then its moves would show.
        """
        ...


def is_text(cursor: Cursor) -> TypeGuard[TextCursor]:
    """Whether a cursor is one of a text."""
    return _keeps(cursor, TextCursor)


def is_searched(cursor: Cursor) -> TypeGuard[SearchedCursor]:
    """Whether a cursor is one of a corpus."""
    return _keeps(cursor, SearchedCursor)


_kept: dict[tuple[type, Any], bool] = {}


def _keeps(cursor: Cursor, contract: Any) -> bool:
    # As all of its class do, and none is wrapped: looking at each attribute of each cursor took a third of
    # the time of opening a session.
    key = type(cursor), contract
    if key not in _kept:
        _kept[key] = isinstance(cursor, contract)
    return _kept[key]


def trial_of(cursor: Cursor) -> Cursor | None:
    """Returns a trial of a cursor (`TrialCursor`), None if there can be none."""
    return cursor.trial() if isinstance(cursor, TrialCursor) else None


@runtime_checkable
class Drafter(Protocol):
    """A source of drafts: immutable, or synchronised within."""

    def start(self, context: Tokens, namespace: str = "default") -> Cursor:
        """Returns a cursor for a session with the prompt `context`, which may be empty.

        What is observed from here on is output. A source that learns keeps what it learned apart by
        namespace (`drafters.namespaces`).
        """
        ...


@runtime_checkable
class TextDrafter(Drafter, Protocol):
    """A drafter over text that was encoded beforehand: its ids mean text to one tokenizer alone."""

    tokenizer_fingerprint: str


@runtime_checkable
class RenewableDrafter(TextDrafter, Protocol):
    """A drafter over a datastore that can be replaced while sessions draft: each draft reads one of the two.

    Called between drafts. What nobody drafts from any more is released.
    """

    def take_up(self, fresh: Any) -> None:
        """Drafts from here on from what another drafter of its kind opened, in open sessions too.

        Raises:
            InvalidRequest: that is nothing that open sessions could go on with; nothing is changed.
        """
        ...

    def let_go(self) -> None:
        """Drafts nothing from here on, until something is taken up."""
        ...


@runtime_checkable
class TopKDrafter(Drafter, Protocol):
    """A drafter that learns from the target's most probable tokens at every verified node."""

    wanted_topk: int
    """How many ids a node are of use."""


@runtime_checkable
class HiddenStateDrafter(Drafter, Protocol):
    """A drafter that is asked with the target's hidden state, projected where the target runs."""

    projection: Projection
    """What turns the target's state into that vector; the same for all sources of an engine."""
