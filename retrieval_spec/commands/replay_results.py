"""What `retrieval-spec replay` says: the figures of each family and of all, ready for JSON, and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from retrieval_spec.budget import CostCurve
from retrieval_spec.commands.replaying import Found
from retrieval_spec.match_lengths import RANGES
from retrieval_spec.replay import Tally

_SHOWN_POSITIONS = 8
_MIB = 1 << 20

Facts = Mapping[str, Any]
Rows = list[tuple[str, ...]]


def result_of(
    families: Mapping[str, Found],
    preset: str,
    max_nodes: int,
    curves: Mapping[int, CostCurve],
    datastore_bytes: int,
) -> dict[str, Any]:
    """Returns the figures of each family and of all together, ready for JSON."""
    total = Found()
    for found in families.values():
        total.merge(found)
    return {
        "preset": preset,
        "max_nodes": max_nodes,
        "datastore_bytes": datastore_bytes,
        "all": _facts(total, curves),
        "families": {name: _facts(found, curves) for name, found in families.items()},
    }


def _facts(found: Found, curves: Mapping[int, CostCurve]) -> dict[str, Any]:
    facts = {
        **_facts_of_steps(found.tally),
        "by_match_length": _by_match_length(found.by_match),
        "memory": {"session_bytes": found.session_bytes, "learned_bytes": found.learned_bytes},
    }
    if curves:
        facts["projected_speedup"] = found.tally.speedup
    return {**facts, **_by_batch(found, curves)} if found.paying else facts


def _facts_of_steps(tally: Tally) -> dict[str, Any]:
    latencies = np.percentile(tally.draft_us, [50, 99]).tolist()
    return {
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


def _by_match_length(counts: Any) -> dict[str, dict[str, float]]:
    return {
        name: {
            "steps": steps,
            "drafted_nodes": drafted,
            "accepted_tokens": accepted,
            "mean_acceptance_length": 1.0 + accepted / max(steps, 1),
        }
        for name, (steps, drafted, accepted) in zip(RANGES, counts.T.tolist(), strict=True)
    }


def _by_batch(found: Found, curves: Mapping[int, CostCurve]) -> dict[str, Any]:
    """Returns what is projected for batches, and the largest ones in which drafting pays."""
    batches = [
        {
            "rows": rows,
            "nodes_a_step": tally.drafted_nodes / max(tally.steps, 1),
            "mean_acceptance_length": tally.mean_acceptance_length,
            "projected_speedup": tally.speedup,
            "projected_speedup_of_full_trees": found.full.tokens / found.full.cost_under(curves[rows]),
        }
        for rows, tally in found.paying.items()
    ]
    return {
        "batches": batches,
        "break_even_rows": _largest_paying(batches, "projected_speedup"),
        "break_even_rows_of_full_trees": _largest_paying(batches, "projected_speedup_of_full_trees"),
    }


def _largest_paying(batches: list[dict[str, Any]], speedup: str) -> int:
    """Returns 0 if drafting pays in none."""
    return max((int(batch["rows"]) for batch in batches if batch[speedup] > 1.0), default=0)


def table_of(result: Facts) -> str:
    """Returns the result as tables for a terminal: the families and all, then of all what it is made of."""
    whole = result["all"]
    tables = [
        _family_rows(result),
        _source_rows(whole["sources"]),
        _match_rows(whole["by_match_length"]),
    ]
    if "batches" in whole:
        tables.append(_batch_rows(whole["batches"]))
    lines = "\n\n".join("\n".join(_aligned(rows)) for rows in tables if len(rows) > 1)
    if "batches" in whole:
        lines += "\n\n" + _break_even(whole)
    return lines


def _family_rows(result: Facts) -> Rows:
    head = ("family", "traces", "tokens", "length", "1st", "2nd", "3rd", "accepted", "error", "p50 us", "MiB")
    has_speedup = "projected_speedup" in result["all"]
    rows: Rows = [(*head, "speed-up") if has_speedup else head]
    for name, facts in (*result["families"].items(), ("all", result["all"])):
        first = [f"{share:.2f}" for share in facts["acceptance_by_position"][:3]]
        row = (
            *(name, f"{facts['traces']:,}", f"{facts['tokens']:,}", f"{facts['mean_acceptance_length']:.3f}"),
            *first,
            *(f"{facts['accepted_share_of_nodes']:.2f}", f"{facts['calibration_error']:.3f}"),
            *(f"{facts['draft_us_p50']:.0f}", f"{sum(facts['memory'].values()) / _MIB:.1f}"),
        )
        rows.append((*row, f"{facts['projected_speedup']:.2f}") if has_speedup else row)
    return rows


def _source_rows(sources: Facts) -> Rows:
    counts = ("drafted_nodes", "accepted_nodes", "won_nodes")
    return [
        ("source", "drafted", "accepted", "it alone"),
        *((name, *(f"{source[count]:,}" for count in counts)) for name, source in sources.items()),
    ]


def _match_rows(by_match_length: Facts) -> Rows:
    return [
        ("match", "steps", "drafted", "accepted", "length"),
        *(
            (
                *(name, f"{counts['steps']:,}", f"{counts['drafted_nodes']:,}"),
                *(f"{counts['accepted_tokens']:,}", f"{counts['mean_acceptance_length']:.3f}"),
            )
            for name, counts in by_match_length.items()
        ),
    ]


def _batch_rows(batches: list[Facts]) -> Rows:
    return [
        ("rows", "nodes a step", "length", "speed-up", "of full trees"),
        *(
            (
                *(f"{batch['rows']}", f"{batch['nodes_a_step']:.1f}"),
                *(f"{batch['mean_acceptance_length']:.3f}", f"{batch['projected_speedup']:.2f}"),
                f"{batch['projected_speedup_of_full_trees']:.2f}",
            )
            for batch in batches
        ),
    ]


def _break_even(facts: Facts) -> str:
    pays, full = facts["break_even_rows"], facts["break_even_rows_of_full_trees"]
    return f"drafting pays up to {pays} rows, full trees up to {full} (of those that were measured)"


def _aligned(rows: Rows) -> list[str]:
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
