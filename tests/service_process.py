"""Real servers for tests: `python -m tests.service_process ENGINE LISTEN CONFIG`, and context managers.

The engine is a name of `ENGINES`; `counting@SIZE` and `default@SIZE` have another vocabulary. CONFIG is JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine, Limits
from retrieval_spec.limits import MIB
from retrieval_spec.service.config import ON_THIS_MACHINE, ServerConfig
from retrieval_spec.service.logs import write_json_logs
from retrieval_spec.service.server import DraftServer, serve, start_server
from tests.fake_drafters import CountingDrafter, TaughtDrafter
from tests.warm_processes import WarmProcess, start

VOCAB_SIZE = 70_000
LIMITS = Limits(max_context_tokens=250_000, max_nodes=64, max_sessions=80)


def counting_engine(vocab_size: int = VOCAB_SIZE) -> Engine:
    """Drafts that can be predicted by hand: the last token plus 1, plus 2, ..."""
    drafters = {"half": CountingDrafter(vocab_size, 0.5), "sure": CountingDrafter(vocab_size, 0.875)}
    return Engine(vocab_size, drafters, limits=LIMITS)


def session_engine() -> Engine:
    """Real trees of two sources."""
    drafters = {
        "session": SessionDrafter.open(vocab_size=VOCAB_SIZE),
        "counting": CountingDrafter(VOCAB_SIZE, 0.375),
        "taught": TaughtDrafter(),
    }
    return Engine(VOCAB_SIZE, drafters, limits=LIMITS)


def default_engine(vocab_size: int = VOCAB_SIZE) -> Engine:
    """What a server drafts from unless it is told otherwise."""
    return Engine(vocab_size)


def capped_engine() -> Engine:
    """Few sessions, and little patience."""
    limits = Limits(max_sessions=1_004, max_tenant_sessions=1_000, max_stream_idle_s=2)
    return Engine(VOCAB_SIZE, limits=limits)


def roomy_engine() -> Engine:
    """Sessions for a few clients."""
    return Engine(VOCAB_SIZE, limits=Limits(max_sessions=204, max_tenant_sessions=200))


def soaked_engine() -> Engine:
    """Budgets that are full soon."""
    limits = Limits(max_sessions=300, max_tenant_sessions=300, max_learned_bytes=16 * MIB, max_idle_s=2)
    return Engine(VOCAB_SIZE, limits=limits)


ENGINES = {
    "counting": counting_engine,
    "session": session_engine,
    "default": default_engine,
    "capped": capped_engine,
    "roomy": roomy_engine,
    "soaked": soaked_engine,
}


def frames_of(listen: str) -> str:
    """Where a server of a test takes frames, beside its unix socket `s.sock`; no path may be long."""
    return f"{listen.removesuffix('s.sock')}f.sock"


def way(transport: str, listen: str) -> str:
    """What a client is told of a transport."""
    return frames_of(listen) if transport == "frames" else transport


@contextmanager
def server_process(
    listen: str, engine: str = "counting", log: IO[str] | None = None, **config: Any
) -> Iterator[tuple[WarmProcess, str]]:
    """A server in a process of its own, and the address at which it is ready; what it says goes to `log`."""
    with start("tests.service_process", engine, listen, json.dumps(config), stderr=log) as process:
        try:
            address = process.stdout.readline().strip()
            assert address, "the server did not start"
            yield process, address
        finally:
            process.end()


@contextmanager
def server_thread(
    listen: str,
    engine: Engine,
    config: ServerConfig = ON_THIS_MACHINE,
    servers: list[DraftServer] | None = None,
) -> Iterator[str]:
    """A server in a thread of this process, and its address: quick to start, but no process to kill."""
    ready, stopping, loops, addresses = threading.Event(), asyncio.Event(), [], []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        server = await start_server(engine, listen, config)
        if servers is not None:
            servers.append(server)
        addresses.append(server.address)
        ready.set()
        await stopping.wait()
        await server.stop(grace_s=0)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(60), "the server did not start"  # kernels may have to be compiled
        yield addresses[0]
    finally:
        loops[0].call_soon_threadsafe(stopping.set)
        thread.join(10)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    write_json_logs()
    name, _, size = sys.argv[1].partition("@")
    engine = ENGINES[name](int(size)) if size else ENGINES[name]()
    config = ServerConfig(**json.loads(sys.argv[3]))
    serve(engine, sys.argv[2], lambda address: print(address, flush=True), config)
