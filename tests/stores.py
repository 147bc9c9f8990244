"""Tiny datastores written the way the build writes them, from token ids."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retrieval_spec.datastore.manifest import Facts, TokenizerFacts
from retrieval_spec.datastore.store import write_datastore
from retrieval_spec.structures.context_array import ContextArray


def write_corpus(
    path: Path, documents: Sequence[Sequence[int]], vocab_size: int, dtype: type = np.int32
) -> Path:
    """Writes the documents as a datastore of kind context_array and returns its path."""
    separator = np.iinfo(dtype).max
    tokens = [token for document in documents for token in (*document, separator)]
    ends = np.cumsum([len(document) + 1 for document in documents])
    array = ContextArray.build(np.array(tokens, dtype), threads=1)
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
