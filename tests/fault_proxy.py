"""A proxy between client and server that misbehaves on command, in a process of its own.

`python -m tests.fault_proxy LISTEN_PATH SERVER_PATH` reads one command a line: `pass`, `slow MS`, `hang`,
`drop`. Slow means that whatever the server says arrives so much later; hang, that nothing passes; drop,
that all connections are reset and new ones closed at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class FaultProxy:
    def __init__(self, server_path: str) -> None:
        self.server_path = server_path
        self.delay_s = 0.0
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.is_dropping = False
        self.writers: set[asyncio.StreamWriter] = set()

    def command(self, line: str) -> None:
        name, _, argument = line.strip().partition(" ")
        self.delay_s = float(argument) / 1e3 if name == "slow" else 0.0
        self.is_dropping = name == "drop"
        (self.is_open.clear if name == "hang" else self.is_open.set)()
        if self.is_dropping:
            for writer in tuple(self.writers):
                writer.transport.abort()

    async def connected(self, reader, writer) -> None:
        try:
            if self.is_dropping:
                return
            far_reader, far_writer = await asyncio.open_unix_connection(self.server_path)
            self.writers |= {writer, far_writer}
            pumps = [self.pump(reader, far_writer, 0.0), self.pump(far_reader, writer, 1.0)]
            await asyncio.gather(*pumps)
        except OSError:
            pass
        finally:
            writer.transport.abort()

    async def pump(self, reader, writer, share_of_delay: float) -> None:
        """Copies one direction; a delay is one of travel, not of capacity."""
        queue: asyncio.Queue = asyncio.Queue()

        async def deliver() -> None:
            while True:
                at, data = await queue.get()
                await asyncio.sleep(max(0.0, at - time.monotonic()))
                await self.is_open.wait()
                if not data:
                    break
                writer.write(data)
                await writer.drain()
            writer.transport.abort()

        task = asyncio.create_task(deliver())
        data = b"-"
        while data:
            try:
                data = await reader.read(65_536)
            except OSError:  # a lost connection raises at once each time, and would never let others run
                data = b""
            queue.put_nowait((time.monotonic() + share_of_delay * self.delay_s, data))
        with contextlib.suppress(OSError):
            await task
        self.writers.discard(writer)


async def main(listen_path: str, server_path: str) -> None:
    proxy = FaultProxy(server_path)
    await asyncio.start_unix_server(proxy.connected, listen_path)
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        proxy.command(line)
        print("done", flush=True)


class Proxy:
    """The proxy as those who use it see it."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process = process
        self.address = address

    def tell(self, command: str) -> None:
        """Changes the fault; it is in force when this returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"


@contextmanager
def fault_proxy(listen_path: str | Path, server_address: str) -> Iterator[Proxy]:
    """A proxy in front of a server on a unix socket."""
    command = [
        sys.executable,
        "-m",
        "tests.fault_proxy",
        str(listen_path),
        server_address.removeprefix("unix:"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield Proxy(process, f"unix:{listen_path}")
        finally:
            process.kill()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
