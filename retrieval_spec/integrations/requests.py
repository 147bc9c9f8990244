"""The sessions of a host that names its requests, which come, grow and go.

Knows no host; what it asks of a request is its length and its tokens from some position on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from retrieval_spec.client.interface import DraftSession, TokenIds
from retrieval_spec.integrations.source import HostDrafts
from retrieval_spec.tree import DraftTree

TAIL_TOKENS = 16
"""So many tokens before the new ones must be those that the session ends with."""

RETRY_STEPS = 64
"""A request whose session was refused goes so many steps without."""

_EMPTY = DraftTree.empty()


class Request(NamedTuple):
    """A request in one step.

    Attributes:
        name: tells it from all others that are there.
        length: tokens of its context.
        tokens_from: position -> the tokens from there to the end.
    """

    name: Hashable
    length: int
    tokens_from: Callable[[int], TokenIds]


@dataclass(slots=True)
class _Held:
    """What is held for a request: its session, if it has one, and how far that goes."""

    session: DraftSession | None
    length: int
    tail: list[int]
    used_step: int
    retry_step: int = 0


class RequestBook:
    """Sessions by the names of a host's requests. Belongs to one thread.

    Args:
        drafts: where sessions are opened and asked.
        kept_steps: a request that has not come for so many steps has ended, where the host does not say so;
            None where it does.
    """

    def __init__(self, drafts: HostDrafts, kept_steps: int | None = None) -> None:
        self._drafts = drafts
        self._kept_steps = kept_steps
        self._held: dict[Hashable, _Held] = {}  # the longest unused first
        self._step = 0

    @property
    def names(self) -> Collection[Hashable]:
        """Requests that something is held for."""
        return self._held.keys()

    def draft(self, requests: Sequence[Request], max_nodes: int) -> list[DraftTree]:
        """Returns one tree a request, at most `max_nodes` nodes each, in one question; never raises."""
        self._step += 1
        trees = [_EMPTY] * len(requests)
        sessions: list[DraftSession] = []
        asked: list[int] = []
        for index, request in enumerate(requests):
            session = self._up_to_date(request)
            if session is not None:
                sessions.append(session)
                asked.append(index)
        drafted = self._drafts.draft_sessions(sessions, max_nodes)
        if drafted is None:
            self.close()
            return trees
        for index, tree in zip(asked, drafted, strict=True):
            trees[index] = tree
        self._end_unused()
        return trees

    def warn(self, error: Exception) -> None:
        """Says once what costs drafts."""
        self._drafts.warn(error)

    def leave(self, names: Iterable[Hashable], last: Iterable[Request | None] = ()) -> None:
        """Ends requests, which teach; those that are not held are none. `last` are those that grew since."""
        for request in last:
            if request is not None and request.name in self._held:
                self._up_to_date(request)
        for name in names:
            held = self._held.pop(name, None)
            if held is not None and held.session is not None:
                self._drafts.end(held.session)

    def close(self) -> None:
        """Ends all of them."""
        self.leave(list(self._held))

    def _up_to_date(self, request: Request) -> DraftSession | None:
        """Returns the request's session with all its tokens; None if it has none."""
        held = self._held.pop(request.name, None)
        if held is None or not self._has_grown(held, request):
            held = self._opened(request, held)
        held.used_step = self._step
        self._held[request.name] = held
        return held.session

    def _has_grown(self, held: _Held, request: Request) -> bool:
        """Whether the request still begins with what its session holds; the session grows then."""
        if held.session is None:
            return self._step < held.retry_step
        shown = np.asarray(request.tokens_from(held.length - len(held.tail))).tolist()
        news = shown[len(held.tail) :]
        if request.length < held.length or shown[: len(held.tail)] != held.tail:
            return False
        if news and not self._drafts.commit(held.session, news):
            return False
        held.length, held.tail = request.length, shown[-TAIL_TOKENS:]
        return True

    def _opened(self, request: Request, held: _Held | None) -> _Held:
        if held is not None and held.session is not None:
            self._drafts.end(held.session)
        context = np.asarray(request.tokens_from(0))
        session = self._drafts.open(context)
        tail = context[-TAIL_TOKENS:].tolist()
        return _Held(session, request.length, tail, self._step, self._step + RETRY_STEPS)

    def _end_unused(self) -> None:
        if self._kept_steps is not None:
            oldest = self._step - self._kept_steps
            self.leave([name for name, held in self._held.items() if held.used_step < oldest])
