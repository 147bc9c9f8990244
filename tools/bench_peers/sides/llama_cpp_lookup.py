"""Prompt lookup of llama-cpp-python: its own class, from its source package, without the library."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from sides.lookup import Lookup

sys.path.append(str(Path(sys.prefix) / "taken"))

from llama_speculative import LlamaPromptLookupDecoding


def make(vocab_size: int, max_nodes: int, store: str | None) -> Lookup:
    """Returns it with its own n-gram size."""
    finder = LlamaPromptLookupDecoding(num_pred_tokens=max_nodes)
    return Lookup(lambda token_ids: np.array(token_ids, np.intc), finder)


def versions() -> dict[str, str]:
    """Returns what runs here."""
    taken = Path(sys.prefix) / "taken" / "VERSION"
    return {"llama-cpp-python": taken.read_text(), "numpy": np.__version__}
