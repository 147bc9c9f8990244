"""Tiny datastores written the way the build writes them, from token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval_spec.datastore.manifest import Facts, TokenizerFacts
from retrieval_spec.datastore.store import write_datastore
from retrieval_spec.projection import Projection
from retrieval_spec.structures.context_array import ContextArray
from retrieval_spec.structures.dense_index import DenseIndex


def array_of(
    documents: Sequence[Sequence[int]], dtype: type = np.int32, depth_tokens: int = 32
) -> ContextArray:
    """The documents as a context array in memory."""
    separator = np.iinfo(dtype).max
    tokens = [token for document in documents for token in (*document, separator)]
    return ContextArray.build(np.array(tokens, dtype), threads=1, depth_tokens=depth_tokens)


def write_corpus(
    path: Path, documents: Sequence[Sequence[int]], vocab_size: int, dtype: type = np.int32
) -> Path:
    """Writes the documents as a datastore of kind context_array and returns its path."""
    ends = np.cumsum([len(document) + 1 for document in documents])
    array = array_of(documents, dtype)
    facts = Facts(
        name=path.name,
        vocab_size=vocab_size,
        depth_tokens=array.depth_tokens,
        tokenizer=TokenizerFacts(fingerprint="sha256:" + "0" * 64),
        created_by="tests",
    )
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if documents else np.zeros(0, np.int64)
    write_datastore(path, facts, {**array.columns(), "documents": starts})
    return path


MODEL = "sha256:" + "a" * 64


def identity(dimensions: int, model: str = MODEL) -> Projection:
    """The projection that only brings states to length 1."""
    ones = np.ones(dimensions, np.float32)
    return Projection(np.zeros(dimensions, np.float32), ones, np.eye(dimensions, dtype=np.float32), model)


def write_dense(
    path: Path,
    documents: Sequence[Sequence[int]],
    vocab_size: int,
    vectors: np.ndarray,
    dtype: type = np.int32,
    model: str = MODEL,
    trained: DenseIndex | None = None,
) -> Path:
    """Writes a datastore of kind dense, with a vector for every token that has one before it.

    Its index is trained on these vectors, or as `trained` is.
    """
    separator = np.iinfo(dtype).max
    tokens = np.array([token for document in documents for token in (*document, separator)], dtype)
    starts = np.cumsum([0, *(len(document) + 1 for document in documents)])[:-1]
    is_decided = tokens != separator
    is_decided[starts] = False
    projection = identity(vectors.shape[1], model)
    facts = Facts(
        name=path.name,
        vocab_size=vocab_size,
        depth_tokens=20,
        tokenizer=TokenizerFacts(fingerprint="sha256:" + "0" * 64),
        created_by="tests",
        kind="dense",
        model_fingerprint=model,
    )
    columns = {
        "tokens": tokens,
        "documents": starts.astype(np.int64),
        "positions": np.flatnonzero(is_decided).astype(np.uint32),
        "index": (trained.with_vectors if trained else DenseIndex.build)(
            projection.apply(vectors)
        ).to_bytes(),
        "mean": projection.mean,
        "scale": projection.scale,
        "components": projection.components.ravel(),
    }
    write_datastore(path, facts, columns)
    return path
