"""A real server process for tests: `python -m tests.service_process LISTEN` and a context manager."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from retrieval_spec.engine import Engine, Limits
from retrieval_spec.service.server import serve
from tests.fake_drafters import CountingDrafter

VOCAB_SIZE = 70_000
LIMITS = Limits(max_context_tokens=250_000, max_nodes=64, max_sessions=80)


def toy_engine() -> Engine:
    drafters = {"half": CountingDrafter(VOCAB_SIZE, 0.5), "sure": CountingDrafter(VOCAB_SIZE, 0.875)}
    return Engine(VOCAB_SIZE, drafters, limits=LIMITS)


@contextmanager
def server_process(listen: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server in a process of its own, and the address at which it is ready."""
    command = [sys.executable, "-m", "tests.service_process", listen]
    root = Path(__file__).resolve().parent.parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            address = process.stdout.readline().strip()
            assert address, "the server did not start"
            yield process, address
        finally:
            process.kill()


if __name__ == "__main__":
    serve(toy_engine(), sys.argv[1], on_ready=lambda address: print(address, flush=True))
