"""What passes of a target cost, in a file: by drafted nodes, and by the rows of a batch if that was measured.

    {"unit": "ms", "node_counts": [0, 16, 64], "costs": [20.0, 21.0, 35.0],
     "batches": [{"rows": 8, "node_counts": [0, 16], "costs": [24.0, 41.0]}]}

`costs` are of whole passes, in one unit throughout; `node_counts` are the nodes of each row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval_spec.budget import CostCurve
from retrieval_spec.errors import InvalidRequest

MAX_BATCHES = 64


def format_costs(curves: Mapping[int, CostCurve], unit: str) -> dict[str, Any]:
    """Returns rows -> curve as the file has it; there is one of a single row."""
    batches = [{"rows": rows, **_as_fields(curve)} for rows, curve in sorted(curves.items()) if rows > 1]
    said = {"unit": unit, **_as_fields(curves[1])}
    return {**said, "batches": batches} if batches else said


def _as_fields(curve: CostCurve) -> dict[str, Any]:
    return {
        "node_counts": list(curve.node_counts),
        "costs": [round(cost, 4) for cost in curve.costs],
    }


def read_costs(path: str | Path) -> dict[int, CostCurve]:
    """Returns rows of a batch -> curve by the drafted nodes of each row; of one row always, rows rising.

    Raises:
        InvalidRequest: the file cannot be read or holds something else.
    """
    try:
        return parse_costs(json.loads(Path(path).read_text()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"{path} holds no cost curve",
            got=error,
            remedy="write one with `retrieval-spec measure-cost --json`",
        ) from error


def parse_costs(said: Mapping[str, Any]) -> dict[int, CostCurve]:
    """Returns what a file says.

    Raises:
        InvalidRequest: curves or rows that are none.
        KeyError, TypeError, AttributeError: fields that are not there, or of another type.
    """
    curves = {1: CostCurve(tuple(said["node_counts"]), tuple(said["costs"]))}
    batches = said.get("batches") or []
    if len(batches) > MAX_BATCHES:
        raise InvalidRequest("too many batches", got=len(batches), expected=f"<= {MAX_BATCHES}")
    for batch in batches:
        rows = batch["rows"]
        if type(rows) is not int or rows < 1 or (rows > 1 and rows in curves):
            raise InvalidRequest("batches of other sizes, once each", got=rows, expected="rows from 2")
        curves[rows] = CostCurve(tuple(batch["node_counts"]), tuple(batch["costs"]))
    return dict(sorted(curves.items()))
