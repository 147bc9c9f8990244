"""`retrieval-spec replay`: what drafts would gain on recorded traffic, before anything is deployed."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from retrieval_spec.budget import CostCurve
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.commands.replay_results import result_of
from retrieval_spec.commands.replaying import Replayer
from retrieval_spec.cost_file import read_costs
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.segments import open_segments
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.traces import Trace, TraceReader

DEFAULT_VOCAB_SIZE = 262_144
"""Where neither a tokenizer nor a number says how many ids there are: as many as the largest models have."""


def replay_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Replays files of traces and returns what came of each family, ready for JSON.

    Every family has an engine of its own, as a namespace has, so that the result does not depend on
    `--processes`.

    Raises:
        InvalidRequest: numbers out of range, no traces, or lines that are none.
        RetrievalSpecError: a datastore, tokenizer or preset that cannot be used.
    """
    check_numbers(arguments, ("max_nodes", "processes"))
    if arguments.leave_one_out and not arguments.datastore:
        raise InvalidRequest(
            "--leave-one-out is about datastores, and there is none",
            remedy="leave it out: what is learned on the way is learned when an output ended",
        )
    curves = cost_curves_of(arguments)
    with progress_bar() as progress:
        families, vocab_size = read_families(arguments, progress)
        replayer = Replayer(
            vocab_size,
            arguments.preset,
            tuple(arguments.datastore),
            arguments.max_nodes,
            curves,
            leaves_own_out=arguments.leave_one_out,
        )
        replayed = replay_families(families, replayer, arguments.processes, progress, replayer.num_replays)
        found = dict(replayed)
    datastore_bytes = sum(open_segments(path).num_bytes for path in arguments.datastore)
    return result_of(found, arguments.preset, arguments.max_nodes, curves, datastore_bytes)


def check_numbers(arguments: argparse.Namespace, names: Iterable[str]) -> None:
    """Refuses what counts nothing.

    Raises:
        InvalidRequest: one of these options is below 1.
    """
    for name in names:
        if getattr(arguments, name) < 1:
            raise InvalidRequest(f"--{name.replace('_', '-')} is out of range", expected="1 or more")


def cost_curves_of(arguments: argparse.Namespace) -> dict[int, CostCurve]:
    """Returns rows of a batch -> what a pass costs; nothing where nobody said.

    Raises:
        InvalidRequest: a file that holds no curve.
    """
    if arguments.cost_per_node is not None:
        return {1: CostCurve.linear(arguments.cost_per_node)}
    return {} if arguments.cost_curve is None else read_costs(arguments.cost_curve)


def read_families(arguments: argparse.Namespace, progress: Progress) -> tuple[dict[str, list[Trace]], int]:
    """Returns the traces by family in file order, and how many ids there are.

    Raises:
        InvalidRequest: there are none, or lines that are no traces.
    """
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    vocab_size = arguments.vocab_size or (tokenizer.vocab_size if tokenizer else DEFAULT_VOCAB_SIZE)
    reader = TraceReader(tokenizer, vocab_size)
    families: dict[str, list[Trace]] = {}
    paths = [Path(name) for name in arguments.traces]
    progress.start("reading", sum(path.stat().st_size for path in paths if path.is_file()), "B")
    for trace in chain.from_iterable(reader.read(path, progress.advance) for path in paths):
        cut = trace._replace(output=trace.output[: arguments.max_output_tokens])
        if cut.output.shape[0]:
            families.setdefault(trace.family, []).append(cut)
    if not families:
        raise InvalidRequest("there is no output to replay", got=" ".join(arguments.traces))
    return families, vocab_size


def replay_families(
    families: Mapping[str, list[Trace]],
    work: Any,
    num_processes: int,
    progress: Progress,
    num_replays: int = 1,
) -> Iterator[tuple[str, Any]]:
    """Yields each family and what `work` returned for its traces, in one process or several."""
    num_tokens = {
        name: num_replays * sum(trace.output.shape[0] for trace in traces)
        for name, traces in families.items()
    }
    progress.start("replaying", sum(num_tokens.values()), "tokens")
    if num_processes == 1:
        for name, traces in families.items():
            yield name, work(traces, advance=progress.advance)
        return
    with ProcessPoolExecutor(num_processes) as pool:
        for name, found in zip(families, pool.map(work, families.values()), strict=True):
            progress.advance(num_tokens[name])
            yield name, found
