"""Adds documents to a dense datastore: same model, same projection, an index trained as its first one is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.datastore.manifest import DENSE_KIND
from retrieval_spec.datastore.progress import NoProgress, Progress
from retrieval_spec.datastore.segments import changing
from retrieval_spec.datastore.tokenizer import check_same_tokenizer, load_tokenizer
from retrieval_spec.dense_build import dense_columns
from retrieval_spec.dense_states import StateReader, states_of
from retrieval_spec.drafters.dense import States, read_projection
from retrieval_spec.encoding import MAX_SEGMENT_TOKENS, Encoder, batches_of, ids_of, no_documents, only_part
from retrieval_spec.grow import Changed, documents_of, facts_of, published
from retrieval_spec.target_states import model_fingerprint


def append_states(
    datastore: str | Path,
    corpus: Corpus,
    *,
    model: Any,
    tokenizer: str | Path,
    progress: Progress | None = None,
) -> Changed:
    """Adds documents that a dense datastore does not hold yet, as a new segment.

    Nothing is trained: projection, centroids and the ranges of bytes stay those of the build, so that a state
    has the same bytes whenever it was added. Finished parts wait in `.NAME.work` beside the datastore.

    Args:
        datastore: its folder.
        corpus: the documents.
        model: the target that the datastore was built with.
        tokenizer: the target's.
        progress: told of the stages.

    Raises:
        ModelMismatch: the model is another one.
        TokenizerMismatch: the tokenizer is another one.
        RetrievalSpecError: as `dense_build.build_dense`, and `DatastoreError` if another process is at it.
    """
    progress = progress or NoProgress()
    with changing(datastore) as change:
        segments = change.segments
        facts = facts_of(segments, DENSE_KIND)
        first = segments.stores[0]
        projection = read_projection(first.manifest, first.columns).check_model(model_fingerprint(model))
        trained = States.from_store(first, projection.dimensions).index
        encoder = load_tokenizer(tokenizer)
        check_same_tokenizer(encoder, segments.manifest, segments.path)
        progress.start("encoding", corpus.num_bytes, "B")
        encoding = Encoder(encoder, segments.path, MAX_SEGMENT_TOKENS, ids_of(documents_of(segments)))
        documents = only_part(encoding.parts(batches_of(corpus.documents(progress.advance, encoder))))
        entries = []
        if documents is not None:
            reader = StateReader(model, encoder, documents.tokens)
            with states_of(reader, documents.starts, segments.path, progress) as states:
                vectors = states.project(projection)
                progress.start("index", None, "vectors")
                columns = dense_columns(
                    documents, states.positions, trained.with_vectors(vectors), projection
                )
                entries.append(change.write(facts, columns, progress))
        elif not encoding.num_duplicates:
            raise no_documents(corpus)
        num_added = sum(entry.num_documents for entry in entries)
        return published(
            change, change.entries, entries, num_added=num_added, num_duplicates=encoding.num_duplicates
        )
