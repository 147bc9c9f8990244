"""The charts of a report as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval_spec.errors import InvalidRequest, MissingDependency
from retrieval_spec.report.summary import ALL

_SIZE_INCHES = (6.4, 4.0)
_DOTS_PER_INCH = 150
_DASHES = ("-", "--", ":", "-.", (0, (6, 2, 1, 2, 1, 2)))


def new_figure() -> Any:
    """Returns an empty figure that needs no screen.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency(
            "matplotlib is not installed", remedy="pip install 'retrieval-spec[report]', or leave out --png"
        ) from error
    figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_plots(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Writes a file for each chart of all families together and returns them.

    Raises:
        InvalidRequest: the folder cannot be written to.
        MissingDependency: matplotlib is not installed.
    """
    written = []
    for name, draw in _PLOTS.items():
        figure = new_figure()
        draw(figure.subplots(), summary["totals"][ALL], summary)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(folder / f"{name}.png", dpi=_DOTS_PER_INCH)
        except OSError as error:
            raise InvalidRequest(f"plots cannot be written to {folder}", got=error) from error
        written.append(folder / f"{name}.png")
    return written


def _draw_sources(axes: Any, totals: dict[str, Any], summary: dict[str, Any]) -> None:
    names = list(totals["sources"])[::-1]
    counts = [totals["sources"][name] for name in names]
    rows = range(len(names))
    axes.barh(rows, [one[0] for one in counts], fill=False, label="drafted")
    axes.barh(rows, [one[1] for one in counts], label="came true")
    axes.barh(rows, [one[2] for one in counts], height=0.3, hatch="//", label="came true, it alone")
    axes.set_yticks(list(rows), names, parse_math=False)  # a folder's name may hold a dollar sign
    axes.set(title="Sources", xlabel="nodes")
    axes.legend()


def _draw_positions(axes: Any, totals: dict[str, Any], summary: dict[str, Any]) -> None:
    shares = totals["positions"]
    axes.bar(range(1, len(shares) + 1), shares)
    axes.set(title="Acceptance by position", xlabel="drafted token of the step", ylabel="share of steps")


def _draw_reliability(axes: Any, totals: dict[str, Any], summary: dict[str, Any]) -> None:
    bins = totals["reliability"]
    most = max((nodes for nodes, _, _ in bins), default=1)
    expected, accepted = [one[1] for one in bins], [one[2] for one in bins]
    axes.plot([0, 1], [0, 1], ":", color="grey")
    axes.plot(expected, accepted)
    axes.scatter(expected, accepted, s=[10 + 90 * nodes / most for nodes, _, _ in bins])
    axes.set(title="Are the probabilities true?", xlabel="path probability", ylabel="share that came true")


def _draw_speedups(axes: Any, totals: dict[str, Any], summary: dict[str, Any]) -> None:
    sizes = summary["batch_sizes"]
    for at, (name, line) in enumerate(totals["speedups"].items()):
        axes.plot(sizes, line, linestyle=_DASHES[at % len(_DASHES)], label=name)
    axes.axhline(1.0, color="grey", linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(sizes), [str(size) for size in sizes])
    axes.set(title="Speed-up over batch size", xlabel="sessions in a batch", ylabel="speed-up")
    axes.legend()


def _draw_lengths(axes: Any, totals: dict[str, Any], summary: dict[str, Any]) -> None:
    axes.plot(totals["lengths_by_nodes"])
    axes.set(
        title="Tokens a step over drafted nodes", xlabel="nodes of a tree at most", ylabel="tokens a step"
    )


_PLOTS: dict[str, Callable[[Any, dict[str, Any], dict[str, Any]], None]] = {
    "sources": _draw_sources,
    "positions": _draw_positions,
    "reliability": _draw_reliability,
    "speedups": _draw_speedups,
    "lengths": _draw_lengths,
}
