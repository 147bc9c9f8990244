from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval_spec.budget import CostCurve
from retrieval_spec.errors import InvalidRequest
from retrieval_spec.step_costs import BatchCostMeter, KnownCosts, StepCostMeter, planner_of

TRUTH = CostCurve((0, 8, 64), (20.0, 21.0, 77.0))


def run(meter, truth, num_steps, seed=0, max_nodes=64, noise=0.0, outlier_share=0.0):
    """Steps whose trees are as large as planned or smaller; returns what they cost in all."""
    rng = np.random.default_rng(seed)
    costs = truth.up_to(max_nodes)
    total = 0.0
    for _ in range(num_steps):
        plan = meter.plan(max_nodes)
        wanted = plan.max_nodes if plan.cost_curve is None else min(plan.max_nodes, 12)
        num_nodes = int(rng.integers(0, wanted + 1)) if rng.random() < 0.3 else wanted
        cost = costs[num_nodes] * (1 + noise * abs(rng.standard_normal()))
        total += cost
        meter.observe(num_nodes, cost * (100 if rng.random() < outlier_share else 1))
    return total


def relative(curve, num_nodes):
    return curve.at(num_nodes) / curve.costs[0]


def largest_error(curve, truth=TRUTH):
    """Of the cost of 4, 16 and 64 nodes in units of a plain pass."""
    return max(abs(relative(curve, n) / relative(truth, n) - 1) for n in (4, 16, 64))


def test_the_meter_learns_a_curve():
    meter = StepCostMeter()
    run(meter, TRUTH, 1500)
    assert largest_error(meter.cost_curve) < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_the_meter_bears_noise_and_steps_that_take_a_hundred_times_as_long(seed):
    meter = StepCostMeter()
    meter.observe(5, 5000.0)  # the first step compiles, loads and waits
    run(meter, TRUTH, 4000, seed, noise=0.1, outlier_share=0.03)
    assert largest_error(meter.cost_curve) < 0.25


def test_one_outlier_moves_nothing():
    meter = StepCostMeter()
    run(meter, TRUTH, 1000)
    before = meter.cost_curve
    for num_nodes in (0, 3, 64):
        meter.observe(num_nodes, 8000.0)
    run(meter, TRUTH, 40)
    assert meter.cost_curve is before


def test_the_meter_follows_a_verifier_whose_costs_change():
    meter = StepCostMeter()
    run(meter, TRUTH, 1000)
    busy = CostCurve((0, 8, 64), (20.0, 60.0, 400.0))
    run(meter, busy, 6000)
    assert largest_error(meter.cost_curve, busy) < 0.1


@pytest.mark.parametrize(
    "other", [CostCurve((0, 8, 64), (60.0, 180.0, 1200.0)), CostCurve((0, 8, 64), (5.0, 7.0, 10.0))]
)
def test_costs_that_change_all_at_once_are_learned_anew_at_once(other):
    meter = StepCostMeter()
    run(meter, TRUTH, 1000)
    assert largest_error(meter.cost_curve, other) > 0.8
    run(meter, other, 60)
    assert largest_error(meter.cost_curve, other) < 0.25
    run(meter, other, 2000)
    assert largest_error(meter.cost_curve, other) < 0.1


def test_first_steps_that_take_long_do_not_end_drafting():
    meter = StepCostMeter()
    for step in range(40):
        plan = meter.plan(16)
        pays = plan.cost_curve is None or relative(plan.cost_curve, 16) < 3
        num_nodes = plan.max_nodes if pays else 0
        meter.observe(num_nodes, 500.0 if step < 3 else float(TRUTH.up_to(16)[num_nodes]))
    assert relative(meter.cost_curve, 16) == pytest.approx(relative(TRUTH, 16))


def test_batches_of_other_sizes_have_other_costs():
    meter, dear = BatchCostMeter(), CostCurve.linear(0.5)
    for step in range(800):
        num_sessions = (1, 20, 31)[step % 3]
        plan = meter.plan(64, num_sessions)
        num_nodes = plan.max_nodes if plan.cost_curve is None else (8, 64)[step % 2]
        cost = (TRUTH if num_sessions == 1 else dear).up_to(64)[num_nodes]
        meter.observe(num_nodes, float(cost), num_sessions)
    assert largest_error(meter.plan(64, 1).cost_curve) < 0.1
    for num_sessions in (16, 20, 31):
        assert largest_error(meter.plan(64, num_sessions).cost_curve, dear) < 0.1
    assert meter.plan(64, 2).cost_curve is None
    with pytest.raises(InvalidRequest):
        meter.observe(-1, 1.0, 1)


def test_a_plan_drafts_all_there_is_until_enough_is_known_and_then_no_curve_is_missing():
    meter = StepCostMeter()
    plans = []
    for _ in range(40):
        plans.append(meter.plan(16))
        meter.observe(plans[-1].max_nodes, float(TRUTH.up_to(16)[plans[-1].max_nodes]))
    assert [plan.max_nodes for plan in plans[:7]] == [16, 16, 16, 0, 0, 0, 16]
    explored = {*range(6), 16, 32}
    assert [plan.cost_curve is None for plan in plans] == [step in explored for step in range(40)]
    assert plans[6].cost_curve.costs == (20.0, 29.0)


def test_every_range_of_node_counts_is_tried_again_and_again_at_little_cost():
    meter = StepCostMeter()
    tried = []
    for step in range(4000):
        plan = meter.plan(64)
        assert plan.max_nodes <= 64
        num_nodes = plan.max_nodes if plan.cost_curve is None else 4
        if plan.cost_curve is None:
            tried.append((step, num_nodes))
        meter.observe(num_nodes, float(TRUTH.up_to(64)[num_nodes]))
    assert {num_nodes for _, num_nodes in tried[6:]} == {0, 1, 3, 7, 15, 31, 63, 64}
    assert {num_nodes for step, num_nodes in tried if step > 2500} == {0, 1, 3, 7, 15, 31, 63, 64}
    assert len(tried) < 4000 / 90


def test_a_source_that_never_drafts_needs_no_curve():
    meter = StepCostMeter()
    for _ in range(100):
        assert meter.plan(16) == (16, None)
        meter.observe(0, 1.0)
    assert meter.cost_curve is None


def test_the_meter_holds_little_however_long_it_runs():
    meter = StepCostMeter()
    for step in range(5000):
        meter.plan(2**20)
        meter.observe(step * step % 2**20, 1.0 + step)
    assert sum(map(len, meter._samples.values())) <= 9 * 21
    assert len(meter._explored_at) <= 22


@given(
    st.lists(st.tuples(st.integers(0, 9) | st.integers(0, 2**31 - 1), st.floats(1e-12, 1e12)), max_size=60),
    st.integers(-1, 80),
)
def test_any_steps_give_plans_within_the_bound(steps, max_nodes):
    meter = StepCostMeter()
    for num_nodes, cost in steps:
        meter.observe(num_nodes, cost)
        plan = meter.plan(max_nodes)
        assert plan.max_nodes <= max(max_nodes, 0)
        assert plan.cost_curve is None or list(plan.cost_curve.costs) == sorted(plan.cost_curve.costs)


@pytest.mark.parametrize(
    ("num_nodes", "cost"), [(-1, 1.0), (2**31, 1.0), (0, 0.0), (0, -1.0), (3, math.nan), (3, math.inf)]
)
def test_what_no_step_takes_is_refused(num_nodes, cost):
    with pytest.raises(InvalidRequest):
        StepCostMeter().observe(num_nodes, cost)


def test_planners():
    curve, meter = CostCurve.linear(0.1), StepCostMeter()
    assert planner_of(meter) is meter
    for known in (curve, None):
        planner = planner_of(known)
        assert isinstance(planner, KnownCosts)
        planner.observe(3, 1.0)
        assert planner.plan(8) == (8, known)
    with pytest.raises(InvalidRequest):
        planner_of(0.1)
