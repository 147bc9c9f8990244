"""What is asked in a step, and what came of it: records without any decision."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.client.session import RemoteSession, Timing
from retrieval_spec.tree import DraftTree
from retrieval_spec.v1.draft_pb2 import DraftStep

MANY_SESSIONS = 8
"""Booking so many takes longer than waking up once more."""


@dataclass(slots=True)
class Counters:
    """What a client did and met so far.

    Attributes:
        asked: questions that a step waited for.
        answered: those that were answered in time.
        missed: those that were not.
        listened: questions that no step waited for.
        rested: steps that asked nothing, because drafts did not pay.
        probes: empty questions to a server in trouble.
        bad_answers: answers that were dropped because something was wrong with them.
        failures: lost connections and refusals.
        reopened: sessions that were lost by the server and opened again.
        bugs: exceptions that should not have been; the log has them.
        ahead_received: messages with drafts ahead that were looked at.
        ahead_dropped: those that were not, because they came late, twice, unasked or malformed.
        foreseen: questions whose answer was among them.
    """

    asked: int = 0
    answered: int = 0
    missed: int = 0
    listened: int = 0
    rested: int = 0
    probes: int = 0
    bad_answers: int = 0
    failures: int = 0
    reopened: int = 0
    bugs: int = 0
    ahead_received: int = 0
    ahead_dropped: int = 0
    foreseen: int = 0


class Question(NamedTuple):
    """What was asked, to make sense of the answer; columns over the sessions that it is about."""

    sent_s: float
    indices: list[int]
    sessions: list[RemoteSession]
    epochs: list[int]
    lengths: list[int]
    caps: list[int]
    total_nodes: int


@dataclass(slots=True)
class Step:
    """A step of some sessions.

    Attributes:
        trees: the drafts, one for each session.
        began_s: on the clock of `time.perf_counter`.
        deadline_s: until when it may wait; None if it waits for nothing.
        waiting: the sessions, by their indices, of which neither a draft nor a refusal has come.
        timing: what sessions remember of it.
    """

    sessions: Sequence[RemoteSession]
    max_nodes: Sequence[int]
    total_nodes: int
    cost_curve: CostCurve | None
    trees: list[DraftTree]
    began_s: float
    deadline_s: float | None = None
    waiting: list[int] = field(default_factory=list)
    timing: Timing = field(default_factory=Timing)

    def keep_to(self, max_nodes: int) -> None:
        """Asks for no more nodes than so many for each session."""
        if max_nodes < max(self.max_nodes):
            self.max_nodes = [min(cap, max_nodes) for cap in self.max_nodes]
        self.total_nodes = min(self.total_nodes, max_nodes * len(self.sessions))

    @property
    def waits(self) -> bool:
        """Whether an answer is waited for."""
        return self.deadline_s is not None and bool(self.waiting)

    @property
    def waits_for_many(self) -> bool:
        """Whether that is about many sessions."""
        return self.waits and len(self.sessions) >= MANY_SESSIONS

    @property
    def left_nodes(self) -> int:
        """Nodes that may still be drafted."""
        if len(self.waiting) == len(self.sessions):
            return self.total_nodes
        return self.total_nodes - sum(map(len, self.trees))

    @property
    def left_s(self) -> float:
        """How long it may still wait."""
        return (self.deadline_s or 0.0) - time.perf_counter()


def ask(message: DraftStep, step: Step, indices: list[int], total_nodes: int) -> Question:
    """Writes the question about some sessions of a step, which is then under way."""
    sessions, epochs, lengths, caps = [], [], [], []
    ids, held, sizes, tokens, must_tell = [], [], [], [], False
    # One look at each session: they lie in no cache, and for few of them each loop more would be felt.
    for row, index in enumerate(indices):
        session, cap = step.sessions[index], step.max_nodes[index]
        commit = session.tail(session.server_length)
        sessions.append(session)
        epochs.append(session.epoch)
        lengths.append(session.context_length)
        caps.append(cap if cap < total_nodes else total_nodes)
        ids.append(session.server_id)
        held.append(session.server_length)
        sizes.append(len(commit))
        tokens += commit
        # Feedback is about one step: beside the tokens of several it would be about the wrong root.
        if session.feedback is not None and session.feedback_begin == session.server_length:
            wire.write_feedback(message.feedback.add(session_index=row), session.feedback)
        # Nearly always it is the same curve, and comparing the points of two takes long.
        if session.told_curve is not step.cost_curve or not session.is_curve_known:
            must_tell = must_tell or session.must_tell(step.cost_curve)
        session.sent_length = session.context_length
    columns = wire.StepColumns(ids, held, sizes, caps)
    wire.write_columns(message, columns, wire.number_bytes(tokens), total_nodes)
    if must_tell:
        _tell_curve(message, sessions, step.cost_curve)
    return Question(time.perf_counter(), indices, sessions, epochs, lengths, caps, total_nodes)


def _tell_curve(message: DraftStep, sessions: Sequence[RemoteSession], cost_curve: CostCurve | None) -> None:
    wire.write_cost_curve(message, cost_curve)
    for session in sessions:
        session.tell(cost_curve)


def fill(
    step: Step,
    question: Question,
    outcomes: Sequence[wire.Outcome],
    asked_again: tuple[type[Exception], ...],
) -> None:
    """Puts drafts where they belong; sessions whose errors are of the last kind go on waiting."""
    if len(outcomes) == len(step.trees) and {*map(type, outcomes)} == {DraftTree}:
        step.trees[:], step.waiting = outcomes, []  # type: ignore[assignment]  # as nearly always
        return
    settled = set()
    for index, outcome in zip(question.indices, outcomes, strict=True):
        if isinstance(outcome, DraftTree):
            step.trees[index] = outcome
            settled.add(index)
        elif not isinstance(outcome, asked_again):
            settled.add(index)
    step.waiting = [index for index in step.waiting if index not in settled]


def proves_health(outcomes: Sequence[wire.Outcome]) -> bool:
    """Whether some session got what it asked for: after a bad answer, sessions must be opened again first."""
    return not outcomes or DraftTree in map(type, outcomes)
