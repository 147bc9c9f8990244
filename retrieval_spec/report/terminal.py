"""The report in short, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from retrieval_spec.errors import MissingDependency
from retrieval_spec.report.summary import ALL

_BAR_CHARACTERS = 24
_POSITIONS = 8
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_COLOURS = ("blue", "yellow", "green", "magenta", "red", "cyan")


def new_console() -> Any:
    """Returns where `show` prints: colours and widths as the terminal has them.

    Raises:
        MissingDependency: rich is not installed.
    """
    try:
        from rich.console import Console
    except ImportError as error:
        raise MissingDependency(
            "rich is not installed", remedy="pip install 'retrieval-spec[report]', or give --json"
        ) from error
    return Console(highlight=False)


def show(summary: dict[str, Any], console: Any) -> None:
    """Prints families, sources, positions, probabilities and speed-ups."""
    totals = summary["totals"][ALL]
    console.print(_families(summary))
    for table in (_sources(totals, summary["source_names"]), _positions(totals), _reliability(totals)):
        console.print(table)
    console.print(_speedups(totals, summary["batch_sizes"]))


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for at, column in enumerate(columns):
        table.add_column(column, justify="right" if at and column else "left", overflow="fold")
    for row in rows:
        # Names come from files: as Text, no bracket in them is a style.
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return table


def _bar(share: float, colour: str) -> Any:
    from rich.text import Text

    eighths = round(min(max(share, 0.0), 1.0) * _BAR_CHARACTERS * 8)
    filled = "█" * (eighths // 8) + (_EIGHTHS[eighths % 8] if eighths % 8 else "")
    return Text(filled.ljust(_BAR_CHARACTERS), style=colour)


def _families(summary: dict[str, Any]) -> Any:
    totals = summary["totals"]
    names = [*(name for name in totals if name != ALL), ALL]
    head = ["family", "traces", "tokens", "tokens a step", "nodes accepted", "error", "p50 µs"]
    rows = [_family(name, totals[name]) for name in names]
    if summary["has_costs"]:
        head.append("speed-up")
    title = f"Replayed with preset {summary['preset']}, {summary['max_nodes']} nodes a step at most"
    return _table(title, head, rows)


def _family(name: str, one: dict[str, Any]) -> list[str]:
    row = [
        name,
        f"{one['traces']:,}",
        f"{one['tokens']:,}",
        f"{one['mean_acceptance_length']:.2f}",
        f"{one['accepted_share_of_nodes']:.0%}",
        f"{one['calibration_error']:.3f}",
        f"{one['draft_us_p50']:.0f}",
    ]
    return [*row, f"{one['speedup']:.2f}"] if "speedup" in one else row


def _sources(totals: dict[str, Any], names: Sequence[str]) -> Any:
    most = max((drafted for drafted, _, _ in totals["sources"].values()), default=1)
    rows = [
        (
            name,
            _bar(accepted / max(most, 1), _COLOURS[names.index(name) % len(_COLOURS)]),
            *(f"{count:,}" for count in (drafted, accepted, alone)),
        )
        for name, (drafted, accepted, alone) in totals["sources"].items()
    ]
    return _table("Sources", ("source", "", "drafted", "came true", "it alone"), rows)


def _positions(totals: dict[str, Any]) -> Any:
    rows = [
        (str(position), _bar(share, _COLOURS[0]), f"{share:.1%}")
        for position, share in enumerate(totals["positions"][:_POSITIONS], 1)
    ]
    return _table("Acceptance by position", ("drafted token", "", "share of steps"), rows)


def _reliability(totals: dict[str, Any]) -> Any:
    bins = totals["reliability"]
    rows = [
        (f"{expected:.0%}", _bar(accepted, _COLOURS[2]), f"{accepted:.0%}", f"{nodes:,}")
        for nodes, expected, accepted in bins[:: max(1, len(bins) // 10)]
    ]
    return _table("Probabilities", ("path probability", "", "came true", "nodes"), rows)


def _speedups(totals: dict[str, Any], batch_sizes: Sequence[int]) -> Any:
    rows = [(name, *(f"{value:.2f}" for value in line)) for name, line in totals["speedups"].items()]
    return _table("Speed-up over batch size", ("sessions", *map(str, batch_sizes)), rows)
