"""`retrieval-spec measure-cost`: what a step of a model costs on this machine, by nodes and rows."""

from __future__ import annotations

import argparse
from typing import Any

from retrieval_spec.commands.generate import load_model
from retrieval_spec.cost_file import format_costs


def measure_cost_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the cost curve as `replay --cost-curve` takes it.

    Raises:
        MissingPath: there is no such model.
        MissingDependency: torch or transformers is not installed.
        RetrievalSpecError: what `measure_step_costs` refuses.
    """
    model, _ = load_model(arguments.model)
    from retrieval_spec.verifier.costs import measure_step_costs

    curves = {
        rows: measure_step_costs(
            model, arguments.nodes, arguments.context_tokens, arguments.rounds, num_rows=rows
        )
        for rows in sorted({1, *arguments.batch_sizes})
    }
    return format_costs(curves, "ms")


def table_of(result: dict[str, Any]) -> str:
    """Returns the curves as lines for a terminal, with ratios to the plain step of as many rows."""
    lines = [f"{'rows':>6}  {'nodes':>6}  {'ms a step':>10}  {'of plain':>8}"]
    for batch in ({"rows": 1, **result}, *result.get("batches", [])):
        for count, cost in zip(batch["node_counts"], batch["costs"], strict=True):
            lines.append(f"{batch['rows']:>6}  {count:>6}  {cost:>10.3f}  {cost / batch['costs'][0]:>8.2f}")
    return "\n".join(lines)
