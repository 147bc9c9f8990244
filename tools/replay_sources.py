#!/usr/bin/env python
"""Replays recorded outputs through presets or lists of sources and prints mean acceptance lengths.

    tools/replay_sources.py DATA --set session --set session+history --nodes 16 64 --subset subset.json
    tools/replay_sources.py DATA --one-engine --calibration --nodes 4 16 64 --subset subset.json
    tools/replay_sources.py DATA --cost 0.002 0.01 0.03 0.1 --subset subset.json

DATA holds `FAMILY.jsonl` of `{"id", "prompt_ids", "output_ids"}`. Every family starts with a fresh engine, or
all share one, and is replayed in file order, each session closed before the next one opens, so that sources
learn as they would from a server's traffic. Under greedy verification that gives the exact acceptance without
a model.

With `--calibration` the drafts' own predictions stand beside: how many tokens they expect a step to yield,
and how far the predicted path probabilities of 20 bins of equal size are from what came true, after the
first 2,000 steps. With `--cost C` a pass of the target over n drafted nodes is taken to cost `1 + C * n`,
and what is printed are tokens per unit of cost: of budgets of 0, 2, 4, ... 64 nodes, and of a budget that
drafts what pays.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from replays import VOCAB_SIZE, Step, replay_item, traces

from retrieval_spec.budget import CostCurve
from retrieval_spec.drafters.presets import preset_or_sources
from retrieval_spec.engine import Engine

FIXED_NODES = (0, 2, 4, 8, 16, 32, 64)
NUM_BINS = 20
UNJUDGED_STEPS = 2_000


class Job(NamedTuple):
    """Families that share an engine; `cost` is what a node costs, None for a fixed budget."""

    families: tuple[str, ...]
    name: str
    max_nodes: int
    cost: float | None = None


class Replayed(NamedTuple):
    """What one family came to; the error is NaN where all its steps came too early to be judged."""

    num_tokens: int
    num_steps: int
    num_nodes: int
    num_expected: float
    calibration_error: float

    def tokens_per_cost(self, cost_per_node: float) -> float:
        """Returns what a unit of cost yields; without a cost per node the mean acceptance length."""
        return self.num_tokens / (self.num_steps + cost_per_node * self.num_nodes)


Run = Callable[[list[Job]], list[Replayed]]


def calibration_error(steps: list[Step]) -> float:
    """Returns the expected calibration error over bins that hold equally many nodes."""
    predicted = np.concatenate([step.path_probs for step in steps] or [np.zeros(0, np.float32)])
    came_true = np.concatenate([step.is_accepted for step in steps] or [np.zeros(0, np.bool_)])
    if not predicted.size:
        return float("nan")
    order = np.argsort(predicted, kind="stable")
    gaps = [
        abs(float(predicted[nodes].mean(dtype=np.float64) - came_true[nodes].mean())) * nodes.size
        for nodes in np.array_split(order, NUM_BINS)
        if nodes.size
    ]
    return sum(gaps) / predicted.size


def summed(steps: list[Step], num_unjudged: int) -> Replayed:
    """Returns what the steps of a family came to."""
    return Replayed(
        num_tokens=sum(step.num_accepted + 1 for step in steps),
        num_steps=len(steps),
        num_nodes=sum(step.path_probs.size for step in steps),
        num_expected=sum(float(step.path_probs.sum()) + 1 for step in steps),
        calibration_error=calibration_error(steps[num_unjudged:]),
    )


def replay(
    job: Job, data: Path, subset: dict[str, list[str]] | None, cut: int, stores: list[str]
) -> list[Replayed]:
    """Replays families one after the other, item by item."""
    engine = Engine(VOCAB_SIZE, preset=preset_or_sources(job.name), datastores=stores)
    curve = None if job.cost is None else CostCurve.linear(job.cost)
    replayed: list[Replayed] = []
    for family in job.families:
        wanted = None if subset is None else set(subset[family])
        steps: list[Step] = []
        for prompt, output in traces(data / f"{family}.jsonl", wanted, cut):
            steps += replay_item(engine, prompt, output, job.max_nodes, curve)
        seen = sum(earlier.num_steps for earlier in replayed)
        replayed.append(summed(steps, max(UNJUDGED_STEPS - seen, 0)))
    return replayed


def print_table(families: list[str], columns: list[str], values: NDArray[np.float64]) -> None:
    """Prints one row a family, and the plain mean over families."""
    print("| family |" + "".join(f" {column} |" for column in columns))
    print("|---|" + "---|" * len(columns))
    for family, row in zip(families, values, strict=True):
        print(f"| {family} |" + "".join(f" {value:.3f} |" for value in row))
    print("| **macro** |" + "".join(f" **{value:.3f}** |" for value in np.nanmean(values, axis=0)))


def print_lengths(replays: list[list[Replayed]], families: list[str], columns: list[str]) -> None:
    """Prints mean acceptance lengths."""
    lengths = [[replayed.tokens_per_cost(0.0) for replayed in row] for row in replays]
    print_table(families, columns, np.transpose(lengths))


def print_calibration(replays: list[list[Replayed]], families: list[str], columns: list[str]) -> None:
    """Prints for each set of sources what was measured beside what was predicted."""
    for column, row in zip(columns, replays, strict=True):
        print(f"\n{column}\n")
        accepted = np.array([replayed.num_tokens / replayed.num_steps - 1 for replayed in row])
        predicted = np.array([replayed.num_expected / replayed.num_steps - 1 for replayed in row])
        errors = np.array([replayed.calibration_error for replayed in row])
        heads = ["length", "accepted", "predicted", "ratio", "calibration error"]
        values = [1 + accepted, accepted, predicted, predicted / np.maximum(accepted, 1e-9), errors]
        print_table(families, heads, np.column_stack(values))
        print(f"macro predicted / measured {predicted.mean() / accepted.mean():.3f}")


def print_tokens_per_cost(run: Run, families: list[str], name: str, costs: list[float]) -> None:
    """Prints tokens per unit of cost, a table for each cost of a node."""
    fixed = run([Job((family,), name, nodes) for family in families for nodes in FIXED_NODES])
    paying = run([Job((family,), name, FIXED_NODES[-1], cost) for cost in costs for family in families])
    for cost in costs:
        here, paying = paying[: len(families)], paying[len(families) :]
        at_fixed = np.reshape([done.tokens_per_cost(cost) for done in fixed], (len(families), -1))
        adaptive = np.array([done.tokens_per_cost(cost) for done in here])
        best = at_fixed.max(axis=1)
        print(f"\n{name}, tokens per unit of cost at 1 + {cost:g} n\n")
        columns = [*(f"n={nodes}" for nodes in FIXED_NODES), "best n", "what pays", "ratio"]
        print_table(families, columns, np.column_stack([at_fixed, best, adaptive, adaptive / best]))
        least = int(np.argmin(adaptive / best))
        print(f"least ratio {(adaptive / best)[least]:.3f} ({families[least]}), least {adaptive.min():.3f}")


def parsed() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--set", action="append", dest="sets", metavar="PRESET|SOURCE+SOURCE")
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--one-engine", action="store_true", help="one engine for all families, in order")
    parser.add_argument("--calibration", action="store_true", help="prints predictions beside outcomes")
    parser.add_argument(
        "--cost", type=float, nargs="+", metavar="C", help="cost of a node: prints tokens per unit of cost"
    )
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
    names = arguments.sets or ["default"]
    work = partial(replay, data=arguments.data, subset=subset, cut=arguments.cut, stores=arguments.datastore)
    with ProcessPoolExecutor(arguments.processes) as pool:
        mapped = map if arguments.processes == 1 else pool.map  # the pool starts processes when first used

        def run(jobs: list[Job]) -> list[Replayed]:
            return [replayed for done in mapped(work, jobs) for replayed in done]

        if arguments.cost:
            for name in names:
                print_tokens_per_cost(run, families, name, arguments.cost)
            return 0
        groups = [tuple(families)] if arguments.one_engine else [(family,) for family in families]
        sets = [(name, max_nodes) for max_nodes in arguments.nodes for name in names]
        done = run([Job(group, *one) for one in sets for group in groups])
    replays = [done[at : at + len(families)] for at in range(0, len(done), len(families))]
    columns = [f"{name} @{max_nodes}" for name, max_nodes in sets]
    (print_calibration if arguments.calibration else print_lengths)(replays, families, columns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
