"""Prompt lookup of transformers, by the class that its generation loop asks."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from sides.lookup import Lookup


def make(vocab_size: int, max_nodes: int, store: str | None) -> Lookup:
    """Returns it as `generate(prompt_lookup_num_tokens=...)` makes it: n-grams of at most two tokens."""
    torch.set_num_threads(1)
    generator = PromptLookupCandidateGenerator(num_output_tokens=max_nodes, max_length=1 << 30)

    def find(context: Any) -> Any:
        candidates, _ = generator.get_candidates(context[None])
        return candidates[0, context.shape[0] :]

    return Lookup(lambda token_ids: torch.tensor(token_ids), find)


def versions() -> dict[str, str]:
    """Returns what runs here."""
    return {"transformers": transformers.__version__, "torch": torch.__version__}
