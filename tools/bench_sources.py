"""Measures single sources against their bars; ratios are taken within one run.

python tools/bench_sources.py [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numba
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench_rows import Row, percentiles  # noqa: E402

from retrieval_spec.drafters.base import Budget  # noqa: E402
from retrieval_spec.drafters.recycling import RankTree, RecyclingDrafter  # noqa: E402
from retrieval_spec.feedback import Feedback  # noqa: E402
from retrieval_spec.kernels.adjacency_draft import fill_template  # noqa: E402
from retrieval_spec.structures.adjacency_rows import AdjacencyRows, Template  # noqa: E402

VOCAB_SIZE = 152_064
NUM_NODES = 80


def times_us(work: Callable[[int], Any], repeats: int) -> list[float]:
    """Times each of so many calls, after a tenth as many to warm up."""
    samples = []
    for turn in range(repeats // 10 + repeats):
        began = time.perf_counter_ns()
        work(turn)
        samples.append((time.perf_counter_ns() - began) / 1e3)
    return samples[repeats // 10 :]


def every_row(rng: np.random.Generator) -> Any:
    """Returns int32[vocabulary, 8]: a row of distinct ids for every token."""
    starts = rng.integers(0, VOCAB_SIZE, (VOCAB_SIZE, 1))
    return ((starts + np.arange(8) * 7_919) % VOCAB_SIZE).astype(np.int32)


def steps(rng: np.random.Generator, count: int) -> list[Feedback]:
    """Returns what a verifier tells of steps of 81 nodes: eight ids each, with log-probabilities."""
    parents = np.array([-1, *(np.arange(NUM_NODES) // 4)], np.int32)
    logprobs = -np.sort(rng.exponential(2.0, (NUM_NODES + 1, 8))).astype(np.float32)
    return [
        Feedback(
            rng.integers(0, VOCAB_SIZE, NUM_NODES + 1).astype(np.int32),
            parents,
            rng.integers(0, VOCAB_SIZE, (NUM_NODES + 1, 8)).astype(np.int32),
            logprobs,
        )
        for _ in range(count)
    ]


def python_fill(rows: list[list[int]], nodes: list[list[int]], root: int) -> list[int]:
    """Fills the same template as a plain loop over lists does."""
    tokens: list[int] = []
    for parent, rank in zip(nodes[0], nodes[1], strict=True):
        tokens.append(rows[root if parent < 0 else tokens[parent]][rank])
    return tokens


def bench_template(rng: np.random.Generator) -> list[Row]:
    """Measures the published tree over rows that are all known, at random roots."""
    known = every_row(rng)
    rows, template = AdjacencyRows(VOCAB_SIZE), RankTree().template()
    tokens = np.arange(VOCAB_SIZE, dtype=np.int32)
    parents = np.minimum(tokens - 1, 0)
    rows.update(tokens, parents, known, np.zeros((0, 0), np.float32))
    as_lists, nodes = known.tolist(), template.nodes.tolist()
    roots = rng.integers(0, VOCAB_SIZE, 20_000).tolist()
    expected = python_fill(as_lists, nodes, roots[0])
    assert rows.fill(template, roots[0], NUM_NODES, 64)[0].tolist() == expected
    ours, theirs = [], []
    for _ in range(3):
        ours += times_us(lambda turn: rows.fill(template, roots[turn], NUM_NODES, 64), 5_000)
        theirs += times_us(lambda turn: python_fill(as_lists, nodes, roots[turn]), 1_000)
    kernel_us = kernel_time_us(rows, template, roots)
    (p50, p99), loop = percentiles(ours), percentiles(theirs)[0]
    return [
        Row("recycling: 80-node template, with the call from Python, p50", p50, "us", 30),
        Row("recycling: 80-node template, with the call from Python, p99", p99, "us"),
        Row("recycling: 80-node template, kernel", kernel_us, "us"),
        Row("recycling: 80-node template, plain Python loop, p50", loop, "us"),
        Row("recycling: plain Python loop / kernel", loop / kernel_us, "x", 30, True),
        Row("recycling: plain Python loop / call from Python", loop / p50, "x"),
    ]


@numba.njit
def fill_many(arena: Any, nodes: Any, roots: Any, tree: Any) -> None:
    """Fills the template once for each root, without a call from Python between."""
    for root in roots:
        fill_template(arena, nodes, root, NUM_NODES, 64, tree)


def kernel_time_us(rows: AdjacencyRows, template: Template, roots: list[int]) -> float:
    """Returns what one expansion takes inside the kernel; the median of runs over all roots."""
    tree, column = np.empty((4, NUM_NODES), np.int32), np.array(roots, np.int32)
    samples = times_us(lambda turn: fill_many(rows.arena, template.nodes, column, tree), 20)
    return percentiles(samples)[0] / column.size


def bench_updates(rng: np.random.Generator) -> list[Row]:
    """Measures writing the rows of one step: 81 nodes, each by token and by pair of tokens."""
    found = []
    for what, num_pairs in (("", 0), (" and by pair", 1 << 16)):
        rows, fed = AdjacencyRows(VOCAB_SIZE, num_pairs), steps(rng, 500)
        parts = [(step.node_token_ids, step.node_parents, step.topk_ids, step.topk_logprobs) for step in fed]
        samples = times_us(lambda turn: rows.update(*parts[turn % 500], 3), 5_000)  # noqa: B023
        p50, p99 = percentiles(samples)
        found.append(Row(f"recycling: update from 81 x 8 ids by token{what}, p50", p50, "us", 20))
        found.append(Row(f"recycling: update from 81 x 8 ids by token{what}, p99", p99, "us"))
    return found


def bench_session(rng: np.random.Generator) -> list[Row]:
    """Measures our own rule through its cursor, over a vocabulary in use as skewed as text is."""
    cursor = RecyclingDrafter.open(VOCAB_SIZE).start(np.zeros(0, np.int32))
    text = (rng.zipf(1.2, 60_000) % VOCAB_SIZE).astype(np.int32)
    fed = steps(rng, 200)
    cursor.observe(text[:40_000])
    drafts, commits, sizes = [], [], []
    for turn in range(5_000):
        began = time.perf_counter_ns()
        cursor.observe(text[40_000 + 4 * turn :][:4], fed[turn % 200])
        drafted = time.perf_counter_ns()
        tree = cursor.propose(Budget(NUM_NODES))
        ended = time.perf_counter_ns()
        commits.append((drafted - began) / 1e3)
        drafts.append((ended - drafted) / 1e3)
        sizes.append(len(tree))
    full = [time for time, size in zip(drafts[500:], sizes[500:], strict=True) if size == NUM_NODES]
    return [
        Row("recycling: 80 nodes, best paths first, through the cursor, p50", percentiles(full)[0], "us", 30),
        Row("recycling: 80 nodes, best paths first, through the cursor, p99", percentiles(full)[1], "us"),
        Row("recycling: commit of 4 tokens and 81 x 8 ids, p50", percentiles(commits[500:])[0], "us"),
    ]


def main() -> int:
    """Prints the table; exit code 1 when a bar is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the rows as JSON")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = [*bench_template(rng), *bench_updates(rng), *bench_session(rng)]
    print("\n".join(row.line() for row in rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([{**asdict(row), "holds": row.holds} for row in rows], indent=1))
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
