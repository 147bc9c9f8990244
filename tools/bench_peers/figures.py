"""Ratios between systems, how far they spread over repeats, and whether a second run agrees with a first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from catalogue import BASE, STATIC_BASE

LEAST_SPREAD = 0.5
"""Stated at least: of 132 ratios of two runs on end, the furthest were 43 % apart."""
MARGIN = 1.5
"""Times the furthest repeat: a few repeats of one run do not show all that another one may bring."""

Results = dict[str, Any]
Repeats = Sequence[dict[str, Any]]


class RepeatsDiffer(Exception):
    """Two repeats of one replay accepted different tokens."""


@dataclass(frozen=True)
class Ratio:
    """A figure over the base's of the same repeat: the median, and how far another run may be from it.

    Attributes:
        value: median over the repeats.
        spread: a share of the value.
    """

    value: float
    spread: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """Returns the ratio over repeats."""
        middle = median(ratios)
        furthest = max(abs(ratio / middle - 1) for ratio in ratios)
        return cls(middle, max(LEAST_SPREAD, MARGIN * furthest))

    def agrees(self, other: Ratio) -> bool:
        """Whether the other one's value lies within this one's spread."""
        return abs(other.value / self.value - 1) <= self.spread

    def __str__(self) -> str:
        digits = 2 if self.value < 10 else 1 if self.value < 100 else 0
        return f"{self.value:.{digits}f} ±{100 * self.spread:.0f} %"


def check_repeats(name: str, repeats: Repeats) -> None:
    """Raises `RepeatsDiffer` unless all repeats accepted the same tokens in the same steps."""
    if len({repeat["accepted"] for repeat in repeats}) > 1:
        raise RepeatsDiffer(f"{name}: repeats of one replay accepted different tokens")


def middle(repeats: Repeats, key: str) -> float | None:
    """Returns the median of a figure; None where it was not told."""
    told = [repeat[key] for repeat in repeats if repeat[key] is not None]
    return median(told) if told else None


def mean_acceptance(repeats: Repeats) -> float:
    """Returns the plain mean over families of the mean acceptance length."""
    return fmean(repeats[0]["acceptance"].values())


def ratio(table: dict[str, Repeats], system: str, base: str, key: str) -> Ratio | None:
    """Returns a system's figure over the base's, repeat by repeat; None where one has none."""
    pairs = zip(table.get(system, ()), table.get(base, ()), strict=False)
    told = [(theirs[key], ours[key]) for theirs, ours in pairs]
    if not told or any(not theirs or not ours for theirs, ours in told):
        return None
    return Ratio.of([theirs / ours for theirs, ours in told])


def per_token(tables: dict[str, Repeats]) -> dict[str, list[dict[str, Any]]]:
    """Returns what building or feeding took, for each token."""
    return {
        system: [
            {
                "rate": repeat["tokens"] / repeat["seconds"],
                "bytes": None if repeat["bytes"] is None else repeat["bytes"] / repeat["tokens"],
            }
            for repeat in repeats
        ]
        for system, repeats in tables.items()
    }


def acceptances(results: Results) -> dict[str, float]:
    """Returns every acceptance figure by a name."""
    return {
        f"{part['facts']['name']}, {kind}, {system}, {family} @{budget}": value
        for part in results["sets"]
        for kind in ("replays", "static")
        for budget, table in part[kind].items()
        for system, repeats in table.items()
        for family, value in repeats[0]["acceptance"].items()
    }


def ratios(results: Results) -> dict[str, Ratio]:
    """Returns every ratio by a name."""
    return {name: found for name, found in _ratios(results) if found is not None}


def _ratios(results: Results) -> Iterator[tuple[str, Ratio | None]]:
    for part in results["sets"]:
        for kind, base in (("replays", BASE), ("static", STATIC_BASE)):
            for budget, table in part[kind].items():
                for system in set(table) - {base}:
                    for key in ("draft_p50_us", "token_us"):
                        name = f"{part['facts']['name']}, {kind}, {system}, {key} @{budget}"
                        yield name, ratio(table, system, base, key)
        for kind, base in (("fed", BASE), ("built", STATIC_BASE)):
            table = per_token(part[kind])
            for system in set(table) - {base}:
                for key in ("rate", "bytes"):
                    yield f"{part['facts']['name']}, {kind}, {system}, {key}", ratio(table, system, base, key)


@dataclass(frozen=True)
class Comparison:
    """A second run beside a first one on the same text.

    Attributes:
        num_acceptances, num_ratios: how many figures both have.
        changed: acceptance figures that differ.
        strayed: ratios outside the spread that the first run stated, with both values.
    """

    num_acceptances: int
    num_ratios: int
    changed: list[str]
    strayed: list[str]

    @classmethod
    def of(cls, first: Results, second: Results) -> Comparison:
        """Compares what both measured."""
        before, after = acceptances(first), acceptances(second)
        stated, found = ratios(first), ratios(second)
        both = sorted(stated.keys() & found.keys())
        return cls(
            len(before.keys() & after.keys()),
            len(both),
            [name for name in sorted(before.keys() & after.keys()) if before[name] != after[name]],
            [
                f"{name}: {stated[name]}, then {found[name].value:.3g}"
                for name in both
                if not stated[name].agrees(found[name])
            ],
        )
