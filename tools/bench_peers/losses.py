"""In plain words, where another system is better than ours."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from catalogue import BASE, STATIC_BASE, SYSTEMS
from figures import Ratio, mean_acceptance, per_token, ratio

OURS = {system.key for system in SYSTEMS if system.is_ours} | {STATIC_BASE}
COSTS = {"draft_p50_us": "a draft takes", "token_us": "all calls together take"}


def losses(part: dict[str, Any]) -> str:
    """Returns a line for every figure at which a system is better than ours, or that there is none."""
    lines = [
        *_accepted(part["replays"], BASE),
        *_costs(part["replays"], BASE),
        *_rates(part["fed"], BASE, "taking text in"),
        *_accepted(part["static"], STATIC_BASE),
        *_costs(part["static"], STATIC_BASE),
        *_rates(part["built"], STATIC_BASE, "building"),
    ]
    return "".join(f"- {line}\n" for line in lines) or "Nowhere in these tables.\n"


def _others(table: dict[str, Any]) -> list[str]:
    return [system for system in table if system not in OURS]


def _accepted(by_budget: dict[str, Any], base: str) -> list[str]:
    lines = []
    for budget, table in by_budget.items():
        ours = table[base]
        for system in _others(table):
            better = [
                f"{family} ({theirs:.2f}, ours {ours[0]['acceptance'][family]:.2f})"
                for family, theirs in table[system][0]["acceptance"].items()
                if theirs > ours[0]["acceptance"][family]
            ]
            if mean_acceptance(table[system]) > mean_acceptance(ours):
                better.insert(0, "the mean of all families")
            if better:
                lines.append(f"{system} accepts more than `{base}` at {budget} nodes: {', '.join(better)}.")
    return lines


def _costs(by_budget: dict[str, Any], base: str) -> list[str]:
    lines = []
    for key, what in COSTS.items():
        found: dict[str, list[str]] = defaultdict(list)
        for budget, table in by_budget.items():
            for system in _others(table):
                compared = ratio(table, system, base, key)
                if compared is not None and compared.value < 1:
                    found[system].append(f"{compared} at {budget} nodes{_doubt(compared)}")
        lines += [
            f"{system}: {what} less time than of `{base}`, {'; '.join(at)}." for system, at in found.items()
        ]
    return lines


def _rates(tables: dict[str, Any], base: str, what: str) -> list[str]:
    table, lines = per_token(tables), []
    for system in _others(table):
        rate, size = (ratio(table, system, base, key) for key in ("rate", "bytes"))
        if rate is not None and rate.value > 1:
            lines.append(f"{system}: {what} is {rate} times as fast as of `{base}`{_doubt(rate)}.")
        if size is not None and size.value < 1:
            lines.append(f"{system}: {what} takes {size} of the bytes a token of `{base}`{_doubt(size)}.")
    return lines


def _doubt(found: Ratio) -> str:
    """Says so where the spread leaves open who is better."""
    return " (within the spread)" if abs(found.value - 1) <= found.spread * found.value else ""
