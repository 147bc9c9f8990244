"""The presets of this repository, in process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
sys.path[1:1] = [str(ROOT), str(ROOT / "tools")]

from bench_rows import write_store  # noqa: E402

import retrieval_spec  # noqa: E402
from retrieval_spec.datastore.manifest import TokenizerFacts  # noqa: E402
from retrieval_spec.engine import Engine  # noqa: E402
from retrieval_spec.structures.context_array import ContextArray  # noqa: E402
from retrieval_spec.tree import DraftTree  # noqa: E402

KEEPS = "prompts and outputs"
NO_TOKENIZER = "sha256:" + 64 * "0"


class Ours:
    """An engine with one session at a time."""

    def __init__(self, engine: Engine, max_nodes: int) -> None:
        self._engine, self._max_nodes = engine, max_nodes

    def held(self, token_ids: list[int]) -> Any:
        """Returns an array."""
        return np.array(token_ids, np.int32)

    def open(self, prompt: Any) -> None:
        """Opens a session."""
        self._session = self._engine.open_session(prompt)

    def draft(self, context: Any) -> DraftTree:
        """Drafts; the session holds the context."""
        return self._session.draft(self._max_nodes)

    def commit(self, tokens: Any) -> None:
        """Commits to the session."""
        self._session.commit(tokens)

    def close(self) -> None:
        """Closes the session, which joins the history."""
        self._session.close()

    def tree(self, draft: DraftTree) -> tuple[list[int], list[int]]:
        """Returns its columns."""
        return draft.token_ids.tolist(), draft.parents.tolist()


def make(vocab_size: int, max_nodes: int, store: str | None, preset: str, with_store: bool = False) -> Ours:
    """Returns a preset, over the datastore or without."""
    places = [store] if with_store and store else []
    return Ours(Engine(vocab_size, preset=preset, datastores=places), max_nodes)


def build(corpus: str, store: str, vocab_size: int) -> None:
    """Builds a datastore from token ids."""
    array = ContextArray.build(np.fromfile(corpus, np.uint16), threads=1)
    write_store(Path(store), array, TokenizerFacts(fingerprint=NO_TOKENIZER), vocab_size, "tools/bench_peers")


def versions() -> dict[str, str]:
    """Returns what runs here."""
    return {"retrieval_spec": retrieval_spec.__version__, "numpy": np.__version__}
