#!/usr/bin/env python
"""Replays recorded outputs with parts of the default preset switched on one after the other; prints a table.

    tools/ablate.py DATA --subset subset.json

Each row adds one part to the row before it. Every family starts with a fresh engine and is replayed as by
`tools/replay_sources.py`; tables start from what the shipped ones are learned from, but for the last row.
A part is switched off by other constants in the kernels, which are compiled anew for every row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

Overrides = dict[str, object]

NO_CORRECTION: Overrides = {"blend:OUTCOME_PRIOR": 1e12}
NO_ESCAPES: Overrides = {"evidence:MAX_CONTEXTS": 1}
NO_MIXING: Overrides = {"blend_learning:TABLE_RATE": 0.0, "blend_learning:WEIGHT_RATE": 0.0}
NO_LEARNING: Overrides = {"blend_learning:PRIOR_COUNT": 1e12, "blend_learning:TREE_PRIOR_COUNT": 1e12}
NO_ANCHORS: Overrides = {"anchor:MIN_COPY_TOKENS": 1 << 30}
NO_TOKENS: Overrides = {"evidence:EMPTY_CONTEXTS": (2,)}  # of prompts, of which these rows know none


class Row(NamedTuple):
    """What a row adds, its sources, the tables that it starts with, and what is still off."""

    adds: str
    sources: str
    tables: str
    off: Overrides


ROWS = (
    Row(
        "raw share: counts of the longest match in the own text",
        "session",
        "certain",
        NO_CORRECTION | NO_ESCAPES | NO_MIXING | NO_LEARNING | NO_ANCHORS | NO_TOKENS,
    ),
    Row(
        "calibrated: times what such a match was worth so far",
        "session",
        "guess",
        NO_ESCAPES | NO_MIXING | NO_ANCHORS | NO_TOKENS,
    ),
    Row("blended: shorter matches get the rest", "session", "guess", NO_MIXING | NO_ANCHORS | NO_TOKENS),
    Row("mixed: features correct each candidate", "session", "guess", NO_ANCHORS | NO_TOKENS),
    Row("history: earlier outputs", "session+history", "guess", NO_ANCHORS | NO_TOKENS),
    Row("skip-match: copies go on after an edit", "session+history", "guess", NO_TOKENS),
    Row("commonest tokens: what follows no known context", "session+history", "guess", {}),
    Row("prompts: earlier prompts, counted apart", "session+history+prompts", "guess", {}),
    Row("shipped tables: the default", "session+history+prompts", "shipped", {}),
)


class Replay(NamedTuple):
    """What a worker replays."""

    row: Row
    family: str
    max_nodes: int
    data: Path
    wanted: list[str]
    cut: int


def set_up(row: Row) -> None:
    """Gives a fresh process the constants and tables of a row, before any kernel is compiled."""
    import numpy as np
    from learn_prior import first_guess

    from retrieval_spec.kernels import blend_tables as layout
    from retrieval_spec.structures import blend_tables

    for place, value in row.off.items():
        module, _, name = place.partition(":")
        kernels = import_module(f"retrieval_spec.kernels.{module}")
        assert hasattr(kernels, name), f"{place} is no constant, so this row would be the one before"
        setattr(kernels, name, value)
    tables = first_guess()
    if row.tables == "certain":
        tables[: layout.ESCAPE_CELLS] = 1.0
    if row.tables != "shipped":
        blend_tables.shipped_prior = lambda: np.asarray(tables)  # type: ignore[assignment]


def replayed(job: Replay) -> tuple[float, float]:
    """Returns how many tokens a step accepted and how many were predicted."""
    from replays import VOCAB_SIZE, replay_item, traces

    from retrieval_spec.drafters.blend import Blend
    from retrieval_spec.drafters.preset import Preset, Source
    from retrieval_spec.engine import Engine

    preset = Preset(tuple(Source(kind) for kind in job.row.sources.split("+")), combine=Blend)
    engine = Engine(VOCAB_SIZE, preset=preset)
    steps = []
    for prompt, output in traces(job.data / f"{job.family}.jsonl", set(job.wanted), job.cut):
        steps += replay_item(engine, prompt, output, job.max_nodes)
    accepted = sum(step.num_accepted for step in steps) / len(steps)
    return accepted, sum(float(step.path_probs.sum()) for step in steps) / len(steps)


@contextmanager
def workers(row: Row, first: Replay, num_processes: int) -> Iterator[ProcessPoolExecutor]:
    """Yields processes that have the kernels of a row, which the first replay compiles for them all."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RETRIEVAL_SPEC_CACHE_DIR"] = cache
        with ProcessPoolExecutor(
            num_processes, mp_context=get_context("spawn"), initializer=set_up, initargs=(row,)
        ) as pool:
            pool.submit(replayed, first).result()
            yield pool


def main() -> int:
    """Prints one line a row: mean acceptance length and what was predicted, means over families."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--subset", type=Path, required=True, help="JSON: family -> ids of its items")
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--items", type=int, help="replays only the first so many of a family")
    parser.add_argument("--cut", type=int, default=600, help="output tokens replayed of an item")
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    subset = json.loads(given.subset.read_text())
    print("| adds |" + "".join(f" accepts @{nodes} | predicts @{nodes} |" for nodes in given.nodes))
    print("|---|" + "---|---|" * len(given.nodes))
    for row in ROWS:
        jobs = [
            Replay(row, family, nodes, given.data, wanted[: given.items], given.cut)
            for nodes in given.nodes
            for family, wanted in sorted(subset.items())
        ]
        with workers(row, jobs[0], given.processes) as pool:
            done = list(pool.map(replayed, jobs))
        line = f"| {row.adds} |"
        for at in range(0, len(done), len(subset)):
            means = [
                1 + sum(column) / len(subset) for column in zip(*done[at : at + len(subset)], strict=True)
            ]
            line += "".join(f" {mean:.3f} |" for mean in means)
        print(line, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
