"""A pytest plugin that chooses tests of kernels for plain Python, and gives them few examples.

NUMBA_DISABLE_JIT=1 python -m pytest -p tests.plain_kernels

Coverage is measured this way (`tools/measure_coverage.py`): what is compiled cannot be traced.
"""

from __future__ import annotations

from pathlib import Path

import hypothesis
import pytest

MAX_EXAMPLES = 3
ROOT = Path(__file__).resolve().parent

FILES = (
    "contract/test_drafters.py",
    "test_adjacency_rows.py",
    "test_blend.py",
    "test_blend_drafter.py",
    "test_blend_edits.py",
    "test_commonest.py",
    "test_context_array.py",
    "test_context_arrays.py",
    "test_context_order.py",
    "test_corpus_stats.py",
    "test_fusion.py",
    "test_group_drafter.py",
    "test_leave_one_out.py",
    "test_near_duplicates.py",
    "test_ngram_sources.py",
    "test_ngram_table.py",
    "test_ngram_trie.py",
    "test_phrases.py",
    "test_prompts_drafter.py",
    "test_pruning.py",
    "test_recycling.py",
    "test_sam.py",
    "test_saved_rows.py",
    "test_shared_automaton.py",
    "test_suffix_automaton.py",
    "test_suffix_preset.py",
)
TOO_LONG = ()


def pytest_configure(config: pytest.Config) -> None:
    # Compiled, 32-bit words wrap in silence, as they are meant to; numpy wraps alike, and says so.
    config.addinivalue_line("filterwarnings", "ignore:overflow encountered:RuntimeWarning")
    if not config.args or config.args_source is not config.ArgsSource.ARGS:
        config.args[:] = [str(ROOT / name) for name in FILES]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        test = getattr(item, "obj", None)
        wanted = getattr(test, "_hypothesis_internal_use_settings", None)
        if wanted is not None:
            few = min(MAX_EXAMPLES, wanted.max_examples)
            test._hypothesis_internal_use_settings = hypothesis.settings(wanted, max_examples=few)
    kept = [item for item in items if item.originalname not in TOO_LONG]
    config.hook.pytest_deselected(items=[item for item in items if item.originalname in TOO_LONG])
    items[:] = kept
