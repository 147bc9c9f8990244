"""Work that is killed before a call of the system, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal

SEAMS = {
    "write": 1,
    "fsync": 1,
    "rename": 1,
    "replace": 1,
    "unlink": 1,
    "mkdir": 1,
    "rmdir": 1,
    "open": 2,
    "close": 2,
}
"""Calls of the system that a writer is killed before, and how many of them at a time are let pass."""


def run_until(seam: str, call: int, work) -> str:
    """Runs the work in a process of its own killed before the call-th os.<seam>; says how it ended."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            real, count = getattr(os, seam), 0

            def killed(*arguments, **options):
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            setattr(os, seam, killed)
            work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return "killed" if os.WIFSIGNALED(status) else "done"
