"""Rows by token and by pair against dictionaries of lists."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval_spec.structures.adjacency_rows import WIDTH, AdjacencyRows, new_counts, no_counts
from tests.reference.adjacency_rows import DictRows
from tests.strategies import as_int32

pytestmark = pytest.mark.row("A1")

NO_LOGPROBS = np.zeros((0, 0), np.float32)
tokens = st.integers(0, 11)
steps = st.lists(
    st.one_of(
        st.lists(tokens, min_size=1, max_size=20),
        st.lists(st.tuples(tokens, st.integers(0, 9), st.lists(tokens, min_size=8, max_size=8)), max_size=9),
    ),
    max_size=12,
)


def nodes_of(step):
    """Columns of a tree whose nodes name any earlier one as their parent."""
    token_ids = [token for token, _, _ in step]
    parents = [-1, *(choice % node for node, (_, choice, _) in enumerate(step[1:], 1))][: len(step)]
    return token_ids, parents, [row for _, _, row in step]


@pytest.mark.quick
@given(steps=steps, num_pairs=st.sampled_from([0, 1024]))
@settings(max_examples=150, deadline=None)
def test_rows_hold_what_the_dictionaries_hold(steps, num_pairs):
    rows, twin = AdjacencyRows(12, num_pairs), DictRows(WIDTH)
    counts = new_counts()
    for step in steps:
        if step and isinstance(step[0], tuple):
            token_ids, parents, topk = nodes_of(step)
            rows.update(as_int32(token_ids), as_int32(parents), as_int32(topk), NO_LOGPROBS, 3)
            twin.update(token_ids, parents, topk, 3)
        elif step:
            rows.learn(as_int32(step), 1, counts)
            twin.learn(step)
    for token in range(12):
        assert rows.row(token) == twin.row(token)
        for previous in range(12):
            expected = twin.row((previous, token)) if num_pairs else []
            assert rows.pair_row(previous, token) == expected


@given(text=st.lists(tokens, min_size=2, max_size=60), num_pairs=st.sampled_from([0, 1024]))
@settings(deadline=None)
def test_counts_hold_what_was_offered_and_what_was_right(text, num_pairs):
    rows, twin = AdjacencyRows(12, num_pairs), DictRows(WIDTH)
    counts = new_counts()
    rows.learn(as_int32(text), 1, counts)
    offered, right = twin.learn(text, with_pairs=num_pairs > 0)
    assert (int(counts[0].sum()), int(counts[1].sum())) == (offered, right)


def test_a_full_table_of_pairs_forgets_the_oldest_and_mixes_nothing_up():
    rng = np.random.default_rng(5)
    rows, twin = AdjacencyRows(1_000, 64), DictRows(WIDTH)
    text = rng.integers(0, 1_000, 3_000).tolist()
    rows.learn(as_int32(text), 1, no_counts())
    twin.learn(text)
    pairs = list(pairwise(text))[:-1]
    kept = [pair for pair in pairs if rows.pair_row(*pair)]
    assert 32 <= len(set(kept)) <= 64
    for pair in kept:  # one that was forgotten starts anew
        assert rows.pair_row(*pair) == twin.row(pair)[: len(rows.pair_row(*pair))]
    newest = set(pairs[-24:])
    assert len(newest & set(kept)) > len(newest) * 3 / 4
    assert rows.arena.nbytes == AdjacencyRows(1_000, 64).arena.nbytes


def test_memory_is_not_touched_before_it_is_written():
    code = (
        "import pathlib, re\n"
        "from retrieval_spec.structures.adjacency_rows import AdjacencyRows\n"
        "def resident():\n"
        "    status = pathlib.Path('/proc/self/status').read_text()\n"
        "    return int(re.search(r'VmRSS:\\s+(\\d+)', status)[1])\n"
        "before = resident()\n"
        "rows = [AdjacencyRows(152_064, 1 << 16) for _ in range(64)]\n"
        "print(resident() - before)\n"
    )
    if not os.path.exists("/proc/self/status"):
        pytest.skip("no /proc here")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000  # kilobytes, for 64 namespaces of 8.9 MB


def test_log_probabilities_survive_a_move_to_the_front():
    rows = AdjacencyRows(20, 0)
    logprobs = -np.arange(1, 9, dtype=np.float32)[None] / 2
    rows.update(as_int32([3]), as_int32([-1]), np.arange(8, dtype=np.int32)[None], logprobs)
    counts = new_counts()
    rows.learn(as_int32([3, 5, 3, 5, 3, 19, 3, 7]), 1, counts)
    assert rows.row(3) == [7, 19, 5, 0, 1, 2, 3, 4][:8]
    told = counts[0].nonzero()[0]
    assert len(told) == 9  # eight levels, and the new token that had none


def test_the_kernels_run_as_plain_python_too():
    code = (
        "import numpy as np\n"
        "from retrieval_spec.drafters.recycling import RecyclingDrafter, RankTree\n"
        "from retrieval_spec.drafters.base import Budget\n"
        "from retrieval_spec.feedback import Feedback\n"
        "for rule in (None, RankTree()):\n"
        "    cursor = RecyclingDrafter.open(50, rule).start(np.array([1, 2, 3, 1, 2], np.int32))\n"
        "    top = (np.arange(24, dtype=np.int32).reshape(3, 8) * 7) % 50\n"
        "    lp = np.full((3, 8), -1.5, np.float32)\n"
        "    ids = np.array([2, 3, 1], np.int32)\n"
        "    cursor.observe(ids[1:], Feedback(ids, np.array([-1, 0, 1], np.int32), top, lp))\n"
        "    tree = cursor.propose(Budget(20))\n"
        "    print(tree.token_ids.tolist(), tree.parents.tolist(), tree.probs.tolist())\n"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "NUMBA_DISABLE_JIT": disabled},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disabled in ("0", "1")
    ]
    assert outputs[0] == outputs[1] != ""
