"""Answers engine steps: all rows at once where nothing is unusual, else row by row."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from retrieval_spec import wire
from retrieval_spec.budget import CostCurve
from retrieval_spec.engine import Engine, Stepped
from retrieval_spec.errors import RetrievalSpecError, UnknownSession
from retrieval_spec.service.bugs import internal_error
from retrieval_spec.service.meter import Meter
from retrieval_spec.service.sessions import SessionTable, random_id
from retrieval_spec.session import Session
from retrieval_spec.tree import DraftTree, Tokens
from retrieval_spec.v1 import draft_pb2 as pb

logger = logging.getLogger(__name__)


class Answered(NamedTuple):
    """A step and what it came to.

    Attributes:
        columns: the question.
        outcomes: the answer to each row, or all trees where each row has one.
        seconds: that it took.
    """

    columns: wire.StepColumns
    outcomes: Sequence[wire.Outcome] | Stepped
    seconds: float

    def only_tree(self) -> DraftTree | None:
        """Returns the tree, if one session was asked about and drafted."""
        if len(self.columns.session_ids) != 1:
            return None
        outcomes = self.outcomes
        only = outcomes.forest.trees([()])[0] if isinstance(outcomes, Stepped) else outcomes[0]
        return only if isinstance(only, DraftTree) else None

    def note_in(self, meter: Meter) -> None:
        """Notes what was answered, and how long it took."""
        ids, commits = self.columns.session_ids, self.columns.commit_lengths
        if isinstance(self.outcomes, Stepped):
            meter.drafted(zip(ids, commits, self.outcomes.forest.counts, strict=True), self.seconds)
        else:
            meter.answered(ids, commits, self.outcomes, self.seconds)


class StepDesk:
    """Answers steps whose rows name their sessions. Belongs to one event loop.

    Attributes:
        incarnation: random number of this server process.
    """

    def __init__(self, engine: Engine, sessions: SessionTable) -> None:
        self._engine = engine
        self._sessions = sessions
        self.incarnation = random_id()

    def answer(self, step: pb.DraftStep, result: pb.DraftStepResult, owner: str) -> Answered:
        """Answers one engine step of the owner's sessions, and returns what it came to.

        Raises:
            InvalidRequest: the step's columns do not fit each other, or its cost curve is none.
            LimitExceeded: more sessions than may be open.
        """
        begin_s = time.perf_counter()
        columns = wire.read_columns(step, self._engine.limits.max_sessions)
        tokens = wire.read_commits(step, columns)
        rows = wire.read_step(step, columns, tokens) if step.feedback else None
        result.step_number, result.incarnation = step.step_number, self.incarnation
        outcomes: Sequence[wire.Outcome] | Stepped = ()
        if columns.session_ids:
            outcomes = self._outcomes(step, columns, tokens, rows, owner)
            if isinstance(outcomes, Stepped):
                wire.write_forest(result, outcomes.forest)
            else:
                wire.write_result(result, outcomes)
            if step.pad_to_nodes > 0:
                wire.pad(result, self._padded(step, columns))
        return Answered(columns, outcomes, time.perf_counter() - begin_s)

    def tend(self, answered: Answered) -> None:
        """Does what nobody waits for: learns, notes use, and tends to who is due; some may be gone."""
        ids, outcomes = answered.columns.session_ids, answered.outcomes
        if isinstance(outcomes, Stepped):
            self._afterwards(ids, partial(self._engine.learn, outcomes))
            self._sessions.note_use(ids)
            for at in outcomes.due:
                self._afterwards([ids[at]], partial(self._tend, ids[at]))

    def _tend(self, session_id: int) -> None:
        with suppress(UnknownSession):
            self._sessions.get(session_id).tend()

    def _afterwards(self, session_ids: Sequence[int], work: Callable[[], object]) -> None:
        try:
            work()
        except Exception as error:
            internal_error(error)
            self._sessions.give_up(session_ids)  # something may be half done

    def _outcomes(
        self,
        step: pb.DraftStep,
        columns: wire.StepColumns,
        tokens: Tokens,
        rows: list[wire.SessionStep] | None,
        owner: str,
    ) -> Sequence[wire.Outcome] | Stepped:
        if step.incarnation not in (0, self.incarnation):
            gone = UnknownSession("the session belonged to an earlier server process", remedy="open it again")
            return [gone] * len(columns.session_ids)
        cost_curve = self._cost_curve(step, columns.session_ids, owner)
        total_nodes = max(0, step.total_nodes)
        if step.pad_to_nodes > 0:
            total_nodes = min(total_nodes, self._padded(step, columns))
        if rows is None:
            done = self._at_once(columns, tokens, total_nodes, cost_curve, owner)
            if done is not None:
                return done
            rows = wire.read_step(step, columns, tokens)
        return self._row_by_row(rows, total_nodes, cost_curve, owner)

    def _padded(self, step: pb.DraftStep, columns: wire.StepColumns) -> int:
        return min(step.pad_to_nodes, self._engine.limits.max_nodes) * len(columns.session_ids)

    def _cost_curve(self, step: pb.DraftStep, session_ids: Sequence[int], owner: str) -> CostCurve | None:
        """Returns the curve that a step follows: its own, or what its sessions were told before."""
        if not step.HasField("cost_curve"):
            return self._sessions.followed(session_ids, owner)
        cost_curve = wire.read_cost_curve(step)
        self._sessions.follow(session_ids, cost_curve, owner)
        return cost_curve

    def _at_once(
        self,
        columns: wire.StepColumns,
        tokens: Tokens,
        total_nodes: int,
        cost_curve: CostCurve | None,
        owner: str,
    ) -> Sequence[wire.Outcome] | Stepped | None:
        seats = self._sessions.seats(columns.session_ids, owner)
        if seats is None:
            return None
        try:
            return self._engine.step_batch(seats, *columns[1:], tokens, total_nodes, cost_curve)
        except Exception as error:
            self._sessions.give_up(columns.session_ids)  # what a kernel was doing may be half done
            return [internal_error(error)] * len(columns.session_ids)

    def _row_by_row(
        self, rows: list[wire.SessionStep], total_nodes: int, cost_curve: CostCurve | None, owner: str
    ) -> list[wire.Outcome]:
        errors: dict[int, RetrievalSpecError] = {}
        sessions: list[Session] = []
        caps: list[int] = []
        for index, row in enumerate(rows):
            advanced = self._advance(row, owner)
            if isinstance(advanced, Session):
                sessions.append(advanced)
                caps.append(row.max_nodes)
            else:
                errors[index] = advanced
        outcomes = self.draft(sessions, total_nodes, caps, cost_curve)
        for index, error in errors.items():  # in rising order, so each lands in its own place
            outcomes.insert(index, error)
        return outcomes

    def _advance(self, row: wire.SessionStep, owner: str) -> Session | RetrievalSpecError:
        try:
            session = self._sessions.get(row.session_id, owner)
            session.expect(row.context_length)
            session.commit(row.commit, row.feedback)
            return session
        except RetrievalSpecError as error:
            return error
        except Exception as error:
            self._sessions.close(row.session_id)  # a cursor may have stopped half-way
            return internal_error(error)

    def draft(
        self, sessions: list[Session], total_nodes: int, caps: list[int], cost_curve: CostCurve | None
    ) -> list[wire.Outcome]:
        """Returns a tree or an error for each session."""
        if not sessions:
            return []
        try:
            return list(self._engine.draft_batch(sessions, total_nodes, caps, cost_curve))
        except Exception:
            logger.debug("a step failed as a whole")
        # One of them fails, so each is asked alone: the others must not pay for it.
        share = total_nodes // len(sessions)
        return [
            _draft_alone(session, min(cap, share), cost_curve)
            for session, cap in zip(sessions, caps, strict=True)
        ]


def _draft_alone(
    session: Session, max_nodes: int, cost_curve: CostCurve | None
) -> DraftTree | RetrievalSpecError:
    try:
        return session.draft(max_nodes, cost_curve)
    except RetrievalSpecError as error:
        return error
    except Exception as error:
        return internal_error(error)
