"""Asking for memory: it is compiled to what asks for it, and harms nothing wherever it points."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from numba.core import config

from retrieval_spec.kernels.prefetch import prefetch


@numba.njit  # not from a cache, which keeps no assembly
def _ask(array, index):
    prefetch(array, index)
    return array[0]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32, np.int64])
@pytest.mark.parametrize("index", [0, 7, -1, 1 << 40, -(1 << 40)])
def test_any_index_may_be_asked_for(dtype, index):
    assert _ask(np.arange(3, 11, dtype=dtype), index) == 3


@pytest.mark.skipif(config.DISABLE_JIT, reason="plain Python waits for no cache")
def test_compiled_code_asks():
    _ask(np.zeros(8, np.int32), 0)
    assert any("prefetch" in code for code in _ask.inspect_asm().values())
