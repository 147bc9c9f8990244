"""Drafting ahead on streams: while a target decides, trees for the likely outcomes go to who asked for them.

It is work that nobody has asked for yet. So it is done in small pieces between which the event loop serves
all others, ends when the stream's next message comes, and takes a bounded share of the time, of the
server's and of each tenant's.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any

from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.errors import UnknownSession
from retrieval_spec.service.sessions import SessionTable
from retrieval_spec.service.steps import Answered
from retrieval_spec.session import Session
from retrieval_spec.tree import DraftTree, Tokens
from retrieval_spec.v1 import draft_pb2 as pb

MAX_CONTEXT_TOKENS = 32_768
"""Of longer contexts the automaton is copied for too long: others wait for it."""

SERVER_SHARE, TENANT_SHARE = 0.5, 0.25
"""Of the time of the event loop."""
SETTLE_S = 0.002
"""By then the answer has reached who waits for it: where cores are few, that work would delay it."""
MOST_CREDIT_S = 0.05
"""What may be done at once after a time without."""
_MAX_TENANTS = 1_024

_END = object()

Drafted = tuple[Tokens, DraftTree]
Piece = Callable[[], Drafted | None]


class Pushed:
    """Outcomes of a step, and the trees for them.

    Attributes:
        commits: the outcomes, as columns.
    """

    def __init__(self, drafted: Sequence[Drafted]) -> None:
        self._drafted = drafted
        self.commits = frozenset([wire.token_bytes(outcome) for outcome, _ in drafted])

    def message(self, result: pb.DraftStepResult) -> pb.DraftStreamResponse:
        """Returns what follows an answer."""
        response = pb.DraftStreamResponse()
        trees = response.ahead.trees
        trees.step_number, trees.incarnation = result.step_number, result.incarnation
        wire.write_ahead(response.ahead, *zip(*self._drafted, strict=True))
        return response


class Arrivals:
    """The messages of a stream, and whether one has come that was not read yet. Belongs to its task."""

    def __init__(self, messages: AsyncIterator[Any]) -> None:
        self._messages = messages
        self._next: asyncio.Task[Any] | None = None

    def __aiter__(self) -> Arrivals:
        return self

    async def __anext__(self) -> Any:
        if self._next is None:
            return await anext(self._messages)
        reading, self._next = self._next, None
        message = await reading
        if message is _END:
            raise StopAsyncIteration
        return message

    @property
    def has_next(self) -> bool:
        """Whether a message, or the end, has come; reads on without being waited for."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._read())
        return self._next.done()

    def close(self) -> None:
        """Stops reading."""
        if self._next is not None and not self._next.cancel() and not self._next.cancelled():
            self._next.exception()  # which nobody asks for any more

    async def _read(self) -> Any:
        return await anext(self._messages, _END)


class Task:
    """What is to be drafted ahead after one answer.

    Args:
        session: that was drafted for.
        tree: the answer.
        max_nodes: of each tree, as asked.
        cost_curve: that the step followed.
        max_outcomes: how many were asked for.
    """

    def __init__(
        self,
        session: Session,
        tree: DraftTree,
        max_nodes: int,
        cost_curve: CostCurve | None,
        max_outcomes: int,
    ) -> None:
        self._session = session
        self._length = session.context_length
        self._tree = tree
        self._max_nodes = max_nodes
        self._cost_curve = cost_curve
        self._max_outcomes = max_outcomes

    @property
    def is_current(self) -> bool:
        """Whether the session is where it was."""
        return self._session.is_open and self._session.context_length == self._length

    def pieces(self) -> Iterator[Piece]:
        """Yields what is to be done, each in about the time of one draft."""
        if self._length > MAX_CONTEXT_TOKENS or self._max_nodes <= 0:
            return
        lookahead = self._session.look_ahead()
        outcomes: list[Tokens] = []

        def look() -> None:
            outcomes.extend(lookahead.outcomes(self._tree, self._max_outcomes))

        def draft(outcome: Tokens) -> Drafted | None:
            tree = lookahead.draft(outcome, self._max_nodes, self._cost_curve)
            return None if tree is None else (outcome, tree)

        yield look
        for outcome in outcomes:
            yield partial(draft, outcome)


class Allowance:
    """Time that fills up with the clock and is spent."""

    def __init__(self, share: float, now_s: float) -> None:
        self._share = share
        self._left_s = MOST_CREDIT_S
        self._seen_s = now_s

    def left_s(self, now_s: float) -> float:
        """Returns what may be spent now; what was spent too much counts."""
        self._left_s = min(self._left_s + self._share * (now_s - self._seen_s), MOST_CREDIT_S)
        self._seen_s = now_s
        return self._left_s

    def spend(self, seconds: float) -> None:
        """Takes so much away."""
        self._left_s -= seconds


class Ahead:
    """Drafts ahead for all streams of a server. Belongs to its event loop.

    Attributes:
        steps: looked ahead of.
        messages: that were sent.
        trees: in them.
        cancelled: steps whose next message came first.
        refused: steps without time left.
        hits: commits that had been among the outcomes sent.
        seconds: spent.
    """

    def __init__(
        self,
        sessions: SessionTable,
        max_outcomes: int,
        clock: Callable[[], float] = time.perf_counter,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._sessions = sessions
        self._max_outcomes = max_outcomes
        self._clock = clock
        self._settle_s = settle_s
        self._of_server = Allowance(SERVER_SHARE, clock())
        self._of_tenants: dict[str, Allowance] = {}
        self.steps = self.messages = self.trees = self.cancelled = self.refused = self.hits = 0
        self.seconds = 0.0

    async def after(
        self, request: pb.DraftStreamRequest, answered: Answered, owner: str, arrivals: Arrivals
    ) -> Pushed | None:
        """Returns what is to be sent after an answer, if anything is."""
        tree = answered.only_tree()
        if tree is None or request.step.pad_to_nodes > 0:
            return None
        session_id = answered.columns.session_ids[0]
        try:
            session = self._sessions.get(session_id, owner)
        except UnknownSession:  # closed while the answer was on its way
            return None
        task = Task(
            session,
            tree,
            min(answered.columns.max_nodes[0], request.step.total_nodes),
            self._sessions.followed([session_id], owner),
            min(request.ahead_outcomes, self._max_outcomes),
        )
        drafted = await self.draft(task, owner, arrivals)
        return Pushed(drafted) if drafted else None

    async def draft(self, task: Task, owner: str, arrivals: Arrivals) -> list[Drafted]:
        """Returns the likely outcomes and their trees; none if the next message comes before that is done."""
        try:
            return await self._draft(task, owner, arrivals)
        finally:
            self.steps += 1

    async def _draft(self, task: Task, owner: str, arrivals: Arrivals) -> list[Drafted]:
        found: list[Drafted] = []
        num_bytes = 0
        await asyncio.sleep(self._settle_s)
        for work in task.pieces():
            if not self._has_time(owner):
                self.refused += 1
                break
            await asyncio.sleep(0)  # whoever waits goes first
            if arrivals.has_next or not task.is_current:
                self.cancelled += 1
                return []
            drafted = self._timed(work, owner)
            if drafted is not None:
                num_bytes += wire.ahead_bytes(*drafted)
                if num_bytes > wire.MAX_AHEAD_BYTES:
                    break
                found.append(drafted)
        self.messages += len(found) > 0
        self.trees += len(found)
        return found

    def _has_time(self, owner: str) -> bool:
        now_s = self._clock()
        if len(self._of_tenants) > _MAX_TENANTS:
            self._of_tenants.clear()
        of_tenant = self._of_tenants.get(owner)
        if of_tenant is None:
            of_tenant = self._of_tenants[owner] = Allowance(TENANT_SHARE, now_s)
        return self._of_server.left_s(now_s) > 0 and of_tenant.left_s(now_s) > 0

    def _timed(self, work: Piece, owner: str) -> Drafted | None:
        begin_s = self._clock()
        drafted = work()
        seconds = self._clock() - begin_s
        self.seconds += seconds
        self._of_server.spend(seconds)
        self._of_tenants[owner].spend(seconds)
        return drafted
