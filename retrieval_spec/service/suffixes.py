"""Answers steps of hosts that name no sessions: rows are found by what stands in them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from retrieval_spec import wire
from retrieval_spec.engine import Engine
from retrieval_spec.service.meter import Meter
from retrieval_spec.service.sessions import SessionTable
from retrieval_spec.suffixes import SuffixBook, SuffixRow
from retrieval_spec.v1 import draft_pb2 as pb

MAX_ROWS = 1_024
"""Rows of one step."""


class SuffixDesk:
    """Hidden sessions of all namespaces. Belongs to one event loop."""

    def __init__(
        self, engine: Engine, sessions: SessionTable, draft: Callable[..., Sequence[wire.Outcome]]
    ) -> None:
        self._limits = engine.limits
        self._sessions = sessions
        self._book = SuffixBook(engine, sessions, draft)

    def answer(
        self, request: pb.DraftSuffixesRequest, namespace: str, info: pb.ServerInfo, meter: Meter
    ) -> pb.DraftSuffixesResponse:
        """Answers one engine step of a namespace, and counts it.

        Raises:
            InvalidRequest: columns do not fit each other, or the cost curve is none.
            LimitExceeded: too many rows.
        """
        began_s = time.perf_counter()
        suffixes = wire.read_suffixes(request, min(MAX_ROWS, self._limits.max_sessions))
        cost_curve = wire.read_cost_curve(request) if request.HasField("cost_curve") else None
        padded = min(max(request.pad_to_nodes, 0), self._limits.max_nodes) * len(suffixes)
        total_nodes = max(0, min(request.total_nodes, padded) if padded else request.total_nodes)
        rows = [SuffixRow(*suffix) for suffix in suffixes]
        num_opened = self._sessions.num_opened
        answers = self._book.draft_step(rows, namespace, total_nodes, cost_curve)
        response = pb.DraftSuffixesResponse(info=info if self._sessions.num_opened > num_opened else None)
        response.result.incarnation = info.incarnation
        outcomes = [answer.outcome for answer in answers]
        wire.write_result(response.result, outcomes)
        wire.write_missing(response, [answer.missing_tokens for answer in answers])
        if padded:
            wire.pad(response.result, padded)
        ids, commits = [one.session_id for one in answers], [len(one.added) for one in answers]
        meter.answered(ids, commits, outcomes, time.perf_counter() - began_s)
        return response
