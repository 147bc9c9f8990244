"""`retrieval-spec measure-cost`: what a step of a model costs on this machine, by its drafted nodes."""

from __future__ import annotations

import argparse
from typing import Any

from retrieval_spec.commands.generate import load_model


def measure_cost_command(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the cost curve as `replay --cost-curve` takes it.

    Raises:
        MissingPath: there is no such model.
        MissingDependency: torch or transformers is not installed.
        RetrievalSpecError: what `measure_step_costs` refuses.
    """
    model, _ = load_model(arguments.model)
    from retrieval_spec.verifier.costs import measure_step_costs

    curve = measure_step_costs(model, arguments.nodes, arguments.context_tokens, arguments.rounds)
    return {
        "unit": "ms",
        "node_counts": list(curve.node_counts),
        "costs": [round(cost, 4) for cost in curve.costs],
    }


def table_of(result: dict[str, Any]) -> str:
    """Returns the curve as lines for a terminal, with ratios to the plain step."""
    lines = [f"{'nodes':>6}  {'ms a step':>10}  {'of plain':>8}"]
    for count, cost in zip(result["node_counts"], result["costs"], strict=True):
        lines.append(f"{count:>6}  {cost:>10.3f}  {cost / result['costs'][0]:>8.2f}")
    return "\n".join(lines)
