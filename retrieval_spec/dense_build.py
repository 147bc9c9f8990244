"""From text and a model to a dense datastore: encode, run the target, project, index, write."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec import __version__
from retrieval_spec.datastore.atomic import check_free
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.documents import Documents
from retrieval_spec.datastore.manifest import DENSE_KIND, Facts, check_label
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.store import Column, check_replaceable, replace_datastore, write_datastore
from retrieval_spec.datastore.tokenizer import Tokenizer, load_tokenizer
from retrieval_spec.dense_states import StateReader, states_of
from retrieval_spec.drafters.dense import CONTINUATION_TOKENS
from retrieval_spec.encoding import encode_corpus
from retrieval_spec.projection import Projection
from retrieval_spec.structures.dense_index import DenseIndex


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


def build_dense(
    corpus: Corpus,
    *,
    model: Any,
    tokenizer: str | Path,
    out: str | Path,
    replace: bool = False,
    progress: Progress | None = None,
) -> DenseBuild:
    """Builds a dense datastore: for every token, the state that the target model decided it with.

    Args:
        corpus: the documents.
        model: the target, a causal model of transformers; it runs where it lies.
        tokenizer: the target's `tokenizer.json` or folder.
        out: where the datastore goes; while it is built, `.NAME.work` beside it holds finished parts.
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
    documents = encode_corpus(corpus, encoder, target, progress)
    reader = StateReader(model, encoder, documents.tokens)
    with states_of(reader, documents.starts, target, progress) as states:
        projection = states.fit()
        vectors = states.project(projection)
        progress.start("index", None, "vectors")
        index = DenseIndex.build(vectors)
        facts = _facts_of(label, encoder, reader.fingerprint)
        columns = dense_columns(documents, states.positions, index, projection)
        (replace_datastore if replace else write_datastore)(target, facts, columns, progress)
    index_bytes = columns["index"].shape[0] / index.num_vectors
    return DenseBuild(target, index.num_vectors, index_bytes, index.recall(vectors))


def dense_columns(
    documents: Documents, positions: NDArray[np.uint32], index: DenseIndex, projection: Projection
) -> dict[str, Column]:
    """Returns all columns of a dense segment."""
    return {
        "tokens": documents.tokens,
        **documents.columns(),
        "positions": positions,
        "index": index.to_bytes(),
        "mean": projection.mean,
        "scale": projection.scale,
        "components": projection.components.ravel(),
    }


def _facts_of(label: str, encoder: Tokenizer, model_fingerprint: str) -> Facts:
    return Facts(
        name=label,
        vocab_size=encoder.vocab_size,
        depth_tokens=CONTINUATION_TOKENS + 1,
        tokenizer=encoder.facts,
        created_by=f"retrieval-spec {__version__}",
        kind=DENSE_KIND,
        model_fingerprint=model_fingerprint,
    )
