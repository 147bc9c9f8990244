"""Whether the event loop moves, told by threads of their own: they can say so while it hangs.

Knows clocks, threads and the health protocol; nothing of drafts.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from retrieval_spec.errors import ServiceUnavailable

logger = logging.getLogger(__name__)

STALL_S = 1.0
"""An event loop that did not move for so long is not serving."""

BEAT_S = 0.1
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Pulse:
    """What the event loop says of itself, for other threads.

    Attributes:
        is_ready: between the warm-up and the drain.
        num_stalls: times that the loop hung.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_s = clock()
        self._thread_id = threading.get_ident()
        self.is_ready = False
        self.num_stalls = 0

    def beat(self) -> bool:
        """Notes that the loop moves; returns whether it had hung."""
        had_hung = self.lag_s > STALL_S
        self._beat_s = self._clock()
        self._thread_id = threading.get_ident()
        return had_hung

    @property
    def lag_s(self) -> float:
        """Seconds since the loop moved last."""
        return self._clock() - self._beat_s

    @property
    def is_serving(self) -> bool:
        """Whether sessions can be opened and are answered now."""
        return self.is_ready and self.lag_s <= STALL_S

    def stack(self) -> str:
        """Returns where the loop's thread stands: places in the code, no values."""
        frame = sys._current_frames().get(self._thread_id)
        return "".join(traceback.format_stack(frame)) if frame else "its thread is gone"


class Watchdog:
    """A thread that logs when and where the event loop hangs."""

    def __init__(self, pulse: Pulse) -> None:
        self._pulse = pulse
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="retrieval-spec-watchdog", daemon=True)

    def start(self) -> None:
        """Begins to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()

    def _watch(self) -> None:
        is_told = False
        while not self._stopping.wait(STALL_S / 2):
            hangs = self._pulse.is_ready and not self._pulse.is_serving
            if hangs and not is_told:
                self._pulse.num_stalls += 1
                logger.error("the event loop hangs, at\n%s", self._pulse.stack())
            is_told = hangs


class HealthListener(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Answers health checks at an address of its own, from threads of its own, and nothing else."""

    def __init__(self, pulse: Pulse, names: tuple[str, ...]) -> None:
        self._pulse = pulse
        self._names = names
        threads = ThreadPoolExecutor(2, thread_name_prefix="retrieval-spec-health")
        options = (("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 4_096))
        self._server = grpc.server(threads, options=options, maximum_concurrent_rpcs=64)
        health_pb2_grpc.add_HealthServicer_to_server(self, self._server)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: D102 - the protocol says it
        if request.service not in self._names:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        status = _SERVING if self._pulse.is_serving else _NOT_SERVING
        return health_pb2.HealthCheckResponse(status=status)

    def start(self, address: str) -> str:
        """Listens at `host:port`; returns the address, the port never 0.

        Raises:
            ServiceUnavailable: it is taken.
        """
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ServiceUnavailable(
                "cannot listen for health checks", got=address, remedy="choose another address"
            ) from error
        self._server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    def stop(self) -> None:
        """Ends it at once."""
        self._server.stop(0)
