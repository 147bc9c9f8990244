"""Real servers for tests: `python -m tests.service_process ENGINE LISTEN`, and context managers.

The engine is a name of `ENGINES`, or `counting@SIZE` for another vocabulary.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_spec.drafters.session import SessionDrafter
from retrieval_spec.engine import Engine, Limits
from retrieval_spec.service.server import serve, start_server
from tests.fake_drafters import CountingDrafter, TaughtDrafter

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


ENGINES = {"counting": counting_engine, "session": session_engine}


@contextmanager
def server_process(listen: str, engine: str = "counting") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and the address at which it is ready."""
    command = [sys.executable, "-m", "tests.service_process", engine, listen]
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            address = process.stdout.readline().strip()
            assert address, "the server did not start"
            yield process, address
        finally:
            process.kill()


@contextmanager
def server_thread(listen: str, engine: Engine) -> Iterator[str]:
    """A server in a thread of this process, and its address: quick to start, but no process to kill."""
    ready, stopping, loops, addresses = threading.Event(), asyncio.Event(), [], []

    async def main() -> None:
        loops.append(asyncio.get_running_loop())
        server = await start_server(engine, listen)
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
    name, _, size = sys.argv[1].partition("@")
    engine = ENGINES[name](int(size)) if size else ENGINES[name]()
    serve(engine, sys.argv[2], on_ready=lambda address: print(address, flush=True))
