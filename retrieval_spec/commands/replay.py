"""`retrieval-spec replay`: what drafts would gain on recorded traffic, before anything is deployed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_spec.budget import CostCurve
from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.datastore.progress import Progress
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.drafters.presets import preset_or_sources
from retrieval_spec.engine import Engine
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.replay import Tally, replay
from retrieval_spec.traces import Trace, TraceReader

DEFAULT_VOCAB_SIZE = 262_144
"""Where neither a tokenizer nor a number says how many ids there are: as many as the largest models have."""
_SHOWN_POSITIONS = 8


def replay_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Replays files of traces and returns what came of each family, ready for JSON.

    Every family has an engine of its own, as a namespace has, so that the result does not depend on
    `--processes`.

    Raises:
        InvalidRequest: numbers out of range, no traces, or lines that are none.
        RetrievalSpecError: a datastore, tokenizer or preset that cannot be used.
    """
    for name in ("max_nodes", "processes"):
        if getattr(arguments, name) < 1:
            raise InvalidRequest(f"--{name.replace('_', '-')} is out of range", expected="1 or more")
    cost_curve = _cost_curve(arguments)
    with progress_bar() as progress:
        families, vocab_size = _families(arguments, progress)
        work = partial(
            _replay_family,
            vocab_size=vocab_size,
            sources=arguments.preset,
            datastores=arguments.datastore,
            max_nodes=arguments.max_nodes,
            cost_curve=cost_curve,
        )
        tallies = dict(_replayed(families, work, arguments.processes, progress))
    return _result(tallies, arguments, has_costs=cost_curve is not None)


def _cost_curve(arguments: argparse.Namespace) -> CostCurve | None:
    if arguments.cost_per_node is not None:
        return CostCurve.linear(arguments.cost_per_node)
    if arguments.cost_curve is None:
        return None
    try:
        said = json.loads(Path(arguments.cost_curve).read_text())
        return CostCurve(tuple(said["node_counts"]), tuple(said["costs"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidRequest(
            f"{arguments.cost_curve} holds no cost curve",
            got=error,
            remedy="write one with `retrieval-spec measure-cost --json`",
        ) from error


def _families(arguments: argparse.Namespace, progress: Progress) -> tuple[dict[str, list[Trace]], int]:
    """Returns the traces by family in file order, and how many ids there are."""
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


def _replayed(
    families: Mapping[str, list[Trace]], work: Any, num_processes: int, progress: Progress
) -> Iterator[tuple[str, Tally]]:
    num_tokens = {name: sum(trace.output.shape[0] for trace in traces) for name, traces in families.items()}
    progress.start("replaying", sum(num_tokens.values()), "tokens")
    if num_processes == 1:
        for name, traces in families.items():
            yield name, work(traces, advance=progress.advance)
        return
    with ProcessPoolExecutor(num_processes) as pool:
        for name, tally in zip(families, pool.map(work, families.values()), strict=True):
            progress.advance(num_tokens[name])
            yield name, tally


def _replay_family(
    traces: list[Trace],
    vocab_size: int,
    sources: str,
    datastores: list[str],
    max_nodes: int,
    cost_curve: CostCurve | None,
    advance: Any = None,
) -> Tally:
    engine, tally = Engine(vocab_size, preset=preset_or_sources(sources), datastores=datastores), Tally()
    for trace in traces:
        replay(engine, [trace], max_nodes, cost_curve, tally)
        if advance is not None:
            advance(trace.output.shape[0])
    return tally


def _result(
    tallies: Mapping[str, Tally], arguments: argparse.Namespace, *, has_costs: bool
) -> dict[str, Any]:
    total = Tally()
    for tally in tallies.values():
        total.merge(tally)
    return {
        "preset": arguments.preset,
        "max_nodes": arguments.max_nodes,
        "all": _facts(total, has_costs=has_costs),
        "families": {name: _facts(tally, has_costs=has_costs) for name, tally in tallies.items()},
    }


def _facts(tally: Tally, *, has_costs: bool) -> dict[str, Any]:
    latencies = np.percentile(tally.draft_us, [50, 99]).tolist()
    facts = {
        "traces": tally.traces,
        "tokens": tally.tokens,
        "steps": tally.steps,
        "mean_acceptance_length": tally.mean_acceptance_length,
        "accepted_share_of_nodes": tally.accepted_tokens / max(tally.drafted_nodes, 1),
        "acceptance_by_position": (tally.accepted_at[:_SHOWN_POSITIONS] / max(tally.steps, 1)).tolist(),
        "calibration_error": tally.calibration_error,
        "draft_us_p50": latencies[0],
        "draft_us_p99": latencies[1],
        "sources": {
            name: {
                "drafted_nodes": source.drafted_nodes,
                "accepted_nodes": source.accepted_nodes,
                "won_nodes": source.won_nodes,
            }
            for name, source in tally.sources.items()
        },
    }
    return {**facts, "projected_speedup": tally.speedup} if has_costs else facts


def table_of(result: Mapping[str, Any]) -> str:
    """Returns the result as a table for a terminal, the families and then all together."""
    head = ("family", "traces", "tokens", "length", "1st", "2nd", "3rd", "accepted", "error", "p50 us")
    has_speedup = "projected_speedup" in result["all"]
    rows: list[tuple[str, ...]] = [(*head, "speed-up") if has_speedup else head]
    for name, facts in (*result["families"].items(), ("all", result["all"])):
        first = [f"{share:.2f}" for share in facts["acceptance_by_position"][:3]]
        row = (
            *(name, f"{facts['traces']:,}", f"{facts['tokens']:,}", f"{facts['mean_acceptance_length']:.3f}"),
            *first,
            *(f"{facts['accepted_share_of_nodes']:.2f}", f"{facts['calibration_error']:.3f}"),
            f"{facts['draft_us_p50']:.0f}",
        )
        rows.append((*row, f"{facts['projected_speedup']:.2f}") if has_speedup else row)
    return "\n".join([*_aligned(rows), "", *_aligned(_source_rows(result["all"]["sources"]))])


def _source_rows(sources: Mapping[str, Mapping[str, int]]) -> list[tuple[str, ...]]:
    counts = ("drafted_nodes", "accepted_nodes", "won_nodes")
    return [
        ("source", "drafted", "accepted", "it alone"),
        *((name, *(f"{source[count]:,}" for count in counts)) for name, source in sources.items()),
    ]


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in rows
    ]
