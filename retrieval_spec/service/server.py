"""The life of a server process: bind, warm up, serve, keep house, drain. Holds no calls."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from retrieval_spec import wire
from retrieval_spec.engine import Engine
from retrieval_spec.feedback import Feedback
from retrieval_spec.limits import Limits
from retrieval_spec.service.admin import Administration
from retrieval_spec.service.beside import Beside, num_cores
from retrieval_spec.service.config import ON_THIS_MACHINE, ServerConfig
from retrieval_spec.service.frames import FrameListener
from retrieval_spec.service.history import HistoryKeeper
from retrieval_spec.service.listen import (
    TcpListener,
    UnixListener,
    expect_safe,
    listener,
    split_address,
    warn_if_open,
)
from retrieval_spec.service.meter import Meter
from retrieval_spec.service.metrics import MetricsListener, Sources
from retrieval_spec.service.peers import peers
from retrieval_spec.service.pulse import BEAT_S, STALL_S, HealthListener, Pulse, Watchdog
from retrieval_spec.service.registration import register
from retrieval_spec.service.servicer import Servicer
from retrieval_spec.service.tls import credentials
from retrieval_spec.service.traces import trace_interceptors
from retrieval_spec.shelf import Shelf
from retrieval_spec.tree import Tokens, as_tokens
from retrieval_spec.v1 import draft_pb2 as pb

logger = logging.getLogger(__name__)

SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["DraftService"].full_name

_HANDSHAKE_TIMEOUT_MS = 10_000
_HOUSEKEEPING_S = 1.0
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def _options(limits: Limits) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.so_reuseport", 0),  # else two servers share a port, and each forgets the other's sessions
        ("grpc.max_concurrent_streams", limits.max_streams + 64),  # the servicer says why more are refused
        ("grpc.server_handshake_timeout_ms", _HANDSHAKE_TIMEOUT_MS),
        ("grpc.max_connection_idle_ms", limits.max_stream_idle_s * 1_000),
        ("grpc.keepalive_time_ms", 30_000),  # finds clients whose machine is gone
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
    )


class DraftServer:
    """A running server; `start_server` makes one. Belongs to one event loop."""

    def __init__(
        self, engine: Engine, place: TcpListener | UnixListener, config: ServerConfig = ON_THIS_MACHINE
    ) -> None:
        self._config = config
        self._credentials = credentials(config)
        self._servicer = Servicer(engine, peers(config))
        self._place = place
        expect_safe(place, config)
        warn_if_open(place, config)
        self._health = health.aio.HealthServicer()
        interceptors = trace_interceptors() if config.traces else []
        self._server = grpc.aio.server(options=_options(engine.limits), interceptors=interceptors)
        self._pulse = Pulse()
        self._frames = FrameListener(self._servicer, config.frames) if config.frames is not None else None
        self._around: list[Beside | Watchdog | HealthListener | MetricsListener] = []
        self._housekeeping: asyncio.Task[None] | None = None
        self.health_address: str | None = None
        self.metrics_address: str | None = None

    @property
    def servicer(self) -> Servicer:
        """What answers its calls."""
        return self._servicer

    @property
    def address(self) -> str:
        """Where clients find it, such as `127.0.0.1:50051`, the port never 0."""
        return self._place.address

    @property
    def frames_address(self) -> str | None:
        """Where it is asked without gRPC."""
        return None if self._frames is None else self._frames.address

    async def start(self) -> None:
        """Listens and answers health checks, compiles the kernels, then takes sessions."""
        if self._config.history is not None:
            self._servicer.history = HistoryKeeper.open(self._servicer.engine, self._config)
        register(self._servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        await self._report(_NOT_SERVING)
        self._place.bind(self._bind)
        self._listen_around()
        if num_cores() > 1:
            self._around.append(Beside(self._servicer.engine))
        await self._server.start()
        self._place.publish()
        if self._frames is not None:
            await self._frames.start()
        # Compiling takes seconds; the loop goes on answering health checks meanwhile.
        await asyncio.to_thread(warm_up, self._servicer)
        self._servicer.meter = Meter()  # the warm-up was nobody's traffic
        if self._servicer.history is not None:
            self._servicer.history.start()
        self._servicer.accepts_sessions = True
        self._pulse.beat()
        self._pulse.is_ready = True
        self._housekeeping = asyncio.create_task(self._keep_house())
        await self._report(_SERVING)

    async def stop(self, grace_s: float | None = None) -> None:
        """Refuses new sessions, lets calls under way finish for up to `grace_s`, then ends."""
        self._pulse.is_ready = False
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        await self._health.enter_graceful_shutdown()
        self._servicer.end_streams()
        grace_s = self._config.grace_s if grace_s is None else grace_s
        await self._server.stop(grace_s)
        if self._frames is not None:
            await self._frames.stop(grace_s)
        if self._servicer.history is not None:
            await self._servicer.history.stop()
        for beside in self._around:
            beside.stop()
        self._place.remove()

    def _bind(self, address: str) -> int:
        if self._credentials is None:
            return int(self._server.add_insecure_port(address))
        return int(self._server.add_secure_port(address, self._credentials))

    def _listen_around(self) -> None:
        """Starts what tells of the server's state from threads of its own."""
        watchdog = Watchdog(self._pulse)
        watchdog.start()
        self._around.append(watchdog)
        if self._config.health_address is not None:
            split_address(self._config.health_address)
            checks = HealthListener(self._pulse, ("", SERVICE_NAME))
            self.health_address = checks.start(self._config.health_address)
            self._around.append(checks)
        if self._config.metrics_address is not None:
            metrics = MetricsListener(Sources(self._servicer, self._pulse), self._config.metrics_address)
            self.metrics_address = metrics.address
            self._around.append(metrics)

    async def _keep_house(self) -> None:
        """Shows that the loop moves, and drops what nobody uses any more."""
        reported, calm_from_s, due_s = _SERVING, 0.0, 0.0
        while True:
            await asyncio.sleep(BEAT_S)
            now_s = time.monotonic()
            if self._pulse.beat():
                calm_from_s = now_s + STALL_S
            status = _NOT_SERVING if now_s < calm_from_s else _SERVING
            if status != reported:
                await self._report(status)
                reported = status
            if self._servicer.history is not None:
                self._servicer.history.tick()
            if now_s >= due_s:
                due_s = now_s + _HOUSEKEEPING_S
                self._servicer.peers.refresh()
                self._servicer.end_idle_streams()
                while self._servicer.sessions.drop_idle():
                    await asyncio.sleep(0)

    async def _report(self, status: int) -> None:
        for name in ("", SERVICE_NAME):
            await self._health.set(name, status)


async def start_server(engine: Engine, listen: str, config: ServerConfig = ON_THIS_MACHINE) -> DraftServer:
    """Returns a server that is ready for sessions, in the running event loop.

    Raises:
        InvalidRequest: a malformed address, or one that lets anybody in; files that cannot be used.
        ServiceUnavailable: the address is taken.
    """
    server = DraftServer(engine, listener(listen), config)
    try:
        await server.start()
    except BaseException:
        await server.stop(grace_s=0)
        raise
    return server


def serve(
    engine: Engine,
    listen: str,
    on_ready: Callable[[str], None] | None = None,
    config: ServerConfig = ON_THIS_MACHINE,
    shelf: Shelf | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Args:
        engine: answers the calls.
        listen: `unix:/path/to.sock`, or `host:port` (port 0 takes a free one).
        on_ready: called with the address once sessions can be opened.
        config: who may connect and what is told of the server's state.
        shelf: the engine's datastores, if they may change; nobody else should keep them.

    Raises:
        InvalidRequest: a malformed address, or one that lets anybody in; files that cannot be used.
        ServiceUnavailable: the address is taken.
    """
    asyncio.run(_serve(shelf or Shelf(engine), listen, on_ready or (lambda address: None), config))


async def _serve(shelf: Shelf, listen: str, on_ready: Callable[[str], None], config: ServerConfig) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Only the main thread may handle signals; elsewhere the caller stops the loop.
        with contextlib.suppress(RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = await start_server(shelf.engine, listen, config)
    administration = Administration(server.servicer, shelf, config)
    try:
        await administration.start()
        if not stopping.is_set():
            logger.info("serving at %s", server.address)
            for what, address in (
                ("steps in frames", server.frames_address),
                ("health checks", server.health_address),
                ("metrics", server.metrics_address),
                ("changes to datastores", administration.address),
            ):
                if address is not None:
                    logger.info("%s at %s", what, address)
            on_ready(server.address)
        await stopping.wait()
        logger.info("draining")
    finally:
        await administration.stop()
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
        length = prompt.size
        # The second commit is judged by the first draft; the third one is done at once.
        for tokens, told in ((commit, feedback), (commit, feedback), (commit[:2], None)):
            step, result = pb.DraftStep(), pb.DraftStepResult()
            rows = [wire.SessionStep(session_id, length, tokens, 8, told) for session_id in ids]
            wire.write_step(step, rows, total_nodes=8)
            servicer.answer(step, result)
            length += tokens.size
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
