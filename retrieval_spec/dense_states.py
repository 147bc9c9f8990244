"""The states that a target model decides the tokens of a corpus with, part by part on disk.

They lie there in float16 until they are projected; work that was killed goes on from the last finished part.
Imports torch when it runs the model.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.shards import Shards
from retrieval_spec.datastore.tokenizer import Tokenizer
from retrieval_spec.errors import InvalidRequest, LimitExceeded
from retrieval_spec.projection import DIMENSIONS, Projection
from retrieval_spec.target_states import body_of, model_fingerprint
from retrieval_spec.tree import Float32s

WINDOW_TOKENS = 512
CONTEXT_TOKENS = 64
"""Of a window inside a document, the first tokens only give the others something to look back at."""
SHARD_TOKENS = 1 << 16
BATCH_TOKENS = 1 << 12
FIT_STATES = 200_000
"""States that the projection is fitted on at most, evenly spread."""


@dataclass(frozen=True, slots=True)
class Window:
    """A span of one document that the model reads at once: `begin .. stop`, keeping states from `first` on.

    The state of a document's last token decides nothing that the corpus holds: `stop` is before it.
    """

    begin: int
    first: int
    stop: int


def windows_of(num_tokens: int, documents: NDArray[np.int64]) -> Iterator[Window]:
    """Yields windows that together keep the state of every token but the last of each document."""
    ends = np.append(documents[1:], num_tokens) - 1  # where the separators stand
    for start, end in zip(documents.tolist(), ends.tolist(), strict=True):
        first = start
        while first < end - 1:
            begin = max(first - CONTEXT_TOKENS, start)
            stop = min(begin + WINDOW_TOKENS, end - 1)
            yield Window(begin, first, stop)
            first = stop


def decided_positions(windows: Sequence[Window]) -> NDArray[np.uint32]:
    """Returns uint32[m], the place of the token that each kept state decided."""
    return np.concatenate([np.arange(w.first + 1, w.stop + 1, dtype=np.uint32) for w in windows])


class StateReader:
    """Runs a target model over windows of a corpus.

    Raises:
        InvalidRequest: the model has fewer ids than the tokenizer, or reads less than a window.
        UnsupportedModel: the model's states cannot be read.
    """

    def __init__(self, model: Any, encoder: Tokenizer, tokens: NDArray[Any]) -> None:
        config = model.config.get_text_config(decoder=True)
        if encoder.vocab_size > config.vocab_size:
            raise InvalidRequest(
                "the tokenizer is not the model's",
                got=f"{encoder.vocab_size} ids",
                expected=f"at most {config.vocab_size}",
            )
        self.hidden_size = int(config.hidden_size)
        self.fingerprint = model_fingerprint(model)
        self._body = body_of(model)
        self._device = model.device
        self.num_tokens = int(tokens.shape[0])
        self._tokens = tokens
        self._prefix = encoder.prefix_ids()
        longest = WINDOW_TOKENS + self._prefix.shape[0]
        if longest > getattr(config, "max_position_embeddings", longest):
            raise InvalidRequest(
                "the model reads too few tokens at once",
                got=config.max_position_embeddings,
                expected=f"{longest} or more",
            )

    def plan(self, windows: Sequence[Window]) -> dict[str, object]:
        """Returns what the states follow from: parts of another plan are of no use."""
        return {
            "model": self.fingerprint,
            "tokens": hashlib.sha256(np.ascontiguousarray(self._tokens).data).hexdigest(),
            "prefix": self._prefix.tolist(),
            "windows": [len(windows), WINDOW_TOKENS, CONTEXT_TOKENS, SHARD_TOKENS],
        }

    def states(self, windows: Sequence[Window]) -> NDArray[np.float16]:
        """Returns float16[n, h], the kept states of the windows in their order."""
        # Windows of like length share a pass; a causal model takes no notice of what stands behind.
        order = sorted(range(len(windows)), key=lambda i: windows[i].stop - windows[i].begin)
        found: dict[int, NDArray[np.float16]] = {}
        size = max(BATCH_TOKENS // WINDOW_TOKENS, 1)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            found.update(zip(chosen, self._pass([windows[i] for i in chosen]), strict=True))
        return np.concatenate([found[i] for i in range(len(windows))])

    def _pass(self, windows: Sequence[Window]) -> list[NDArray[np.float16]]:
        import torch

        skipped = self._prefix.shape[0]
        rows = np.zeros((len(windows), skipped + max(w.stop - w.begin for w in windows)), np.int64)
        rows[:, :skipped] = self._prefix
        for row, window in zip(rows, windows, strict=True):
            row[skipped : skipped + window.stop - window.begin] = self._tokens[window.begin : window.stop]
        with torch.inference_mode():
            outputs = self._body(input_ids=torch.from_numpy(rows).to(self._device), use_cache=False)
            states = outputs.last_hidden_state.to("cpu", torch.float16).numpy()
        return [
            states[i, skipped + w.first - w.begin : skipped + w.stop - w.begin] for i, w in enumerate(windows)
        ]


class CorpusStates:
    """The states of all windows of a corpus, mapped.

    Attributes:
        positions: uint32[m]  the place of the token that each state decided.
    """

    def __init__(
        self, parts: Sequence[NDArray[Any]], windows: Sequence[Window], fingerprint: str, progress: Progress
    ) -> None:
        self.positions = decided_positions(windows)
        self._parts = parts
        self._fingerprint = fingerprint
        self._progress = progress

    def fit(self) -> Projection:
        """Returns a projection fitted on evenly spread states."""
        stride = max(self.positions.shape[0] // FIT_STATES, 1)
        sample = np.concatenate([part[::stride] for part in self._parts])
        self._progress.start("projection", None, "states")
        return Projection.fit(sample, min(DIMENSIONS, sample.shape[1]), self._fingerprint)

    def project(self, projection: Projection) -> Float32s:
        """Returns float32[m, d], every state projected."""
        num_vectors = self.positions.shape[0]
        vectors = np.empty((num_vectors, projection.dimensions), np.float32)
        self._progress.start("vectors", num_vectors, "vectors")
        begin = 0
        for part in self._parts:
            vectors[begin : begin + part.shape[0]] = projection.apply(part)
            begin += part.shape[0]
            self._progress.advance(part.shape[0])
        return vectors


@contextmanager
def states_of(
    reader: StateReader, starts: NDArray[np.int64], target: Path, progress: Progress
) -> Iterator[CorpusStates]:
    """Runs the model where that was not done yet; finished parts wait in `.NAME.work` beside `target`.

    They are deleted when the work that the states are for is done, and stay if it fails.

    Raises:
        InvalidRequest: no token follows another one.
        LimitExceeded: too little space on the disk.
        DatastoreError: another process builds there, or the file system refused.
    """
    windows = list(windows_of(reader.num_tokens, starts))
    if not windows:
        raise InvalidRequest("the corpus has no token that follows another", remedy="name other inputs")
    shards = Shards(target, reader.plan(windows), np.float16, reader.hidden_size)
    try:
        parts = _read_states(reader, windows, shards, progress)
        yield CorpusStates(parts, windows, reader.fingerprint, progress)
    except BaseException:
        shards.close()
        raise
    shards.remove()


def _read_states(
    reader: StateReader, windows: Sequence[Window], shards: Shards, progress: Progress
) -> list[NDArray[Any]]:
    """Returns the states of all windows, mapped, one array a part."""
    groups = list(_groups(windows))
    num_rows = [sum(w.stop - w.first for w in group) for group in groups]
    parts = [shards.load(number, rows) for number, rows in enumerate(num_rows)]
    missing = [rows for part, rows in zip(parts, num_rows, strict=True) if part is None]
    _check_space(shards.folder, sum(missing) * reader.hidden_size * 2)
    progress.start("states", sum(num_rows), "tokens")
    finished = []
    for number, (group, part) in enumerate(zip(groups, parts, strict=True)):
        if part is None:
            shards.save(number, reader.states(group))
            part = shards.load(number, num_rows[number])
        assert part is not None
        finished.append(part)
        progress.advance(num_rows[number])
    return finished


def _groups(windows: Sequence[Window]) -> Iterator[list[Window]]:
    group: list[Window] = []
    num_tokens = 0
    for window in windows:
        group.append(window)
        num_tokens += window.stop - window.first
        if num_tokens >= SHARD_TOKENS:
            yield group
            group, num_tokens = [], 0
    if group:
        yield group


def _check_space(folder: Path, num_bytes: int) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if num_bytes > free_bytes:
        raise LimitExceeded(
            "the states do not fit on the disk",
            got=f"{num_bytes} bytes",
            expected=f"at most {free_bytes}",
            remedy="choose another --out, or a smaller corpus",
        )
