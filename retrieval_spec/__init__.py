"""Model-free retrieval drafting: draft trees from text that exists already, verified losslessly.

Importing this package pulls in numpy alone; the engine, the client and the rest load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from retrieval_spec.errors import RetrievalSpecError
from retrieval_spec.tree import DraftTree, as_tokens

__version__ = "0.1.0"

_LAZY = {
    "BatchCostMeter": "retrieval_spec.step_costs",
    "CostCurve": "retrieval_spec.budget",
    "DraftClient": "retrieval_spec.client",
    "Engine": "retrieval_spec.engine",
    "LocalClient": "retrieval_spec.client",
    "StepCostMeter": "retrieval_spec.step_costs",
    "fuse": "retrieval_spec.fusion",
}

__all__ = [
    "BatchCostMeter",
    "CostCurve",
    "DraftClient",
    "DraftTree",
    "Engine",
    "LocalClient",
    "RetrievalSpecError",
    "StepCostMeter",
    "as_tokens",
    "fuse",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
