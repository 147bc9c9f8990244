"""A server on a network that loses, repeats, delays and confuses messages.

gRPC over a socket does none of that; proxies, restarts and bugs do. Faults are set for the next message by
name, or come by chance.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from retrieval_spec.client import asking, breaker
from retrieval_spec.engine import Engine
from retrieval_spec.errors import ServiceUnavailable
from retrieval_spec.service import server
from retrieval_spec.service.peers import ANYBODY
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.v1 import draft_pb2 as pb
from tests.service_process import server_thread

FAULTS = (
    "question lost",
    "answer lost",
    "connection lost",
    "repeated",
    "old one repeated",
    "late",
    "answer to another question",
)
LATE_S = 0.05


class LossyServicer(Servicer):
    """The real servicer behind faults; streams alone, which is what clients use."""

    latest: LossyServicer

    def __init__(self, engine, peers):
        super().__init__(engine, peers)
        self.next_fault = ""
        self.share = 0.0
        self.faults = FAULTS
        self.chosen = random.Random(0)
        self.old = pb.DraftStep()
        self.made: Counter[str] = Counter()
        self.num_opened = 0
        LossyServicer.latest = self

    def open_session(self, request, owner=ANYBODY):
        self.num_opened += 1
        return super().open_session(request, owner)

    async def DraftStream(self, request_iterator, context):
        async for request in request_iterator:
            if request.ended:
                self.end_all(request.ended)
                continue
            response = pb.DraftStreamResponse()
            fault = self.fault_of(request.step)
            if fault == "connection lost":
                await self.refuse(context, ServiceUnavailable("lost"))
            if fault == "late":
                await asyncio.sleep(self.chosen.random() * LATE_S)
            if fault == "repeated":
                self.answer(request.step, pb.DraftStepResult())
            if fault == "old one repeated":
                self.answer(self.old, pb.DraftStepResult())
            if fault != "question lost":
                self.answer(request.step, response.result)
                self.old.CopyFrom(request.step)
            if fault == "answer to another question":
                response.result.step_number -= 1
            if fault not in ("question lost", "answer lost"):
                yield response

    def fault_of(self, step):
        """What happens to this message."""
        if not step.session_ids:
            return ""
        fault, self.next_fault = self.next_fault, ""
        if not fault and self.chosen.random() < self.share:
            fault = self.chosen.choice(self.faults)
        self.made[fault] += bool(fault)
        return fault

    def restart(self):
        """What a client sees of a server that was started again."""
        self.desk.incarnation ^= 1
        self.refresh_info()
        for session_id in tuple(self.sessions._entries):
            self.sessions.close(session_id)

    def lose_a_session(self):
        for session_id in tuple(self.sessions._entries)[:1]:
            self.sessions.close(session_id)


@contextmanager
def lossy_server(listen: str, engine: Engine) -> Iterator[tuple[LossyServicer, str]]:
    """The servicer, and where it listens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "Servicer", LossyServicer)
        with server_thread(listen, engine) as address:
            yield LossyServicer.latest, address


@contextmanager
def without_pauses() -> Iterator[None]:
    """Lets clients ask again at once after a failure: what is tested is the outcome."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asking, "STALE_S", 0.02)
        patch.setattr(asking, "LOST_S", 0.04)
        patch.setattr(asking, "_LONGEST_LOOK_S", 0.005)
        patch.setattr(breaker, "FIRST_PAUSE_S", 0.001)
        patch.setattr(breaker, "LONGEST_PAUSE_S", 0.001)
        yield
