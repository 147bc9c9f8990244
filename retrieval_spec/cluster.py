"""A pool of workers on a Ray cluster. Ray places the work, and does again what a lost node had.

Knows Ray, and nothing of what it runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

from retrieval_spec.errors import MissingDependency, RetrievalSpecError, ServiceUnavailable
from retrieval_spec.spread import Task

MAX_RETRIES = 8
"""How often Ray does a task again whose process or node was lost."""

_log = logging.getLogger(__name__)


class RayPool:
    """Runs functions on a cluster; a context manager that ends the connection. Owned by one thread.

    Args:
        address: of the cluster's head, `HOST:PORT` or `ray://HOST:PORT`. Without it the one that
            `RAY_ADDRESS` names or that runs on this machine; where there is none, Ray starts on this machine.

    Raises:
        MissingDependency: Ray is not installed.
        ServiceUnavailable: no cluster answers there.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray = _ray()
        self._is_ours = not self._ray.is_initialized()
        self._pending: dict[Any, Task] = {}
        self._checked_bytes = -1
        if self._is_ours:
            self._connect(address)
        self._run = self._ray.remote(_run_there)

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.cancel()
        if self._is_ours:
            self._ray.shutdown()

    def submit(
        self, task: Task, function: Callable[..., Any], *arguments: Any, num_cpus: int, memory_bytes: int
    ) -> None:
        """Has a function run on a node where so much is free."""
        self._tell_if_too_large(num_cpus, memory_bytes)
        run = self._run.options(
            num_cpus=num_cpus,
            memory=memory_bytes,
            max_retries=MAX_RETRIES,
            name=f"retrieval-spec {task.kind} {task.number}",
        )
        self._pending[run.remote(os.getcwd(), function, *arguments)] = task

    def results(self) -> Iterator[tuple[Task, Any]]:
        """Yields what functions return, as they do, until none is left; more may be submitted meanwhile.

        Raises:
            RetrievalSpecError: what a function raised.
            ServiceUnavailable: work was lost more often than it is done again.
        """
        while self._pending:
            (ready, *_), _ = self._ray.wait(list(self._pending), num_returns=1)
            task = self._pending.pop(ready)
            yield task, self._result_of(ready, task)

    def cancel(self) -> None:
        """Gives up what has not returned; the processes that do it are ended."""
        for reference in self._pending:
            self._ray.cancel(reference, force=True)
        self._pending.clear()

    def _result_of(self, reference: Any, task: Task) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except exceptions.RayTaskError as error:
            if isinstance(error.cause, RetrievalSpecError):
                raise error.cause from None  # what is wrong, without a traceback of another machine
            raise
        except exceptions.RayError as error:
            raise ServiceUnavailable(
                f"the cluster lost a part of the build again and again ({task.kind} {task.number})",
                got=str(error).partition("\n")[0],
                remedy="begin the build again: what is finished is kept",
            ) from error

    def _connect(self, address: str | None) -> None:
        try:
            self._ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ServiceUnavailable(
                "no Ray cluster answers",
                got=f"{address or 'no address'}: {str(error).partition(chr(10))[0]}",
                remedy="start one with `ray start --head` and name its address with --address",
            ) from error

    def _tell_if_too_large(self, num_cpus: int, memory_bytes: int) -> None:
        """Warns of what Ray would wait for in silence: a larger node, which may yet join."""
        if memory_bytes <= self._checked_bytes:
            return
        self._checked_bytes = memory_bytes
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(n.get("CPU", 0) >= num_cpus and n.get("memory", 0) >= memory_bytes for n in nodes):
            _log.warning(
                "no node of the cluster has %d cores and %d bytes for a task: it waits until one joins",
                num_cpus,
                memory_bytes,
            )


def _run_there(folder: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in the folder that its relative paths are seen from."""
    os.chdir(folder)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the task was given one core
    return function(*arguments)


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingDependency("ray is not installed", remedy="pip install 'retrieval-spec[ray]'") from error
    return ray
