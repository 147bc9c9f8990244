"""From text and a model to a dense datastore: encode, run the target, project, index, write.

The target's states go to disk in float16, part by part; a build that was killed goes on from the last
finished part. Imports torch when it runs the model.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec import __version__
from retrieval_spec.datastore.atomic import check_free
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.manifest import Facts, check_label
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.shards import Shards
from retrieval_spec.datastore.store import check_replaceable, replace_datastore, write_datastore
from retrieval_spec.datastore.tokenizer import Tokenizer, load_tokenizer
from retrieval_spec.drafters.dense import CONTINUATION_TOKENS, KIND
from retrieval_spec.encoding import encode_corpus
from retrieval_spec.errors import InvalidRequest, LimitExceeded
from retrieval_spec.projection import DIMENSIONS, Projection
from retrieval_spec.structures.dense_index import DenseIndex
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
class DenseBuild:
    """A finished dense datastore.

    Attributes:
        path: its folder.
        num_vectors: states in it.
        index_bytes_per_vector: of the index alone.
        recall_at_10: how many of the 10 nearest others of sampled states a search finds.
    """

    path: Path
    num_vectors: int
    index_bytes_per_vector: float
    recall_at_10: float


@dataclass(frozen=True, slots=True)
class Window:
    """A span of one document that the model reads at once: `begin .. stop`, keeping states from `first` on.

    The state of a document's last token decides nothing that the corpus holds: `stop` is before it.
    """

    begin: int
    first: int
    stop: int


def build_dense(
    inputs: Sequence[str | Path],
    *,
    model: Any,
    tokenizer: str | Path,
    out: str | Path,
    text_field: str | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> DenseBuild:
    """Builds a dense datastore: for every token, the state that the target model decided it with.

    Args:
        inputs: files and folders of text, as for `Corpus`.
        model: the target, a causal model of transformers; it runs where it lies.
        tokenizer: the target's `tokenizer.json` or folder.
        out: where the datastore goes; while it is built, `.NAME.work` beside it holds finished parts.
        text_field: the JSON field or column that holds the text.
        replace: whether a datastore that stands at `out` gives way.
        progress: told of the stages.

    Raises:
        RetrievalSpecError: as `build.build_datastore`, and `UnsupportedModel`.
    """
    progress = progress or NoProgress()
    target = Path(out).absolute()
    label = check_label("the name of the datastore", target.name)
    (check_replaceable if replace else check_free)(target)
    encoder = load_tokenizer(tokenizer)
    corpus = encode_corpus(Corpus(inputs, text_field), encoder, target, progress)
    tokens, documents = corpus.tokens, corpus.starts
    reader = StateReader(model, encoder, tokens)
    windows = list(windows_of(tokens.shape[0], documents))
    shards = Shards(target, reader.plan(windows), np.float16, reader.hidden_size)
    try:
        parts = _read_states(reader, windows, shards, progress)
        projection = _fit(parts, reader.fingerprint, progress)
        vectors = _project(parts, projection, progress)
        progress.start("index", None, "vectors")
        index = DenseIndex.build(vectors)
        data = index.to_bytes()
        facts = _facts_of(label, encoder, reader.fingerprint)
        columns = {
            "tokens": tokens,
            "documents": documents,
            "positions": decided_positions(windows),
            "index": data,
            "mean": projection.mean,
            "scale": projection.scale,
            "components": projection.components.ravel(),
        }
        (replace_datastore if replace else write_datastore)(target, facts, columns, progress)
    except BaseException:
        shards.close()
        raise
    shards.remove()
    num_vectors = vectors.shape[0]
    return DenseBuild(target, num_vectors, data.shape[0] / num_vectors, index.recall(vectors))


def _facts_of(label: str, encoder: Tokenizer, model_fingerprint: str) -> Facts:
    return Facts(
        name=label,
        vocab_size=encoder.vocab_size,
        depth_tokens=CONTINUATION_TOKENS + 1,
        tokenizer=encoder.facts,
        created_by=f"retrieval-spec {__version__}",
        kind=KIND,
        model_fingerprint=model_fingerprint,
    )


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


def _read_states(
    reader: StateReader, windows: Sequence[Window], shards: Shards, progress: Progress
) -> list[NDArray[Any]]:
    """Returns the states of all windows, mapped, one array a part."""
    groups = list(_groups(windows))
    num_rows = [sum(w.stop - w.first for w in group) for group in groups]
    if not groups:
        raise InvalidRequest("the corpus has no token that follows another", remedy="name other inputs")
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


def _fit(parts: Sequence[NDArray[Any]], fingerprint: str, progress: Progress) -> Projection:
    stride = max(sum(part.shape[0] for part in parts) // FIT_STATES, 1)
    sample = np.concatenate([part[::stride] for part in parts])
    progress.start("projection", None, "states")
    dimensions = min(DIMENSIONS, sample.shape[1])
    return Projection.fit(sample, dimensions, fingerprint)


def _project(parts: Sequence[NDArray[Any]], projection: Projection, progress: Progress) -> Float32s:
    num_vectors = sum(part.shape[0] for part in parts)
    vectors = np.empty((num_vectors, projection.dimensions), np.float32)
    progress.start("vectors", num_vectors, "vectors")
    begin = 0
    for part in parts:
        vectors[begin : begin + part.shape[0]] = projection.apply(part)
        begin += part.shape[0]
        progress.advance(part.shape[0])
    return vectors
