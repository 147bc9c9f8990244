"""Files of what passes cost: what is written is read again, and what is none is refused."""

from __future__ import annotations

import json

import pytest

from retrieval_spec.budget import CostCurve
from retrieval_spec.cost_file import format_costs, read_costs
from retrieval_spec.errors import InvalidRequest

CURVES = {1: CostCurve((0, 16), (20.0, 21.0)), 8: CostCurve((0, 16), (24.0, 41.0))}


def written(tmp_path, said) -> str:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps(said))
    return str(path)


def test_what_is_written_is_read(tmp_path):
    assert read_costs(written(tmp_path, format_costs(CURVES, "ms"))) == CURVES
    alone = format_costs({1: CURVES[1]}, "ms")
    assert alone == {"unit": "ms", "node_counts": [0, 16], "costs": [20.0, 21.0]}
    assert read_costs(written(tmp_path, alone)) == {1: CURVES[1]}


@pytest.mark.parametrize(
    "batches",
    [
        5,
        [5],
        [{}],
        [{"rows": 0, "node_counts": [0], "costs": [1.0]}],
        [{"rows": 2.0, "node_counts": [0], "costs": [1.0]}],
        [{"rows": 2, "node_counts": [1], "costs": [1.0]}],
        [{"rows": 2, "node_counts": [0], "costs": [1.0]}] * 2,
        [{"rows": rows, "node_counts": [0], "costs": [1.0]} for rows in range(2, 90)],
    ],
)
def test_batches_that_are_none_are_refused(tmp_path, batches):
    said = {"node_counts": [0], "costs": [1.0], "batches": batches}
    with pytest.raises(InvalidRequest):
        read_costs(written(tmp_path, said))
