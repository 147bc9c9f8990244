"""Nodes of a Ray cluster on this machine, each in processes of its own that can be killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "RAY_USAGE_STATS_ENABLED": "0"}
_START = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
_SIZE = ["--num-cpus", "1", "--memory", "4000000000", "--object-store-memory", "80000000"]


class Cluster:
    """A head with one core, and as many further nodes with one core as are added."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # its sockets need a short path
        self._nodes: list[subprocess.Popen] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        port = self.address.partition(":")[2]
        options = ["--head", "--port", port, "--include-dashboard", "false", "--temp-dir", self._folder]
        self._start(options)

    def add_node(self) -> subprocess.Popen:
        return self._start(["--address", self.address])

    def kill(self, node: subprocess.Popen) -> None:
        """Kills what keeps a node up; the system then kills all that it started."""
        node.send_signal(signal.SIGKILL)
        node.wait()
        self._nodes.remove(node)

    def close(self) -> None:
        for node in reversed(self._nodes):
            node.terminate()
            node.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, options: list[str]) -> subprocess.Popen:
        with tempfile.TemporaryFile() as said:
            node = subprocess.Popen([*_START, *_SIZE, *options], env=ENVIRONMENT, stdout=said, stderr=said)
            self._nodes.append(node)
            for _ in range(600):
                if b"Ray runtime started" in os.pread(said.fileno(), 1 << 16, 0):
                    return node
                assert node.poll() is None, os.pread(said.fileno(), 1 << 16, 0).decode()
                time.sleep(0.1)
        raise AssertionError("the node did not start")
