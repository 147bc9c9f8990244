#!/usr/bin/env python
"""Learns the tables that every namespace starts with from recorded outputs, and writes them.

    tools/learn_prior.py DATA --subset subset.json --datastore STORE --out blend_prior.npy

DATA holds `FAMILY.jsonl` of `{"id", "prompt_ids", "output_ids"}`. One item of every family is replayed in
turn, so that all weigh alike; each family has its own history, all correct the same tables. Every other
item is replayed with the datastores, since what other sources propose is to be learned too. What is
written is the mean of the tables over the last pass.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from replays import VOCAB_SIZE, Ids, replay_item, traces

from retrieval_spec.drafters.blend import Blend
from retrieval_spec.engine import Engine
from retrieval_spec.kernels import blend_tables as layout
from retrieval_spec.structures.blend_tables import shipped_prior

Tables = NDArray[np.float32]
LENGTHS = (0, 1, 2, 3, 4, 5, 6, 7.5, 10, 14, 20, 32, 60)


def first_guess() -> Tables:
    """Returns tables that know how escapes depend on match length and count, and no corrections."""
    prior = np.zeros(layout.PRIOR_CELLS, np.float32)
    prior[layout.WEIGHT] = 1.0
    shape = (layout.NUM_KINDS, 2, layout.NUM_LENGTHS, layout.NUM_COUNTS, layout.NUM_WIDTHS)
    escapes = prior[: layout.ESCAPE_CELLS].reshape(shape)
    escapes[layout.ANCHORED] = 0.5
    texts = slice(layout.ANCHORED)
    length = np.log2(np.maximum(LENGTHS, 1.0))[:, None]
    bits = np.arange(layout.NUM_COUNTS)[None, :]
    escapes[texts, 0, :, :, 0] = sigmoid(-0.9 + 0.82 * length + 0.74 * bits)
    escapes[texts, 0, :, :, 1:] = sigmoid(-1.0 + 0.28 * length + 0.26 * bits)[..., None]
    escapes[texts, 1] = sigmoid(-1.5 + 0.28 * length + 0.28 * bits)[..., None]
    return prior


def sigmoid(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns the probability of log-odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-score)))


class Learner:
    """Engines that share one set of tables, one per family with and one without datastores."""

    def __init__(self, tables: Tables, stores: list[str]) -> None:
        self.tables = np.zeros(layout.NUM_CELLS, np.float32)
        self.tables[: layout.PRIOR_CELLS] = tables
        self._stores = stores
        self._engines: dict[tuple[str, bool], Engine] = {}

    def learn(self, family: str, prompt: Ids, output: Ids, max_nodes: int, with_stores: bool) -> None:
        """Replays one item and takes over what it taught."""
        engine = self._engine(family, with_stores and bool(self._stores))
        assert isinstance(engine.joining, Blend)
        cells = engine.joining.cells_of("default")
        cells[:] = self.tables
        replay_item(engine, prompt, output, max_nodes)
        self.tables[:] = cells

    def _engine(self, family: str, with_stores: bool) -> Engine:
        if (family, with_stores) not in self._engines:
            stores = self._stores if with_stores else []
            self._engines[family, with_stores] = Engine(VOCAB_SIZE, datastores=stores)
        return self._engines[family, with_stores]


def learned(items: list[tuple[str, Ids, Ids]], stores: list[str], passes: int) -> Tables:
    """Returns the mean of the tables over the last of so many passes over the items."""
    tables = first_guess()
    mean = np.zeros(layout.PRIOR_CELLS)
    for _ in range(passes):
        learner = Learner(tables, stores)
        mean[:] = 0
        for at, (family, prompt, output) in enumerate(items):
            with_stores = at // 13 % 2 == 1
            learner.learn(family, prompt, output, 64 if at % 3 else 16, with_stores)
            mean += learner.tables[: layout.PRIOR_CELLS]
        tables = learner.tables[: layout.PRIOR_CELLS].copy()
    return np.asarray(mean / len(items), np.float32)


def in_turn(
    data: Path, subset: dict[str, list[str]], families: list[str], cut: int
) -> list[tuple[str, Ids, Ids]]:
    """Returns the items of all families by turns: family, prompt, output."""
    queues = [
        [(family, *item) for item in traces(data / f"{family}.jsonl", set(subset[family]), cut)]
        for family in families
    ]
    return [item for turn in zip_longest(*queues) for item in turn if item is not None]


def main() -> int:
    """Learns and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument(
        "--subset", type=Path, required=True, help="JSON: family -> ids of the items to replay"
    )
    parser.add_argument("--families", nargs="+", help="default: all in the subset")
    parser.add_argument("--datastore", action="append", default=[])
    parser.add_argument("--cut", type=int, default=600, help="output tokens replayed of an item")
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    subset = json.loads(arguments.subset.read_text())
    items = in_turn(arguments.data, subset, arguments.families or sorted(subset), arguments.cut)
    tables = learned(items, arguments.datastore, arguments.passes)
    assert tables.shape == shipped_prior().shape
    np.save(arguments.out, tables.astype(np.float16))
    return 0


if __name__ == "__main__":
    sys.exit(main())
