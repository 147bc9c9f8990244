"""`fusion` compiled from its own source, so that the server and a verifier without numba cannot differ."""

from __future__ import annotations

from retrieval_spec import fusion
from retrieval_spec.kernels.jit import allocation_free_kernel

insert = allocation_free_kernel(fusion.insert)
best_first = allocation_free_kernel(fusion.best_first)
COMPILED = fusion.Steps(insert, best_first)
