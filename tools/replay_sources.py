#!/usr/bin/env python
"""Replays recorded outputs through presets or lists of sources and prints mean acceptance lengths.

    tools/replay_sources.py DATA --set session --set session+history --nodes 16 64 --subset subset.json

DATA holds `FAMILY.jsonl` of `{"id", "prompt_ids", "output_ids"}`. Every family starts with a fresh engine and
is replayed in file order, each session closed before the next one opens, so that sources learn as they
would from a server's traffic. Under greedy verification that gives the exact acceptance without a model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.presets import PRESETS, preset
from retrieval_spec.engine import Engine
from retrieval_spec.tree import DraftTree

VOCAB_SIZE = 151_936
Ids = NDArray[np.int32]


def preset_of(name: str) -> Preset:
    """Returns a preset by its name, or one that fuses the sources in `session+history`."""
    if name in PRESETS:
        return preset(name)
    return Preset(tuple(Source(kind) for kind in name.split("+")))


def traces(path: Path, wanted: set[str] | None, max_output_tokens: int) -> Iterator[tuple[Ids, Ids]]:
    """Yields prompt and output of every wanted item, in file order."""
    with path.open() as lines:
        for line in lines:
            item = json.loads(line)
            if wanted is None or item["id"] in wanted:
                output = item["output_ids"][:max_output_tokens]
                yield np.array(item["prompt_ids"], np.int32), np.array(output, np.int32)


def accepted_tokens(tree: DraftTree, continuation: Ids) -> int:
    """Returns the length of the tree's path along the recorded output."""
    edges = zip(tree.parents.tolist(), tree.token_ids.tolist(), strict=True)
    children = {edge: node for node, edge in enumerate(edges)}
    node, depth = -1, 0
    for token in continuation[: len(tree)].tolist():
        node = children.get((node, token), -2)
        if node < 0:
            break
        depth += 1
    return depth


class Step(NamedTuple):
    """What one draft came to."""

    drafted: int
    expected: float
    accepted: int


def replay_item(engine: Engine, prompt: Ids, output: Ids, max_nodes: int) -> list[Step]:
    """Drafts and commits one recorded output step by step."""
    session = engine.open_session(prompt)
    steps = []
    at = 0
    while at < output.size:
        tree = session.draft(max_nodes)
        accepted = accepted_tokens(tree, output[at:])
        session.commit(output[at : at + accepted + 1])
        at += accepted + 1
        steps.append(Step(len(tree), float(tree.path_probs().sum()), accepted))
    session.close()
    return steps


def replay(
    job: tuple[str, str, int], data: Path, subset: dict[str, list[str]] | None, cut: int, stores: list[str]
) -> float:
    """Returns the mean acceptance length of one family, 1 + accepted drafts a step."""
    family, name, max_nodes = job
    engine = Engine(VOCAB_SIZE, preset=preset_of(name), datastores=stores)
    wanted = None if subset is None else set(subset[family])
    steps: list[Step] = []
    for prompt, output in traces(data / f"{family}.jsonl", wanted, cut):
        steps += replay_item(engine, prompt, output, max_nodes)
    return 1 + sum(step.accepted for step in steps) / len(steps)


def print_table(families: list[str], columns: list[tuple[str, int]], lengths: NDArray[np.float64]) -> None:
    """Prints one row a family, and the plain mean over families."""
    print("| family |" + "".join(f" {name} @{nodes} |" for name, nodes in columns))
    print("|---|" + "---|" * len(columns))
    for family, row in zip(families, lengths, strict=True):
        print(f"| {family} |" + "".join(f" {length:.3f} |" for length in row))
    print("| **macro** |" + "".join(f" **{length:.3f}** |" for length in lengths.mean(axis=0)))


def parsed() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--set", action="append", dest="sets", metavar="PRESET|SOURCE+SOURCE")
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--families", nargs="+", help="default: all in the subset or the folder")
    parser.add_argument("--subset", type=Path, help="JSON: family -> ids of the items to replay")
    parser.add_argument("--cut", type=int, default=600, help="output tokens replayed of an item")
    parser.add_argument("--datastore", action="append", default=[])
    parser.add_argument("--processes", type=int, default=1)
    return parser.parse_args()


def main() -> int:
    """Replays every family with every set of sources."""
    arguments = parsed()
    subset = json.loads(arguments.subset.read_text()) if arguments.subset else None
    found = sorted(path.stem for path in arguments.data.glob("*.jsonl"))
    families = arguments.families or [name for name in found if subset is None or name in subset]
    columns = [(name, nodes) for nodes in arguments.nodes for name in arguments.sets or ["default"]]
    jobs = [(family, name, nodes) for family in families for name, nodes in columns]
    work = partial(replay, data=arguments.data, subset=subset, cut=arguments.cut, stores=arguments.datastore)
    if arguments.processes > 1:
        with ProcessPoolExecutor(arguments.processes) as pool:
            lengths = list(pool.map(work, jobs))
    else:
        lengths = [work(job) for job in jobs]
    print_table(families, columns, np.reshape(lengths, (len(families), len(columns))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
