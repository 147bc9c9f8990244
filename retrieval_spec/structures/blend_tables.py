"""The tables behind calibrated drafts: shipped priors, and what one namespace learned on top of them.

Not thread-safe: whoever shares them holds a lock. Arrays and kernels; knows no sessions and no policy.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from retrieval_spec.kernels import blend_tables as layout
from retrieval_spec.tree import Float32s

PRIOR = Path(__file__).with_name("blend_prior.npy")
"""float16[PRIOR_CELLS], learned from recorded outputs by `tools/learn_prior.py`."""


@cache
def shipped_prior() -> Float32s:
    """Returns float32[PRIOR_CELLS], read-only: what every namespace starts with."""
    prior: Float32s = np.load(PRIOR, allow_pickle=False).astype(np.float32)
    if prior.shape != (layout.PRIOR_CELLS,):
        raise ValueError(f"{PRIOR.name} holds {prior.shape} cells instead of {layout.PRIOR_CELLS}")
    prior.setflags(write=False)
    return prior


def new_tables(prior: Float32s | None = None) -> Float32s:
    """Returns float32[NUM_CELLS], 47 KB: the prior, or what ships, and nothing learned yet."""
    tables: Float32s = np.zeros(layout.NUM_CELLS, np.float32)
    tables[: layout.PRIOR_CELLS] = shipped_prior() if prior is None else prior
    return tables
