"""vLLM's n-gram proposer: its own module from its wheel, without the engine around it.

The module asks vLLM and torch for names in its annotations alone; empty ones stand in for them.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from sides.lookup import Lookup

MAX_MODEL_TOKENS = 1 << 16


def _stand_in(name: str, **members: Any) -> None:
    sys.modules[name] = ModuleType(name)
    vars(sys.modules[name]).update(members)


_stand_in("torch", Tensor=object)
_stand_in("vllm")
_stand_in("vllm.config", VllmConfig=object)
sys.path.append(str(Path(sys.prefix) / "taken"))

from ngram_proposer import NgramProposer  # noqa: E402


def _config(max_nodes: int, min_tokens: int, max_tokens: int) -> Any:
    return SimpleNamespace(
        speculative_config=SimpleNamespace(
            prompt_lookup_min=min_tokens, prompt_lookup_max=max_tokens, num_speculative_tokens=max_nodes
        ),
        model_config=SimpleNamespace(max_model_len=MAX_MODEL_TOKENS),
        scheduler_config=SimpleNamespace(max_num_seqs=1),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
    )


def make(vocab_size: int, max_nodes: int, store: str | None, min_tokens: int, max_tokens: int) -> Lookup:
    """Returns the proposer for a batch of one request."""
    original = NgramProposer.propose
    NgramProposer.propose = lambda *_: None  # its constructor drafts for 1,024 rows of this length
    proposer = NgramProposer(_config(max_nodes, min_tokens, max_tokens))
    NgramProposer.propose = original

    def find(context: Any) -> Any:
        rows, num_tokens = context[None], np.array([context.shape[0]], np.int32)
        return proposer.propose(max_nodes, [[0]], num_tokens, rows)[0]

    return Lookup(lambda token_ids: np.array(token_ids, np.int32), find)


def versions() -> dict[str, str]:
    """Returns what runs here."""
    return {"vllm": (Path(sys.prefix) / "taken" / "VERSION").read_text(), "numba": version("numba")}
