"""The life of a server process: bind, warm up, serve, drain. Holds no drafting logic and no calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from retrieval_spec import wire
from retrieval_spec.engine import Engine
from retrieval_spec.feedback import Feedback
from retrieval_spec.service.listen import TcpListener, UnixListener, listener
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.tree import Tokens, as_tokens
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.v1.draft_pb2_grpc import add_DraftServiceServicer_to_server

logger = logging.getLogger(__name__)

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["DraftService"].full_name
GRACE_S = 2.0
"""How long a stopping server waits for calls under way."""

_OPTIONS = (
    ("grpc.max_receive_message_length", wire.MAX_MESSAGE_BYTES),
    ("grpc.so_reuseport", 0),  # else two servers share a port, and each forgets the other's sessions
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class DraftServer:
    """A running server; `start_server` makes one. Belongs to one event loop."""

    def __init__(self, engine: Engine, place: TcpListener | UnixListener) -> None:
        self._servicer = Servicer(engine)
        self._place = place
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=_OPTIONS)

    @property
    def address(self) -> str:
        """Where clients find it, such as `127.0.0.1:50051`, the port never 0."""
        return self._place.address

    async def start(self) -> None:
        """Listens and answers health checks, compiles the kernels, then takes sessions."""
        add_DraftServiceServicer_to_server(self._servicer, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._report(_NOT_SERVING)
        self._place.bind(self._server.add_insecure_port)
        await self._server.start()
        self._place.publish()
        # Compiling takes seconds; the loop goes on answering health checks meanwhile.
        await asyncio.to_thread(warm_up, self._servicer)
        self._servicer.accepts_sessions = True
        await self._report(_SERVING)

    async def stop(self, grace_s: float = GRACE_S) -> None:
        """Refuses new sessions, lets calls under way finish for up to `grace_s`, then ends."""
        await self._health.enter_graceful_shutdown()
        self._servicer.end_streams()
        await self._server.stop(grace_s)
        self._place.remove()

    async def _report(self, status: int) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


async def start_server(engine: Engine, listen: str) -> DraftServer:
    """Returns a server that is ready for sessions, in the running event loop.

    Raises:
        InvalidRequest: a malformed address.
        ServiceUnavailable: the address is taken.
    """
    server = DraftServer(engine, listener(listen))
    try:
        await server.start()
    except BaseException:
        await server.stop(grace_s=0)
        raise
    return server


def serve(engine: Engine, listen: str, on_ready: Callable[[str], None] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Args:
        engine: answers the calls.
        listen: `unix:/path/to.sock`, or `host:port` (port 0 takes a free one).
        on_ready: called with the address once sessions can be opened.

    Raises:
        InvalidRequest: a malformed address.
        ServiceUnavailable: the address is taken.
    """
    asyncio.run(_serve(engine, listen, on_ready or (lambda address: None)))


async def _serve(engine: Engine, listen: str, on_ready: Callable[[str], None]) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Only the main thread may handle signals; elsewhere the caller stops the loop.
        with contextlib.suppress(RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = await start_server(engine, listen)
    try:
        if not stopping.is_set():
            logger.info("serving at %s", server.address)
            on_ready(server.address)
        await stopping.wait()
    finally:
        await server.stop()


def warm_up(servicer: Servicer) -> None:
    """Drafts through all layers, with the array types of real calls: every kernel gets compiled."""
    servicer.engine.warm_up()
    vocab_size = servicer.info.vocab_size
    prompt = as_tokens([token % vocab_size for token in (0, 1, 2, 0, 1)], vocab_size)
    # Long, and without much repetition, so that growing structures grow.
    commit = as_tokens([token * token % 997 % vocab_size for token in range(1_000)], vocab_size)
    feedback = _feedback(servicer.engine, prompt[-1:])
    for _ in range(2):  # the second time, sources draft from what they learned when the first sessions closed
        ids = [_open(servicer, wire.token_bytes(prompt)) for _ in range(2)]
        for length in (
            prompt.size,
            prompt.size + commit.size,
        ):  # the second commit is judged by the first draft
            step, result = pb.DraftStep(), pb.DraftStepResult()
            rows = [wire.SessionStep(session_id, length, commit, 8, feedback) for session_id in ids]
            wire.write_step(step, rows, total_nodes=8)
            servicer.answer(step, result)
        for session_id in ids:
            servicer.close(session_id)


def _feedback(engine: Engine, root: Tokens) -> Feedback:
    """Returns what a verifier tells of a step without drafts, as far as a source wants it."""
    topk = np.arange(min(engine.wanted_topk, engine.vocab_size), dtype=np.int32)[None]
    state = np.zeros(engine.state_dimensions, np.float32)
    return Feedback(root, np.array([-1], np.int32), topk, np.full(topk.shape, -1, np.float32), state)


def _open(servicer: Servicer, prompt: bytes) -> int:
    request = pb.OpenSessionRequest(prompt_token_ids=prompt, namespace="warm-up")
    return servicer.open_session(request).session_id
