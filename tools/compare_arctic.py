#!/usr/bin/env python
"""Replays recorded outputs through a preset and through ArcticInference's suffix trees, and times both.

    tools/compare_arctic.py DATA --arctic ENVIRONMENT/lib/python3.11/site-packages --subset subset.json

DATA holds `FAMILY.jsonl` of `{"id", "prompt_ids", "output_ids"}`. Every family starts with fresh sides, which
take turns item by item, on one core; outputs of earlier items are the history of both. Only the calls
themselves are timed: what they return is read afterwards, and garbage collected between items.

ArcticInference 0.3.0 lives in an environment of its own, of the same Python: `cmake` builds
`csrc/suffix_decoding` of its source package with `nanobind`, and the built module goes beside
`arctic_inference/suffix_decoding/cache.py`. It drafts trees (`use_tree_spec`) within the budget; all else is
as published unless `--factor` names other values of `max_spec_factor`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter_ns
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from replays import VOCAB_SIZE, traces

from retrieval_spec.drafters.presets import preset_or_sources
from retrieval_spec.engine import Engine
from retrieval_spec.replay import accepted_path
from retrieval_spec.tree import DraftTree

Ids = NDArray[np.int32]
T = TypeVar("T")


class Side(Protocol):
    """A drafting system with one generation at a time."""

    def open(self, prompt: Ids) -> None:
        """Begins a generation."""

    def draft(self, context: Ids) -> Any:
        """Drafts after the context, in the side's own form."""

    def commit(self, tokens: Ids) -> None:
        """Takes the tokens that the step decided."""

    def close(self) -> None:
        """Ends the generation and keeps its output as history."""

    def tree(self, draft: Any) -> DraftTree:
        """Returns a draft as a tree."""


class Ours:
    """A preset, in process."""

    def __init__(self, preset: str, max_nodes: int) -> None:
        self._engine = Engine(VOCAB_SIZE, preset=preset_or_sources(preset))
        self._max_nodes = max_nodes

    def open(self, prompt: Ids) -> None:
        """Opens a session."""
        self._session = self._engine.open_session(prompt)

    def draft(self, context: Ids) -> DraftTree:
        """Drafts; the session holds the context."""
        return self._session.draft(self._max_nodes)

    def commit(self, tokens: Ids) -> None:
        """Commits to the session."""
        self._session.commit(tokens)

    def close(self) -> None:
        """Closes the session, which joins the history."""
        self._session.close()

    def tree(self, draft: DraftTree) -> DraftTree:
        """Returns the draft, which is one."""
        return draft


class Arctic:
    """A suffix tree of a request's own tokens and one of all outputs; the better match of the two drafts."""

    def __init__(self, factor: float, max_nodes: int) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._cache = SuffixDecodingCache()
        self._rule = {"max_spec_tokens": max_nodes, "max_spec_factor": factor, "use_tree_spec": True}
        self._request = -1

    def open(self, prompt: Ids) -> None:
        """Starts a request."""
        self._request += 1
        self._cache.start_request(self._request, prompt)

    def draft(self, context: Ids) -> Any:
        """Speculates."""
        return self._cache.speculate(self._request, context, **self._rule)

    def commit(self, tokens: Ids) -> None:
        """Appends to the request's tree and to the common one."""
        self._cache.add_active_response(self._request, tokens)

    def close(self) -> None:
        """Drops the request's tree; the common one keeps the output."""
        self._cache.stop_request(self._request)

    def tree(self, draft: Any) -> DraftTree:
        """Returns its columns as a tree."""
        return DraftTree.from_lists(draft.token_ids, draft.parents, draft.probs)


@dataclass
class Tally:
    """What the steps of one side brought and cost.

    Attributes:
        draft_ns: a duration for every step.
        commit_ns: a duration for every step.
        item_ns: for every item, its opening and closing together.
        num_accepted: accepted drafts of all steps.
        num_nodes: drafted nodes of all steps.
    """

    draft_ns: list[int] = field(default_factory=list)
    commit_ns: list[int] = field(default_factory=list)
    item_ns: list[int] = field(default_factory=list)
    num_accepted: int = 0
    num_nodes: int = 0

    @property
    def acceptance(self) -> float:
        """Mean acceptance length, 1 + accepted drafts a step."""
        return 1 + self.num_accepted / len(self.draft_ns)

    def cells(self) -> list[str]:
        """Returns what stands in the table's columns after the acceptance."""
        draft_us = np.array(self.draft_ns) / 1_000
        median, high = np.percentile(draft_us, [50, 99])
        nodes = self.num_nodes / draft_us.size
        per_node = draft_us.sum() / max(self.num_nodes, 1)
        commit_us, item_us = np.mean(self.commit_ns) / 1_000, np.mean(self.item_ns) / 1_000
        return [f"{value:.2f}" for value in (nodes, median, high, per_node, commit_us, item_us)]

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Returns the sum of all."""
        total = cls()
        for tally in tallies:
            total.draft_ns += tally.draft_ns
            total.commit_ns += tally.commit_ns
            total.item_ns += tally.item_ns
            total.num_accepted += tally.num_accepted
            total.num_nodes += tally.num_nodes
        return total


def timed(call: Callable[..., T], *arguments: Any) -> tuple[int, T]:
    """Returns the nanoseconds that a call took, and its result."""
    begin = perf_counter_ns()
    result = call(*arguments)
    return perf_counter_ns() - begin, result


def replay(side: Side, prompt: Ids, output: Ids, tally: Tally) -> None:
    """Adds one generation to the tally."""
    context = np.concatenate([prompt, output])
    open_ns, _ = timed(side.open, prompt)
    at = prompt.size
    while at < context.size:
        draft_ns, draft = timed(side.draft, context[:at])
        tree = side.tree(draft)
        accepted = len(accepted_path(tree, context[at:]))
        commit_ns, _ = timed(side.commit, context[at : at + accepted + 1])
        tally.draft_ns.append(draft_ns)
        tally.commit_ns.append(commit_ns)
        tally.num_accepted += accepted
        tally.num_nodes += len(tree)
        at += accepted + 1
    close_ns, _ = timed(side.close)
    tally.item_ns.append(open_ns + close_ns)


def take_turns(makers: dict[str, Callable[[], Side]], items: list[tuple[Ids, Ids]]) -> dict[str, Tally]:
    """Returns the tally of every side; all replay an item, in turning order, before the next one comes."""
    sides = [(side, make(), Tally()) for side, make in makers.items()]
    for number, (prompt, output) in enumerate(items):
        for turn in range(len(sides)):
            _, side, tally = sides[(number + turn) % len(sides)]
            gc.collect()
            gc.disable()
            replay(side, prompt, output, tally)
            gc.enable()
    return {name: tally for name, _, tally in sides}


def print_table(max_nodes: int, tallies: dict[str, dict[str, Tally]]) -> None:
    """Prints a row for every family and side, then the sides' totals with the families' plain mean."""
    columns = "nodes/step | draft us p50 | p99 | us/node | commit us | open + close us"
    print(f"\n| @{max_nodes} | side | acceptance | {columns} |\n|{'---|' * 9}")
    for family, by_side in tallies.items():
        for name, tally in by_side.items():
            print(f"| {family} | {name} | {tally.acceptance:.3f} | {' | '.join(tally.cells())} |")
    for name in next(iter(tallies.values())):
        of_side = [by_side[name] for by_side in tallies.values()]
        macro = np.mean([tally.acceptance for tally in of_side])
        cells = " | ".join(Tally.total(of_side).cells())
        print(f"| **all** | {name} | **{macro:.3f}** | {cells} |", flush=True)


def parsed() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--arctic", type=Path, required=True, help="folder that holds arctic_inference")
    parser.add_argument("--preset", default="default", metavar="PRESET|SOURCE+SOURCE")
    parser.add_argument("--factor", type=float, nargs="+", default=[1.0], help="its max_spec_factor")
    parser.add_argument("--nodes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--families", nargs="+", help="default: all in the subset or the folder")
    parser.add_argument("--subset", type=Path, help="JSON: family -> ids of the items to replay")
    parser.add_argument("--items", type=int, help="first items replayed of a family; default: all")
    parser.add_argument("--cut", type=int, default=600, help="output tokens replayed of an item")
    return parser.parse_args()


def problem_of(arctic: Path) -> str | None:
    """Makes ArcticInference importable; returns what prevents it, or None."""
    sys.path.append(str(arctic))  # the last entry: what both need is read from this environment
    try:
        Arctic(1.0, 1)
    except ImportError as error:
        return f"no usable arctic_inference in {arctic}: {error}"
    return None


def use_one_core() -> None:
    """Keeps this process on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main() -> int:
    """Replays every family with every budget and prints a table for each budget."""
    arguments = parsed()
    if problem := problem_of(arguments.arctic):
        print(f"compare_arctic: {problem}", file=sys.stderr)
        return 2
    use_one_core()
    subset = json.loads(arguments.subset.read_text()) if arguments.subset else None
    found = sorted(path.stem for path in arguments.data.glob("*.jsonl"))
    families = arguments.families or [name for name in found if subset is None or name in subset]
    for max_nodes in arguments.nodes:
        makers: dict[str, Callable[[], Side]] = {arguments.preset: partial(Ours, arguments.preset, max_nodes)}
        makers |= {f"Arctic f{f:g}": partial(Arctic, f, max_nodes) for f in arguments.factor}
        tallies = {}
        for family in families:
            wanted = None if subset is None else set(subset[family])
            replayed = traces(arguments.data / f"{family}.jsonl", wanted, arguments.cut)
            items = list(islice(replayed, arguments.items))
            if not tallies:
                take_turns(makers, items)  # compiles our kernels and is not counted
            tallies[family] = take_turns(makers, items)
        print_table(max_nodes, tallies)
    return 0


if __name__ == "__main__":
    sys.exit(main())
