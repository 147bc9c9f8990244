"""Carries what sessions teach to the disk and back, on one thread of its own: no draft waits for it.

Belongs to one event loop. Knows the folder, the sources' memory and clocks; nothing of messages.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from retrieval_spec.datastore.history_folder import HistoryFolder, HistoryLimits
from retrieval_spec.datastore.history_segment import MAX_OUTPUT_TOKENS, Text
from retrieval_spec.engine import Engine
from retrieval_spec.errors import RetrievalSpecError
from retrieval_spec.memory import LearnedMemory
from retrieval_spec.service.config import ServerConfig
from retrieval_spec.service.retold import Retold
from retrieval_spec.tree import Tokens

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Pending = dict[str, list[Text]]

MAX_PENDING_BYTES = 64 << 20
"""Of text that waits for the disk: more is not kept; with a quarter of it nobody waits any longer."""

MAX_NOTED_PROMPT_TOKENS = 1 << 17
"""Of a longer prompt the newest tokens: only they are compared with what was told before."""

PATIENCE_S = 1.0
"""A namespace's first session waits so long for its history, and learns the rest of it as it comes."""

_EXPIRY_S = 10.0
_NO_FINGERPRINT = "sha256:" + "0" * 64
"""Of a datastore whose writer did not know the tokenizer."""


class HistoryKeeper:
    """Between the memory of an engine and a folder.

    Attributes:
        num_lost: sessions whose text could not be written.

    Args:
        memory: is told of by sessions that end, and taught again.
        folder: where it is kept; closed by `stop`.
        flush_s: how long text waits for the disk at most.
    """

    def __init__(
        self,
        memory: LearnedMemory,
        folder: HistoryFolder,
        flush_s: float,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._memory = memory
        self._folder = folder
        self._flush_s = flush_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="retrieval-spec-history")
        self._retold = Retold()  # of the thread alone
        self._lock = threading.Lock()
        self._pending: Pending = {}
        self._num_pending_bytes = 0
        self._recalls: dict[str, asyncio.Future[None]] = {}
        self._writing: asyncio.Future[None] | None = None
        self._flush_due_s = self._expiry_due_s = clock()
        self._is_failing = False
        self.num_lost = 0

    @classmethod
    def open(cls, engine: Engine, config: ServerConfig) -> HistoryKeeper:
        """Opens and locks the folder that the configuration names.

        Raises:
            MissingPath, DatastoreError: it cannot be used, or another process does.
            TokenizerMismatch: it was written with another vocabulary.
        """
        limits = HistoryLimits(config.history_max_bytes, config.history_max_age_s)
        known = (one for one in engine.datastores.values() if one != _NO_FINGERPRINT)
        fingerprint = next(known, None)
        folder = HistoryFolder.open(str(config.history), engine.vocab_size, fingerprint, limits)
        return cls(engine.memory, folder, config.history_flush_s)

    @property
    def num_bytes(self) -> int:
        """Bytes on disk."""
        return self._folder.num_bytes

    def start(self) -> None:
        """Begins to note what ends."""
        self._memory.on_taught = self.note

    def note(self, namespace: str, prompt: Tokens, output: Tokens) -> None:
        """Puts a copy of what a session was asked and wrote aside for the disk."""
        prompt, output = prompt[-MAX_NOTED_PROMPT_TOKENS:], output[-MAX_OUTPUT_TOKENS:]
        with self._lock:
            if self._num_pending_bytes > MAX_PENDING_BYTES:
                self.num_lost += 1
                return
            self._num_pending_bytes += prompt.nbytes + output.nbytes
            self._pending.setdefault(namespace, []).append(Text(prompt.copy(), output.copy()))

    def tick(self) -> None:
        """Sends off what has waited for long enough; call it often."""
        now_s = self._clock()
        is_much = self._num_pending_bytes > MAX_PENDING_BYTES // 4
        if (now_s >= self._flush_due_s or is_much) and self._pending and self._is_idle():
            self._flush_due_s = now_s + self._flush_s
            self._writing = self._run(self._write, self._take_all())
        if now_s >= self._expiry_due_s and self._is_idle():
            self._expiry_due_s = now_s + _EXPIRY_S
            self._writing = self._run(self._expire)

    async def recall(self, namespace: str) -> None:
        """Teaches the sources what is kept of a namespace, unless they know of it."""
        if namespace not in self._recalls:
            if namespace in self._memory or not (self._folder.holds(namespace) or namespace in self._pending):
                return
            recall = self._run(self._recall, namespace, self._take(namespace))
            self._recalls[namespace] = recall
            recall.add_done_callback(lambda done: self._recalls.pop(namespace, None))
        await asyncio.wait({self._recalls[namespace]}, timeout=PATIENCE_S)

    async def forget(self, namespace: str) -> bool:
        """Deletes what is kept or about to be kept of a namespace; returns whether there was anything.

        Raises:
            DatastoreError: the file system refused, so that some of it may still be there.
        """
        found = bool(self._take(namespace))
        try:
            return await self._run(self._forget, namespace) or found
        finally:
            self._take(namespace)

    async def stop(self) -> None:
        """Writes what is left and closes the folder."""
        self._memory.on_taught = None
        await self._run(self._write, self._take_all())
        self._thread.shutdown()
        self._folder.close()

    def _run(self, work: Callable[..., Result], *arguments: object) -> asyncio.Future[Result]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _is_idle(self) -> bool:
        return self._writing is None or self._writing.done()

    def _take_all(self) -> Pending:
        with self._lock:
            pending, self._pending = self._pending, {}
            self._num_pending_bytes = 0
        return pending

    def _take(self, namespace: str) -> list[Text]:
        with self._lock:
            texts = self._pending.pop(namespace, [])
            self._num_pending_bytes -= sum(text.prompt.nbytes + text.output.nbytes for text in texts)
        return texts

    def _write(self, pending: Pending) -> None:
        for namespace, texts in pending.items():
            self._append(namespace, texts)

    def _append(self, namespace: str, texts: list[Text]) -> None:
        new = [Text(self._retold.new_part(namespace, text.prompt), text.output) for text in texts]
        try:
            self._folder.append(namespace, new, int(self._wall_clock()))
            self._is_failing = False
        except RetrievalSpecError as error:
            self._retold.forget(namespace)
            self.num_lost += len(texts)
            self._tell(error)

    def _forget(self, namespace: str) -> bool:
        self._retold.forget(namespace)
        return self._folder.forget(namespace)

    def _recall(self, namespace: str, texts: list[Text]) -> None:
        if texts:
            self._append(namespace, texts)
        try:
            self._memory.teach(namespace, self._folder.read(namespace))
        except RetrievalSpecError as error:
            self._tell(error)

    def _expire(self) -> None:
        try:
            self._folder.expire(int(self._wall_clock()))
        except RetrievalSpecError as error:
            self._tell(error)

    def _tell(self, error: RetrievalSpecError) -> None:
        """Logs the first of many failures: none of them names a tenant."""
        if not self._is_failing:
            self._is_failing = True
            logger.warning("the history cannot be kept: %s", error)
