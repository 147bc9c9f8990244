"""Processes that start warm: `python -m MODULE` in a fork of a process that imported the slow packages.

What differs from a process of its own is only what an import does, and that is done once for all of them:
whatever it says on stderr fails them. Tests of what a start imports, or takes, start Python itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
_SLOW = (
    "grpc_health.v1.health",
    "grpc_reflection.v1alpha.reflection",
    "pyarrow",
    "tokenizers",
    "tqdm",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.tokenization_utils_tokenizers",
    "retrieval_spec.commands.demo",
    "retrieval_spec.commands.serve",
    "retrieval_spec.service.server",
    "retrieval_spec.verifier.generation",
)
_MAX_REQUEST_BYTES = 1 << 20
_START_TIMEOUT_S = 280.0  # all kernels may have to be compiled, beside other work


class WarmProcess:
    """What tests use of `subprocess.Popen`, for a fork of the warm one."""

    def __init__(self, pid: int, status: int, stdout: IO[str]) -> None:
        self.pid, self.stdout = pid, stdout
        self.returncode: int | None = None
        self._status = status

    def poll(self) -> int | None:
        """How it ended, or None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """How it ended: an exit code, or minus the signal that ended it."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a warm process", timeout or 0.0)
            self.returncode = int(os.read(self._status, 16))
            os.close(self._status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Sends a signal unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def end(self, within_s: float = 10.0) -> None:
        """Has it end as it would for an operator, so that what its end does is run, and measured, too."""
        self.terminate()
        try:
            self.wait(within_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, exception: object, *_: object) -> None:
        if exception is not None:
            self.kill()
        self.stdout.close()
        self.wait()


def start(
    module: str,
    *arguments: object,
    stderr: IO[str] | None = None,
    cwd: Path = ROOT,
    environment: Mapping[str, str] | None = None,
) -> WarmProcess:
    """Starts `python -m MODULE ARGUMENTS`, or `python -c CODE ARGUMENTS`, with its output in a pipe."""
    read_end, write_end = os.pipe()
    status_read, status_write = os.pipe()
    request = {
        "module": module,
        "arguments": [str(argument) for argument in arguments],
        "cwd": str(cwd),
        "environment": dict(os.environ if environment is None else environment),
    }
    stderr_fd = 2 if stderr is None else stderr.fileno()
    warm = _warm_process()
    try:
        socket.send_fds(warm, [json.dumps(request).encode()], [write_end, stderr_fd, status_write])
    finally:
        os.close(write_end)
        os.close(status_write)
    pid = int(warm.recv(16))
    return WarmProcess(pid, status_read, os.fdopen(read_end, encoding="utf-8"))


def run(module: str, *arguments: object, cwd: Path = ROOT, timeout_s: float = 120.0) -> Any:
    """Does what `start` does to its end: returns what `subprocess.run` would."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
        with start(module, *arguments, stderr=stderr, cwd=cwd) as process:
            timer = time.monotonic() + timeout_s
            stdout = _read_until(process, timer)
            returncode = process.wait(max(0.0, timer - time.monotonic()))
        stderr.seek(0)
        return subprocess.CompletedProcess([module, *arguments], returncode, stdout, stderr.read())


def _read_until(process: WarmProcess, deadline_s: float) -> str:
    parts: list[bytes] = []
    while True:
        if not select.select([process.stdout], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
            process.kill()
            raise subprocess.TimeoutExpired("a warm process", deadline_s)
        part = os.read(process.stdout.fileno(), 1 << 16)
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


@functools.cache
def _warm_process() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONWARNINGS": "default", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "tests.warm_processes", str(theirs.fileno())]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said, theirs:
        process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], cwd=ROOT, env=environment, stderr=said
        )
        atexit.register(process.wait)
        atexit.register(ours.close)  # its sign to end; called first
        theirs.close()
        ours.settimeout(_START_TIMEOUT_S)
        is_ready = ours.recv(16) == b"ready"
        said.seek(0)
        assert said.read() == "", "imports say something"
        assert is_ready
    return ours


# In the warm process


def _serve(requests: socket.socket) -> None:
    """Forks for every request; returns in the forks alone, and when nobody asks any more."""
    wakeup_read, wakeup_write = os.pipe()
    for end in (wakeup_read, wakeup_write):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    statuses: dict[int, int] = {}
    requests.send(b"ready")
    while True:
        ready, _, _ = select.select([requests, wakeup_read], [], [])
        if wakeup_read in ready:
            os.read(wakeup_read, 1 << 12)
            _reap(statuses)
        if requests in ready:
            message, fds, _, _ = socket.recv_fds(requests, _MAX_REQUEST_BYTES, 3)
            if not message:
                sys.exit()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for fd in (wakeup_read, wakeup_write, requests.detach(), *statuses.values()):
                    os.close(fd)
                _become(json.loads(message), *fds)
                return
            statuses[pid] = fds.pop()
            for fd in fds:
                os.close(fd)
            requests.send(str(pid).encode())


def _reap(statuses: dict[int, int]) -> None:
    while statuses:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        fd = statuses.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(fd, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(fd)


def _become(request: dict[str, Any], stdout: int, stderr: int, status: int) -> None:
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    for fd in (stdout, stderr, status):
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [request["module"], *request["arguments"]]


def _import_what_is_slow() -> None:
    for name in _SLOW:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    from retrieval_spec.engine import Engine

    engine = Engine(64)  # loads the kernels
    for _ in range(2):
        session = engine.open_session([1, 2, 3, 1, 2, 3, 1])
        session.draft(8)
        session.commit([2])
        session.draft(8)
        session.close()


def _run_to_the_end() -> int:
    """Runs the module or the code of `sys.argv`; the exit code that Python would have ended with."""
    try:
        if sys.argv[0] == "-c":
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end(code: int) -> None:
    """Ends as Python does, but takes no module apart: of all that was imported that takes seconds."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    gc.collect()  # what was not closed says so
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _import_what_is_slow()
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
    _end(_run_to_the_end())
