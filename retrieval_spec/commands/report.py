"""`retrieval-spec report`: a replay as a page for the browser, as tables and as plots."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from retrieval_spec.commands.progress_bar import progress_bar
from retrieval_spec.commands.replay import check_numbers, cost_curves_of, read_families, replay_families
from retrieval_spec.commands.replaying import Replayer
from retrieval_spec.datastore.atomic import check_parent, draft_file
from retrieval_spec.datastore.segments import open_segments
from retrieval_spec.datastore.tokenizer import load_tokenizer
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.match_lengths import MatchLengths
from retrieval_spec.report.matches import CorpusMatches
from retrieval_spec.report.page import page_of
from retrieval_spec.report.plots import new_figure, write_plots
from retrieval_spec.report.recording import Recorder, choose
from retrieval_spec.report.summary import Asked, Replayed, summary_of
from retrieval_spec.report.terminal import new_console, show
from retrieval_spec.traces import Trace

MAX_SHOWN = 1_000
MAX_SHOWN_TOKENS = 100_000
"""Of all generations together, so that a page stays below 5 MB."""


def report_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Replays files of traces, writes the page and what else was asked for, and returns what is on it.

    Raises:
        InvalidRequest: numbers out of range, no traces, or lines that are none.
        MissingDependency: something is asked for that needs a package which is not installed.
        RetrievalSpecError: a datastore, tokenizer or preset that cannot be used.
    """
    output = Path(arguments.output)
    check_parent(output.absolute())
    if arguments.png:
        new_figure()  # what is missing is said before anybody waits
    console = None if arguments.json else new_console()
    summary = _summary(arguments)
    with draft_file(output) as file:
        file.write(page_of(summary).encode("utf-8"))
    plots = write_plots(summary, Path(arguments.png)) if arguments.png else []
    if console is not None:
        show(summary, console)
        console.print(*(f"written: {path}" for path in (output, *plots)), sep="\n", markup=False)
    return {
        "output": str(output),
        "bytes": output.stat().st_size,
        "png": [str(path) for path in plots],
        "totals": summary["totals"],
    }


def _summary(arguments: argparse.Namespace) -> dict[str, Any]:
    check_numbers(arguments, ("max_nodes", "processes", "show", "show_tokens"))
    if arguments.show > MAX_SHOWN:
        raise InvalidRequest("--show is out of range", got=arguments.show, expected=f"1 to {MAX_SHOWN}")
    curves = cost_curves_of(arguments)
    with progress_bar() as progress:
        families, vocab_size = read_families(arguments, progress)
        chosen = choose({name: len(traces) for name, traces in families.items()}, arguments.show)
        num_chosen = sum(map(len, chosen.values()))
        work = partial(
            _record_family,
            replayer=Replayer(
                vocab_size, arguments.preset, tuple(arguments.datastore), arguments.max_nodes, curves
            ),
            chosen=chosen,
            max_tokens=min(arguments.show_tokens, MAX_SHOWN_TOKENS // num_chosen),
        )
        replayed = dict(replay_families(families, work, arguments.processes, progress))
    tokenizer = load_tokenizer(arguments.tokenizer) if arguments.tokenizer else None
    return summary_of(replayed, Asked(arguments.preset, arguments.max_nodes, curves), tokenizer)


def _record_family(
    traces: list[Trace],
    replayer: Replayer,
    chosen: dict[str, list[int]],
    max_tokens: int,
    advance: Callable[[int], None] | None = None,
) -> Replayed:
    """Replays one family, in this process or another."""
    corpora = CorpusMatches([open_segments(place) for place in replayer.datastores])
    recorder = Recorder(chosen[traces[0].family], max_tokens, replayer.max_nodes, corpora)
    lengths = MatchLengths()
    curve = replayer.curves.get(1)
    tally = replayer.replay(replayer.new_engine(), traces, curve, advance, recorder, lengths)
    recorder.close()
    return Replayed(tally, recorder, lengths.counts)
