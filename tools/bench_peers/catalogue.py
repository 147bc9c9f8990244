"""The systems that are compared, and with which options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class System:
    """One row.

    Attributes:
        key: its name in the tables.
        environment: where it runs; also the module of `sides`.
        options: for the module's `make`.
        says: what it is, for the page.
    """

    key: str
    environment: str
    says: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether it is a preset of this repository."""
        return self.environment == "ours"


def _arctic(key: str, says: str, depth: int, factor: float, use_tree: bool) -> System:
    return System(key, "arctic", says, {"depth": depth, "factor": factor, "use_tree": use_tree})


def _vllm(key: str, says: str, min_tokens: int, max_tokens: int) -> System:
    return System(key, "vllm_ngram", says, {"min_tokens": min_tokens, "max_tokens": max_tokens})


BASE = "default"
"""Everybody's ratios are to this one, and those of static lookup to `STATIC_BASE`."""
STATIC_BASE = "corpus"
HELPED = ("default + corpus",)
"""Rows that had text which the others of their table had not."""

SYSTEMS = (
    System(BASE, "ours", "the default preset", {"preset": "default"}),
    System("session", "ours", "the preset `session`: the own context alone", {"preset": "session"}),
    System(
        "default + corpus",
        "ours",
        "the default preset with a datastore of the corpus below, which no other row has",
        {"preset": "default", "with_store": True},
    ),
    _arctic(
        "Arctic path",
        "ArcticInference's suffix decoding as vLLM sets it: a path, depth 24, factor 1",
        24,
        1,
        False,
    ),
    _arctic("Arctic tree", "the same as a tree, depth 64, factor 4", 64, 4, True),
    _arctic("Arctic tree f16", "the same with factor 16, which accepts most", 64, 16, True),
    System(
        "transformers",
        "transformers_lookup",
        "transformers' `PromptLookupCandidateGenerator`, n-grams of 2 and 1",
    ),
    _vllm("vLLM n-gram", "vLLM's `NgramProposer` as it is set by default: n-grams of 5", 5, 5),
    _vllm("vLLM n-gram 2-4", "the same with `prompt_lookup_min=2, prompt_lookup_max=4`", 2, 4),
    System(
        "llama-cpp-python",
        "llama_cpp_lookup",
        "llama-cpp-python's `LlamaPromptLookupDecoding`, n-grams of 2 and 1",
    ),
)
STATIC = (
    System(
        STATIC_BASE,
        "ours",
        "the preset `corpus`: the datastore alone",
        {"preset": "corpus", "with_store": True},
    ),
    System("infini-gram", "infini_gram", "infini-gram's index: a copy of what follows the longest match"),
)
FED = tuple(system for system in SYSTEMS if system.key in (BASE, "Arctic path", "Arctic tree"))
BUILT = STATIC
BUDGETS = (8, 16, 64)
SHOWN_BUDGET = 16
"""Of which families are shown."""
