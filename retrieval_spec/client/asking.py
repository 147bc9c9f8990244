"""One engine step on a server: ask or not, wait or not, open again what it lost; never an exception.

At most one question is under way. What is not answered in time is picked up by a later step, and until
then nothing else is asked.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from retrieval_spec import wire
from retrieval_spec.client.ahead import Foresight
from retrieval_spec.client.breaker import Breaker
from retrieval_spec.client.economy import Move, Policy
from retrieval_spec.client.listening import Overheard, book, remember
from retrieval_spec.client.opening import Opener
from retrieval_spec.client.peer import Peer
from retrieval_spec.client.session import PARKED_S, RemoteSession
from retrieval_spec.client.steps import Counters, Question, Step, ask, fill, proves_health
from retrieval_spec.client.transport import Transport
from retrieval_spec.errors import (
    ContextMismatch,
    InvalidFeedback,
    InvalidInput,
    RetrievalSpecError,
    ServiceUnavailable,
    UnknownSession,
)
from retrieval_spec.tree import DraftTree

logger = logging.getLogger(__name__)

# The server and the client disagree about a session: it is opened again with the whole context.
_LOST = (UnknownSession, ContextMismatch)
_ASKED_AGAIN = (*_LOST, InvalidFeedback)

STALE_S = 1.0
"""A question that is under way for longer is a sign of trouble; waiting for it costs nothing."""

LOST_S = 3.0
"""One that is under way for longer may never be answered: it is asked anew, on another stream."""

_ROUNDS = 3
"""One that is answered, one for sessions that were opened again, one for feedback that was refused."""

LOOK_STEPS = 4
"""So many tokens after an answer that nobody waited for, most drafts are seen to be right or wrong."""

_SENDING_S = 0.0001
"""By then a question has left the process, if nothing else holds the interpreter."""

_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.005, 0.05

_EMPTY = DraftTree.empty()


class Asker:
    """Asks one server. Belongs to one caller at a time."""

    def __init__(
        self,
        peer: Peer,
        transport: Transport,
        breaker: Breaker,
        policy: Policy,
        opener: Opener,
        foresight: Foresight,
        counters: Counters,
        pad_to_nodes: int = 0,
    ) -> None:
        self._pad_to_nodes = pad_to_nodes
        self.counters = counters
        self._foresight = foresight
        self._is_foreseen = False  # whether the step that asked waits for nothing, but the next one does
        self._peer = peer
        self._transport = transport
        self._breaker = breaker
        self._policy = policy
        self._opener = opener
        self._question: Question | None = None
        self._overheard: Overheard | None = None
        self._step_number = 0
        self._latency_s = 0.0
        self._skip_steps = 0
        self._look_s = 0.0

    @property
    def rests(self) -> bool:
        """Whether nothing is to be done in this step, not even to look for an answer."""
        if self._skip_steps:
            self._skip_steps -= 1
            return True
        return self._look_s > 0.0 and time.perf_counter() < self._look_s

    def begin(self, step: Step) -> None:
        """Sends what is to be asked in a step, if anything is."""
        if self._policy.is_probing:
            self._guarded(self._book, step)
        self._guarded(self._begin, step)
        if not step.waits_for_many:
            self._note(step)

    def finish(self, step: Step) -> None:
        """Waits for what was asked, in bounded time, and fills in the trees."""
        if step.waits_for_many:
            self._let_go()
            # While the server works: what came of the last step matters from the next one on.
            self._note(step)
        if step.waits:
            self._guarded(self._finish, step)
        step.timing.end(None if step.deadline_s is None else step.began_s)

    def wake(self) -> None:
        """Notes a new generation, whose drafts may be better."""
        self._policy.opened()
        self._skip_steps = 0

    def greet(self, latency_s: float) -> None:
        """Opens the way to the server, for which the first step waits as far as it must.

        Args:
            latency_s: what another call took just now.
        """
        if self._step_number > 0:
            return
        self._policy.heard(latency_s)
        try:
            self._send_empty()
            self._is_foreseen = True
        except RetrievalSpecError as error:
            self._in_trouble(error)

    def ping(self, timeout_s: float) -> None:
        """Makes a step without sessions.

        Raises:
            RetrievalSpecError: the server does not answer, or not sensibly.
        """
        if self._question is not None:
            self._receive(timeout_s)
        if self._question is None:
            self._send_empty()
        if self._receive(timeout_s) is None:
            raise ServiceUnavailable("no answer in time", expected=f"one within {timeout_s * 1000:.0f} ms")

    def drop(self) -> None:
        """Forgets what is under way; the server may or may not have read it."""
        question, self._question = self._question, None
        self._overheard = None
        self._is_foreseen = False
        self._foresight.forget()
        self._transport.drop()
        if question is not None:
            for session, epoch in zip(question.sessions, question.epochs, strict=True):
                if session.epoch == epoch:
                    session.unheard()

    def _guarded(self, work: Callable[[Step], None], step: Step) -> None:
        try:
            work(step)
        except RetrievalSpecError as error:
            self._in_trouble(error)
        except Exception as error:  # a bug here must not end somebody's generation
            self.counters.bugs += 1
            if self.counters.bugs == 1:
                logger.exception("a draft client failed; generation goes on without")
            self._in_trouble(ServiceUnavailable(f"the client failed ({type(error).__name__})"))

    def _in_trouble(self, error: RetrievalSpecError) -> None:
        self.drop()
        if isinstance(error, InvalidInput):
            self.counters.bad_answers += 1
            self._breaker.struck(error)
        else:
            self.counters.failures += 1
            self._breaker.failed(error)

    def _let_go(self) -> None:
        """Leaves the interpreter to the thread that sends; whatever is done before, the server waits for."""
        if self._question is not None:
            time.sleep(max(0.0, self._question.sent_s + _SENDING_S - time.perf_counter()))

    def _note(self, step: Step) -> None:
        """Books the last step of each session, and lets them know of this one."""
        self._guarded(self._book, step)
        remember(step.sessions, step.trees, step.timing)

    def _book(self, step: Step) -> None:
        book(step.sessions, self._policy, step.began_s)

    def _begin(self, step: Step) -> None:
        if step.total_nodes <= 0 or not self._is_free(step.began_s):
            return
        if not self._breaker.allows:
            self._look_s = step.began_s + _LONGEST_LOOK_S
            if self._breaker.wants_probe:
                self._breaker.probed()
                self.counters.probes += 1
                self._send_empty(wait_for_ready=True)
            return
        move = self._move()
        if move is Move.REST:
            self.counters.rested += 1 + self._skip_steps
            return
        num_lost = self._forget_former_process(step.sessions)
        step.waiting = list(range(len(step.sessions)))
        if move is Move.ASK:
            self.counters.asked += 1
            step.deadline_s = step.began_s + self._policy.limit_s
            step.keep_to(self._policy.max_nodes)
        else:
            self.counters.listened += 1
            self._skip_steps = LOOK_STEPS - 1
            self._reopen(step)
        if move is Move.LISTEN or not num_lost:  # lost ones are opened first, to share the nodes with
            foreseen = self._foresight.tree_for(step) if move is Move.ASK else None
            self._send(step)
            if foreseen is not None:
                step.trees[0] = foreseen
                step.waiting.clear()
                self._is_foreseen = True

    def _is_free(self, now_s: float) -> bool:
        """Takes in the answer to an earlier question; whether nothing is under way now."""
        question = self._question
        if question is None:
            return True
        was_foreseen = self._is_foreseen
        outcomes = self._receive(self._policy.limit_s if was_foreseen else 0.0)
        if outcomes is None:
            self._is_foreseen = False  # so long nobody waits again
            if self._breaker.allows and now_s - question.sent_s > STALE_S:
                self._breaker.failed(ServiceUnavailable("the draft server does not answer"))
                self._breaker.probed()  # the question itself is the probe
            elif now_s - question.sent_s > LOST_S:
                self.drop()
                self._breaker.failed(ServiceUnavailable("an answer was lost"))
            # Ever less often, so that an answer that never comes costs nothing to speak of.
            gap_s = (now_s - question.sent_s) / 4
            self._look_s = now_s + min(max(gap_s, _SHORTEST_LOOK_S), _LONGEST_LOOK_S)
            return False
        self._look_s = 0.0
        if question.sessions and not was_foreseen:
            trees = [outcome if isinstance(outcome, DraftTree) else _EMPTY for outcome in outcomes]
            known = zip(question.sessions, question.epochs, question.lengths, trees, strict=True)
            self._overheard = Overheard(self._latency_s, list(known))
        return True

    def _move(self) -> Move:
        if self._overheard is not None:
            if not self._overheard.judge(self._policy):
                self._skip_steps = LOOK_STEPS - 1
                return Move.REST
            self._overheard = None
        move = self._policy.plan()
        if move is Move.REST:
            self._skip_steps = self._policy.rest()
        return move

    def _forget_former_process(self, sessions: Sequence[RemoteSession]) -> int:
        """Loses what a former process held; returns how many sessions the server does not hold."""
        seen, num_lost = self._peer.incarnation_seen, 0
        for session in sessions:
            if session.incarnation != seen and not session.is_lost:
                self._lose(session)
            num_lost += session.is_lost
        return num_lost

    def _finish(self, step: Step) -> None:
        """Takes the answer, opens again what the server lost, and asks once more for those."""
        for _ in range(_ROUNDS):
            if self._question is not None and not self._take(step, self._question):
                return
            if not step.waiting:
                break
            self._reopen(step)
            self._send(step)
            if self._question is None:
                break
        self.counters.answered += len(step.waiting) < len(step.sessions)

    def _take(self, step: Step, question: Question) -> bool:
        outcomes = self._receive(step.left_s)
        if outcomes is None:
            self.counters.missed += 1
            self._breaker.struck(ServiceUnavailable("no answer in time"))
            return False
        fill(step, question, outcomes, _ASKED_AGAIN)
        return True

    def _reopen(self, step: Step) -> None:
        lost = [step.sessions[index] for index in step.waiting if step.sessions[index].is_lost]
        if lost:
            # The others wait too, and have their questions yet to ask.
            share_s = max(step.left_s, 0.0) / (2 if len(lost) < len(step.sessions) else 1)
            _warn(self._opener.reopen(lost, time.perf_counter() + share_s))

    def _lose(self, session: RemoteSession) -> None:
        session.lose()
        self.counters.reopened += 1

    def _send(self, step: Step) -> None:
        sessions, left_nodes = step.sessions, step.left_nodes
        indices = []
        for index in step.waiting:
            session = sessions[index]
            if session.cutting is not None:
                self._end_cut(session, step)
            if session.cutting is None and not session.is_lost:
                indices.append(index)
        if not indices or left_nodes <= 0:
            return
        request = self._new_request()
        request.step.pad_to_nodes = self._pad_to_nodes
        self._question = ask(request.step, step, indices, left_nodes)
        if step.deadline_s is not None:
            self._foresight.ask(request, self._question)
        self._transport.send(request)

    def _send_empty(self, *, wait_for_ready: bool = False) -> None:
        request = self._new_request()
        self._question = Question(time.perf_counter(), [], [], [], [], [], 0)
        self._transport.send(request, wait_for_ready=wait_for_ready)

    def _new_request(self) -> Any:
        request = self._transport.new_request()
        self._step_number += 1
        request.step.step_number = self._step_number
        request.step.incarnation = self._peer.incarnation_seen
        return request

    def _end_cut(self, session: RemoteSession, step: Step) -> None:
        """Waits until the server has cut a session that it was told to cut."""
        try:
            session.cutting.result(timeout=max(0.0, step.left_s))
            session.cutting = None
        except grpc.FutureTimeoutError:
            pass
        except (grpc.RpcError, grpc.FutureCancelledError):
            self._lose(session)

    def _receive(self, timeout_s: float) -> list[wire.Outcome] | None:
        """Returns what the question under way brought, and tells the sessions; None if it is still under way.

        Raises:
            RetrievalSpecError: the server was lost, or its answer is no good.
        """
        question = self._question
        assert question is not None
        answer = self._transport.receive(timeout_s)
        if answer is None:
            return None
        if self._pad_to_nodes:
            wire.unpad(answer.result)
        outcomes = self._peer.read(answer.result, question.caps, question.total_nodes)
        self._question = None
        self._is_foreseen = False
        if question.sessions:
            self._latency_s = answer.at_s - question.sent_s
            self._policy.heard(self._latency_s)
        if proves_health(outcomes) or not self._breaker.allows:
            self._breaker.succeeded()
        self._tell(question, outcomes)
        return outcomes

    def _tell(self, question: Question, outcomes: list[wire.Outcome]) -> None:
        refused = []
        known = zip(question.sessions, question.epochs, question.lengths, outcomes, strict=True)
        for session, epoch, length, outcome in known:
            if session.epoch != epoch:
                continue
            if isinstance(outcome, DraftTree):
                session.arrived(length)
            elif isinstance(outcome, InvalidFeedback):  # of a server that came back with other sources
                session.unheard()
                session.forget_feedback()
            elif isinstance(outcome, _LOST):
                self._lose(session)
            else:
                session.park()
                refused.append(outcome)
        _warn(refused)


def _warn(refused: Sequence[RetrievalSpecError]) -> None:
    if refused:
        text = "%d session(s) without drafts for %.0f s: %s"
        logger.warning(text, len(refused), PARKED_S, str(refused[0])[:300])
