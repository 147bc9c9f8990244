"""The cost curve of a step as columns of its message."""

from __future__ import annotations

import numpy as np

from retrieval_spec.budget import MAX_CURVE_POINTS, CostCurve
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.v1.draft_pb2 import DraftStep, DraftSuffixesRequest
from retrieval_spec.wire.columns import FLOAT64, INT32, column_bytes, read_column


def write_cost_curve(step: DraftStep | DraftSuffixesRequest, cost_curve: CostCurve | None) -> None:
    """Tells a step's curve; None ends the one that the server remembers."""
    step.cost_curve.SetInParent()
    if cost_curve is not None:
        step.cost_curve.node_counts = column_bytes(np.array(cost_curve.node_counts, np.int32))
        step.cost_curve.costs = column_bytes(np.array(cost_curve.costs, np.float64))


def read_cost_curve(step: DraftStep | DraftSuffixesRequest) -> CostCurve | None:
    """Returns the curve that a step tells, None if it tells that there is none.

    Raises:
        InvalidRequest: columns that do not fit each other, or points that are no cost curve.
    """
    message = step.cost_curve
    num_points = len(message.costs) // 8
    if num_points > MAX_CURVE_POINTS:
        raise InvalidRequest("a cost curve of too many points", expected=f"<= {MAX_CURVE_POINTS}")
    counts = read_column(message.node_counts, "cost_curve.node_counts", INT32, num_points)
    costs = read_column(message.costs, "cost_curve.costs", FLOAT64, num_points)
    return CostCurve(tuple(counts.tolist()), tuple(costs.tolist())) if num_points else None
