"""Rows without names: hosts that say what stands in a batch, but not which row is whose.

Each row's text leads to the session that it continues, hidden from the host; what no session ends with opens
a new one. Knows sessions and token ids; no clock and no messages. Belongs to one caller at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import methodcaller
from typing import NamedTuple, Protocol

import numpy as np

from retrieval_spec.budget import CostCurve
from retrieval_spec.engine import Engine
from retrieval_spec.errors import LimitExceeded, RetrievalSpecError, UnknownSession
from retrieval_spec.session import Session
from retrieval_spec.tree import DraftTree, Tokens

TAIL_TOKENS = 16
"""So many tokens at the end of a session find it; all others that both have are compared then."""

MAX_ADDED_TOKENS = 4_096
"""A row that grew by more since it was seen last counts as new."""

MAX_CUT_TOKENS = 64
"""A row that is shorter than its session, because the host went back, is found up to here."""

MAX_COMPARED = 32
"""Longer sessions that a row is compared with."""

MAX_HIDDEN = 1_024
"""Hidden sessions of one namespace; the longest unused one ends for a new one."""

KEPT_STEPS = 256
"""A session that no row has continued for so many steps of its namespace has ended."""

MAX_ENDED = 2
"""Sessions ended in one step, because they teach then, and others wait."""

MAX_OPENED, MAX_OPENED_TOKENS = 64, 65_536
"""What is learned anew in one step, for the same reason; further rows that are new wait for the next one."""

Outcome = DraftTree | RetrievalSpecError


class SuffixRow(NamedTuple):
    """One generation's context.

    Attributes:
        token_ids: int32[n]  its last tokens, or all of them.
        context_length: how many there are in all.
        max_nodes: largest draft tree wanted.
    """

    token_ids: Tokens
    context_length: int
    max_nodes: int

    @property
    def start(self) -> int:
        """Position of the first of its tokens."""
        return self.context_length - len(self.token_ids)


class Answer(NamedTuple):
    """What came of a row.

    Attributes:
        session_id: of the hidden session; 0 if there is none.
        added: int32[n]  tokens that it grew by in this step, if it was there before.
        outcome: the draft, or what was wrong with the row.
        missing_tokens: at the context's beginning, that the session does not hold.
    """

    session_id: int
    added: Tokens
    outcome: Outcome
    missing_tokens: int


class Sessions(Protocol):
    """Where hidden sessions are kept; they may be gone whenever they are asked for."""

    def open(self, prompt_ids: Tokens, namespace: str) -> int:
        """Returns the id of a new session."""
        ...

    def get(self, session_id: int) -> Session:
        """Returns a session.

        Raises:
            UnknownSession: it is gone.
        """
        ...

    def close(self, session_id: int) -> None:
        """Ends a session, which teaches."""
        ...


class EngineSessions:
    """An engine's sessions by number, kept until they are closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._sessions: dict[int, Session] = {}
        self._last_id = 0

    def open(self, prompt_ids: Tokens, namespace: str) -> int:
        """Returns the number of a new session."""
        session = self._engine.open_session(prompt_ids, namespace)
        self._last_id += 1
        self._sessions[self._last_id] = session
        return self._last_id

    def get(self, session_id: int) -> Session:
        """Returns a session."""
        if session_id not in self._sessions:
            raise UnknownSession("no session has this number", got=session_id)
        return self._sessions[session_id]

    def close(self, session_id: int) -> None:
        """Ends a session; one that is gone already is no error."""
        session = self._sessions.pop(session_id, None)
        if session is not None:
            session.close()


@dataclass(slots=True)
class _Hidden:
    """A session, and which part of a context it holds: tokens `first .. end - 1`."""

    session_id: int
    session: Session
    first: int
    end: int = 0
    tail: bytes = b""
    used_step: int = 0

    def agrees(self, row: SuffixRow) -> bool:
        """Whether it and the row have the same tokens wherever both have any."""
        begin, end = max(self.first, row.start), min(self.end, row.context_length)
        if end - begin < min(TAIL_TOKENS, end - self.first, row.token_ids.shape[0]):
            return False
        held = self.session.context[begin - self.first : end - self.first]
        return np.array_equal(held, row.token_ids[begin - row.start : end - row.start])


class _Found(NamedTuple):
    """The session of a row, and what it grew by."""

    hidden: _Hidden
    added: Tokens


@dataclass(slots=True)
class _Shelf:
    """A namespace's hidden sessions: the longest unused first, and by how they end."""

    hidden: dict[int, _Hidden] = field(default_factory=dict)
    by_end: dict[int, dict[bytes, dict[int, _Hidden]]] = field(default_factory=dict)
    num_steps: int = 0
    left_opens: int = 0
    left_tokens: int = 0

    def begin(self) -> None:
        self.num_steps += 1
        self.left_opens, self.left_tokens = MAX_OPENED, MAX_OPENED_TOKENS

    def pays(self, num_tokens: int) -> bool:
        """Whether so many tokens may still be learned in this step; the first session always is."""
        if self.left_opens < MAX_OPENED and (self.left_opens <= 0 or self.left_tokens < num_tokens):
            return False
        self.left_opens -= 1
        self.left_tokens -= num_tokens
        return True

    def is_free(self, hidden: _Hidden) -> bool:
        """Whether no row of this step has it; one that is gone is forgotten."""
        if not hidden.session.is_open:
            self.remove(hidden)
            return False
        return hidden.used_step < self.num_steps

    def add(self, hidden: _Hidden) -> None:
        hidden.end = hidden.first + hidden.session.context_length
        hidden.tail = hidden.session.context[-TAIL_TOKENS:].tobytes()
        hidden.used_step = self.num_steps
        self.hidden[hidden.session_id] = hidden
        self.by_end.setdefault(hidden.end, {}).setdefault(hidden.tail, {})[hidden.session_id] = hidden

    def remove(self, hidden: _Hidden) -> None:
        del self.hidden[hidden.session_id]
        tails = self.by_end[hidden.end]
        del tails[hidden.tail][hidden.session_id]
        if not tails[hidden.tail]:
            del tails[hidden.tail]
            if not tails:
                del self.by_end[hidden.end]

    def shorter(self, row: SuffixRow) -> Iterator[_Hidden]:
        """Yields sessions that the row may continue, the longest first."""
        below = row.start if row.start else -1
        for end in range(row.context_length, max(below, row.context_length - MAX_ADDED_TOKENS - 1), -1):
            if end in self.by_end:
                num_shared = end - row.start
                tail = row.token_ids[max(0, num_shared - TAIL_TOKENS) : num_shared].tobytes()
                yield from tuple(self.by_end[end].get(tail, {}).values())

    def longer(self, row: SuffixRow) -> Iterator[_Hidden]:
        """Yields sessions that the row may have been cut from, the shortest first."""
        for end in range(row.context_length + 1, row.context_length + MAX_CUT_TOKENS + 1):
            for alike in tuple(self.by_end.get(end, {}).values()):
                yield from tuple(alike.values())


class SuffixBook:
    """Finds or opens the session of each row of a step, brings it up to date and drafts.

    Args:
        engine: whose limits hold.
        sessions: where hidden sessions are kept.
        draft: drafts for sessions: `engine.draft_batch`, or what takes the same and may return errors.
    """

    def __init__(self, engine: Engine, sessions: Sessions, draft: Callable[..., Sequence[Outcome]]) -> None:
        self._engine = engine
        self._sessions = sessions
        self._draft = draft
        self._shelves: dict[str, _Shelf] = {}  # the longest unused first

    @property
    def num_hidden(self) -> int:
        """Sessions that are remembered."""
        return sum(len(shelf.hidden) for shelf in self._shelves.values())

    def draft_step(
        self,
        rows: Sequence[SuffixRow],
        namespace: str,
        total_nodes: int,
        cost_curve: CostCurve | None = None,
    ) -> list[Answer]:
        """Returns an answer for each row; equal histories of steps give equal answers."""
        shelf = self._shelves.pop(namespace, None) or _Shelf()
        self._shelves[namespace] = shelf
        shelf.begin()
        found: list[_Found | RetrievalSpecError | None] = [None] * len(rows)
        # A row takes a session that another one would have to be cut to fit, and none is opened before.
        for find in (self._grown, self._cut, self._opened):
            for index, row in enumerate(rows):
                if found[index] is None:
                    found[index] = self._attempt(find, shelf, row, namespace)
        answers = self._answers(rows, found, total_nodes, cost_curve)
        self._tidy(shelf, namespace)
        return answers

    def close(self) -> None:
        """Ends all hidden sessions, the longest unused first."""
        for shelf in self._shelves.values():
            for hidden in tuple(shelf.hidden.values()):
                self._end(shelf, hidden)
        self._shelves.clear()

    def _attempt(
        self, find: Callable[..., _Found | None], shelf: _Shelf, row: SuffixRow, namespace: str
    ) -> _Found | RetrievalSpecError | None:
        try:
            self._engine.check_context_length(row.context_length)
            return find(shelf, row, namespace)
        except RetrievalSpecError as error:
            return error

    def _grown(self, shelf: _Shelf, row: SuffixRow, namespace: str) -> _Found | None:
        for hidden in shelf.shorter(row):
            if not (shelf.is_free(hidden) and hidden.agrees(row)):
                continue
            if row.start < hidden.first:  # opened again with the whole context, without learning from both
                shelf.remove(hidden)
                hidden.session.discard()
                self._sessions.close(hidden.session_id)
                return None
            added = row.token_ids[hidden.end - row.start :].copy()
            return self._change(shelf, hidden, added, methodcaller("commit", added))
        return None

    def _cut(self, shelf: _Shelf, row: SuffixRow, namespace: str) -> _Found | None:
        for hidden in islice(shelf.longer(row), MAX_COMPARED):
            if not shelf.is_free(hidden) or hidden.first > row.start or not hidden.agrees(row):
                continue
            length = row.context_length - hidden.first
            if not shelf.pays(length):
                return None
            return self._change(shelf, hidden, row.token_ids[:0], methodcaller("truncate", length))
        return None

    def _opened(self, shelf: _Shelf, row: SuffixRow, namespace: str) -> _Found | None:
        if not shelf.pays(row.token_ids.shape[0]):
            return None
        if len(shelf.hidden) >= MAX_HIDDEN and not self._end_oldest(shelf):
            raise LimitExceeded("too many rows in one step", expected=f"<= {MAX_HIDDEN}")
        try:
            session_id = self._sessions.open(row.token_ids.copy(), namespace)
        except LimitExceeded:
            if not self._end_oldest(shelf):
                raise
            session_id = self._sessions.open(row.token_ids.copy(), namespace)
        hidden = _Hidden(session_id, self._sessions.get(session_id), row.start)
        shelf.add(hidden)
        return _Found(hidden, row.token_ids[:0])

    def _change(
        self, shelf: _Shelf, hidden: _Hidden, added: Tokens, change: Callable[[Session], None]
    ) -> _Found:
        shelf.remove(hidden)
        try:
            change(self._sessions.get(hidden.session_id))
        except RetrievalSpecError:  # and the session is unchanged, but shall not be looked at again
            self._sessions.close(hidden.session_id)
            raise
        shelf.add(hidden)
        return _Found(hidden, added)

    def _answers(
        self,
        rows: Sequence[SuffixRow],
        found: Sequence[_Found | RetrievalSpecError | None],
        total_nodes: int,
        cost_curve: CostCurve | None,
    ) -> list[Answer]:
        known = [
            (one.hidden.session, row) for one, row in zip(found, rows, strict=True) if isinstance(one, _Found)
        ]
        caps = [max(0, row.max_nodes) for _, row in known]
        drafts = iter(
            self._draft([session for session, _ in known], total_nodes, caps, cost_curve) if known else ()
        )
        return [
            Answer(one.hidden.session_id, one.added, next(drafts), one.hidden.first)
            if isinstance(one, _Found)
            else Answer(0, row.token_ids[:0], one or self._no_draft(), row.context_length)
            for one, row in zip(found, rows, strict=True)
        ]

    def _no_draft(self) -> DraftTree:
        return DraftTree.empty(self._engine.source_names)

    def _end_oldest(self, shelf: _Shelf) -> bool:
        """Ends the namespace's session unused longest; whether there was one that no row of this step has."""
        oldest = next(iter(shelf.hidden.values()), None)
        if oldest is None or oldest.used_step == shelf.num_steps:
            return False
        self._end(shelf, oldest)
        return True

    def _end(self, shelf: _Shelf, hidden: _Hidden) -> None:
        shelf.remove(hidden)
        self._sessions.close(hidden.session_id)

    def _tidy(self, shelf: _Shelf, own: str) -> None:
        """Ends a few sessions that no row continues any more, and forgets what was ended elsewhere."""
        for hidden in list(islice(shelf.hidden.values(), MAX_ENDED)):
            if hidden.used_step < shelf.num_steps - KEPT_STEPS:
                self._end(shelf, hidden)
        namespace, unused = next(iter(self._shelves.items()))
        for hidden in list(islice(unused.hidden.values(), MAX_OPENED)):
            if not hidden.session.is_open:
                unused.remove(hidden)
        if not unused.hidden:
            del self._shelves[namespace]
        if not shelf.hidden:  # nothing could be opened; the name may be none
            self._shelves.pop(own, None)
