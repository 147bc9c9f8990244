"""Runs the target model over draft trees; torch and transformers load when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from retrieval_spec.errors import MissingDependency
from retrieval_spec.verifier.drafts import NoDrafts
from retrieval_spec.verifier.fused_source import Draws, FusedSource

if TYPE_CHECKING:
    from retrieval_spec.verifier.draft_model import HuggingFaceDraftModel
    from retrieval_spec.verifier.generation import Generation, generate
    from retrieval_spec.verifier.loop import TreeVerifier

_LAZY = {
    "HuggingFaceDraftModel": "retrieval_spec.verifier.draft_model",
    "Generation": "retrieval_spec.verifier.generation",
    "TreeVerifier": "retrieval_spec.verifier.loop",
    "generate": "retrieval_spec.verifier.generation",
}

__all__ = [
    "Generation",
    "Draws",
    "FusedSource",
    "HuggingFaceDraftModel",
    "NoDrafts",
    "TreeVerifier",
    "generate",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_LAZY[name]), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"torch", "transformers"}:
            raise
        raise MissingDependency(
            f"the verifier needs {error.name}", remedy="pip install 'retrieval-spec[torch]'"
        ) from error
