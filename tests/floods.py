"""Clients that flood a server, each in a process of its own: `python -m tests.floods KIND ADDRESS`.

A line on standard input says how many requests or connections to make; what came of them is a line of JSON.
"""

from __future__ import annotations

import json
import random
import select
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from retrieval_spec import wire
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import DraftServiceStub

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["DraftService"].full_name
METHODS = (
    "Draft",
    "OpenSession",
    "TruncateSession",
    "CloseSession",
    "GetInfo",
    "GetProjection",
    "DraftSuffixes",
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
HANGING = (
    "silent",
    "half a preface",
    "preface alone",
    "half a frame",
    "garbage",
    "half-closed",
    "settings without end",
    "closed at once",
)
MUTATED_AT_ONCE, OPENS_AT_ONCE = 50, 20
Report = dict[str, int]


def column(values):
    return np.array(values, "<i4").tobytes()


def step_of(session_id, length, commit=(), max_nodes=16):
    step = pb.DraftStep()
    row = wire.SessionStep(session_id, length, np.array(commit, np.int32), max_nodes)
    wire.write_step(step, [row], max_nodes)
    return step


def mutated(rng: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(rng.randint(1, 6)):
        kind, at = rng.randrange(4), rng.randrange(len(data) or 1)
        if kind == 0 and data:
            data[at] = rng.randrange(256)
        elif kind == 1:
            data[at:at] = rng.randbytes(rng.randint(1, 9))
        elif kind == 2:
            del data[at : at + rng.randint(1, 9)]
        else:
            data[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80"))
    return bytes(data)


def messages_of(session_id: int) -> dict[str, Any]:
    feedback = pb.SessionFeedback(
        node_token_ids=column([2, 3]),
        node_parents=column([-1, 0]),
        topk_ids=column([3, 4, 5, 6]),
        topk_logprobs=np.array([-1, -2, -1, -2], "<f4").tobytes(),
        phrase_length=2,
        phrases=column([1, 2]),
    )
    step = step_of(session_id, 2, [4, 5])
    step.feedback.append(feedback)
    step.cost_curve.node_counts, step.cost_curve.costs = column([0, 1]), np.array([1.0, 1.3], "<f8").tobytes()
    return {
        "Draft": pb.DraftRequest(step=step),
        "OpenSession": pb.OpenSessionRequest(prompt_token_ids=column([1, 2]), namespace="garbage"),
        "TruncateSession": pb.TruncateSessionRequest(session_id=session_id, context_length=2, kept_length=1),
        "CloseSession": pb.CloseSessionRequest(session_id=session_id, commit_token_ids=column([7])),
        "DraftSuffixes": pb.DraftSuffixesRequest(
            namespace="garbage",
            context_lengths=np.array([9, 2], "<i8").tobytes(),
            suffix_lengths=column([3, 2]),
            suffix_token_ids=column([1, 2, 3, 4, 5]),
            max_nodes=column([4, 4]),
            total_nodes=8,
        ),
        "GetInfo": pb.GetInfoRequest(),
        "GetProjection": pb.GetProjectionRequest(),
    }


def hang(path: str, kind: str) -> socket.socket:
    """Returns a connection that does one of the things that no client should."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    if kind == "half a preface":
        connection.send(PREFACE[:9])
    elif kind == "preface alone":
        connection.send(PREFACE)
    elif kind == "half a frame":
        connection.send(PREFACE + SETTINGS + b"\x00\x40\x00\x00\x00\x00\x00\x00\x01" + b"x" * 100)
    elif kind == "garbage":
        connection.send(bytes(range(256)) * 4)
    elif kind == "half-closed":
        connection.send(PREFACE + SETTINGS)
        connection.shutdown(socket.SHUT_WR)
    elif kind == "settings without end":
        connection.send(PREFACE + SETTINGS * 2_000)
    elif kind == "closed at once":
        connection.close()
    return connection


def _mutated_requests(address: str) -> Iterator[Report]:
    """Sends requests with bytes changed, a good many of which are none any more."""
    rng = random.Random(len(address))
    with grpc.insecure_channel(address) as channel:
        opened = DraftServiceStub(channel).OpenSession(pb.OpenSessionRequest(namespace="garbage"))
        messages = {name: m.SerializeToString() for name, m in messages_of(opened.session_id).items()}
        calls = {name: channel.unary_unary(f"/{SERVICE_NAME}/{name}") for name in METHODS}
        for count in _wanted():
            codes: Counter[str] = Counter()
            for _ in range(0, count, MUTATED_AT_ONCE):
                names = [rng.choice(METHODS) for _ in range(MUTATED_AT_ONCE)]
                sent = [calls[name].future(mutated(rng, messages[name]), timeout=60) for name in names]
                codes.update(answer.code().name for answer in sent)
            yield dict(codes)


def _opens(address: str) -> Iterator[Report]:
    """Opens sessions and closes none."""
    with grpc.insecure_channel(address) as channel:
        open_session = DraftServiceStub(channel).OpenSession
        request = pb.OpenSessionRequest(prompt_token_ids=bytes(400), namespace="flood")
        for count in _wanted():
            codes: Counter[str] = Counter()
            for begin in range(0, count, OPENS_AT_ONCE):
                sent = [
                    open_session.future(request, timeout=60) for _ in range(min(OPENS_AT_ONCE, count - begin))
                ]
                codes.update(answer.code().name for answer in sent)
            yield dict(codes)


def _steps(address: str) -> Iterator[Report]:
    """Asks for drafts of a session of its own, a crowd of calls at a time."""
    with grpc.insecure_channel(address) as channel:
        stub = DraftServiceStub(channel)
        prompt = column([1, 2, 3, 4] * 50)
        opened = stub.OpenSession(pb.OpenSessionRequest(prompt_token_ids=prompt, namespace="crowd"))
        request = pb.DraftRequest(step=step_of(opened.session_id, 200))
        for count in _wanted():
            codes: Counter[str] = Counter()
            for _ in range(0, count, MUTATED_AT_ONCE):
                sent = [stub.Draft.future(request, timeout=60) for _ in range(MUTATED_AT_ONCE)]
                codes.update(answer.code().name for answer in sent)
            yield dict(codes)


def _connections(address: str) -> Iterator[Report]:
    """Makes connections that hang, so many of each kind; those made before are closed."""
    for count in _wanted():
        opened = [hang(address.removeprefix("unix:"), kind) for _ in range(count) for kind in HANGING]
        yield {"connections": len(opened)}
        for connection in opened:
            with suppress(OSError):
                connection.close()


KINDS: dict[str, Callable[[str], Iterator[Report]]] = {
    "mutated": _mutated_requests,
    "opens": _opens,
    "connections": _connections,
    "steps": _steps,
}


def _wanted() -> Iterator[int]:
    return map(int, sys.stdin)


class Flood:
    """A flood that goes on when it is told to."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def begin(self, count: int) -> None:
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()

    def has_ended(self) -> bool:
        """Whether `end` would return at once."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def end(self) -> Report:
        """Waits for what `begin` began, and returns what came of it."""
        return json.loads(self._process.stdout.readline())


@contextmanager
def flood(kind: str, address: str) -> Iterator[Flood]:
    """A flooding client in a process of its own."""
    command = [sys.executable, "-m", "tests.floods", kind, address]
    root = Path(__file__).resolve().parent.parent
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, cwd=root, **pipes) as process:
        try:
            assert json.loads(process.stdout.readline()) == "ready"
            yield Flood(process)
        finally:
            process.kill()


if __name__ == "__main__":
    print(json.dumps("ready"), flush=True)
    for report in KINDS[sys.argv[1]](sys.argv[2]):
        print(json.dumps(report), flush=True)
