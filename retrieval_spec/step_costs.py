"""Measuring what steps cost, for verifiers that know no cost curve of their target.

Pure arithmetic: whoever runs the steps times them. Knows no trees and no sessions.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection
from statistics import median
from typing import NamedTuple

from retrieval_spec.budget import MAX_COST, MAX_NODE_COUNT, MIN_COST, CostCurve
from retrieval_spec.errors import InvalidRequest

_KEPT_SAMPLES = 9
_MIN_SAMPLES = 3
"""With three, two steps may take a hundred times as long without being noticed."""

_STEPS_A_CURVE = 16
_STEPS_AN_EXPLORATION = 128
_TOLERANCE = 0.05
"""A curve that differs less is not worth telling anybody."""

_STEPS_A_CHANGE = 4
_CHANGE = 1.5
"""So many steps in a row that cost so many times more than such steps did, or less, are a new state."""


class Plan(NamedTuple):
    """How to draft for the next step.

    Attributes:
        max_nodes: drafted nodes at most.
        cost_curve: by which to draft only nodes that pay; None to draft as many as there are.
    """

    max_nodes: int
    cost_curve: CostCurve | None


class StepCostMeter:
    """Learns from timed steps what a pass with so many drafted nodes costs, and keeps track of it.

    Holds the last few costs of each range of node counts (0, 1, 2-3, 4-7, ...) and takes their lower
    quartile, so that steps which compiled something or waited for something else do no harm. The first
    steps, the 16th, 32nd and 64th, and later one in 128 draft another number of nodes than would pay, to
    learn or learn again what that costs. When costs change all at once, it begins anew. Keep one meter for
    all generations of one model on one machine; it belongs to one caller at a time.

        meter = StepCostMeter()
        plan = meter.plan(max_nodes=64)
        tree = session.draft(*plan)
        ...                                     the pass over the tree, and whatever else a step takes
        meter.observe(len(tree), seconds)

    A verifier of batches keeps a `BatchCostMeter`.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[tuple[int, float]]] = {}
        self._changes: deque[float] = deque(maxlen=_STEPS_A_CHANGE)
        self._explored_at: dict[int, int] = {}
        self._num_steps = 0
        self._cost_curve: CostCurve | None = None

    @property
    def cost_curve(self) -> CostCurve | None:
        """What was learned, the same object until it has changed by more than noise; None at first."""
        return self._cost_curve

    def plan(self, max_nodes: int) -> Plan:
        """Returns how to draft for the next step, with `max_nodes` nodes at most."""
        if self._cost_curve is None:
            return Plan(0 if self._lacks_plain_steps() else max_nodes, None)
        if max_nodes <= 0 or not self._is_exploring():
            return Plan(max_nodes, self._cost_curve)
        ranges = range(max_nodes.bit_length() + 1)
        longest_unseen = min(ranges, key=lambda place: (self._explored_at.get(place, -1), -place))
        self._explored_at[longest_unseen] = self._num_steps
        return Plan(min(max_nodes, (1 << longest_unseen) - 1), None)

    def observe(self, num_nodes: int, cost: float) -> None:
        """Takes in a finished step.

        Args:
            num_nodes: drafted nodes that were verified in it.
            cost: what it took, in any unit that is always the same.

        Raises:
            InvalidRequest: a number of nodes that no pass has, or a cost that is no positive number.
        """
        if not 0 <= num_nodes <= MAX_NODE_COUNT or not MIN_COST <= cost <= MAX_COST:
            raise InvalidRequest(
                "no step took that",
                got=f"{num_nodes} nodes, cost {cost}",
                expected=f"0 to {MAX_NODE_COUNT} nodes, {MIN_COST:g} to {MAX_COST:g}",
            )
        samples = self._samples.setdefault(num_nodes.bit_length(), deque(maxlen=_KEPT_SAMPLES))
        if len(samples) >= _MIN_SAMPLES:
            self._changes.append(cost / _usual_cost(samples))
        if self._has_changed():
            self._forget()
        samples.append((num_nodes, cost))
        self._num_steps += 1
        if self._cost_curve is None or self._num_steps % _STEPS_A_CURVE == 0:
            self._update()

    def _is_exploring(self) -> bool:
        is_power_of_two = self._num_steps & (self._num_steps - 1) == 0
        return self._num_steps % _STEPS_AN_EXPLORATION == 0 or (self._num_steps >= 16 and is_power_of_two)

    def _lacks_plain_steps(self) -> bool:
        known = {place for place, samples in self._samples.items() if len(samples) >= _MIN_SAMPLES}
        return bool(known) and 0 not in known

    def _has_changed(self) -> bool:
        changes = self._changes
        return len(changes) == _STEPS_A_CHANGE and (min(changes) > _CHANGE or max(changes) < 1.0 / _CHANGE)

    def _forget(self) -> None:
        for samples in self._samples.values():
            samples.clear()
        self._changes.clear()
        self._cost_curve = None

    def _update(self) -> None:
        points = [
            (int(median(count for count, _ in samples)), _usual_cost(samples))
            for _, samples in sorted(self._samples.items())
            if len(samples) >= _MIN_SAMPLES
        ]
        if len(points) < 2 or points[0][0] != 0:
            return
        counts, costs = zip(*points, strict=True)
        fresh = CostCurve(counts, costs)
        if self._cost_curve is None or _differ(self._cost_curve, fresh):
            self._cost_curve = fresh


class BatchCostMeter:
    """Learns what a pass costs by its drafted nodes and its sessions: a meter for 1, 2-3, 4-7, ... sessions.

        meter = BatchCostMeter()
        plan = meter.plan(total_nodes, len(sessions))
        trees = source.draft_batch(sessions, *plan)
        ...
        meter.observe(sum(map(len, trees)), seconds, len(sessions))

    Nodes are always those of all sessions together. It belongs to one caller at a time.
    """

    def __init__(self) -> None:
        self._meters: defaultdict[int, StepCostMeter] = defaultdict(StepCostMeter)

    def of(self, num_sessions: int) -> StepCostMeter:
        """Returns the meter of passes with so many sessions."""
        return self._meters[num_sessions.bit_length()]

    def plan(self, max_nodes: int, num_sessions: int) -> Plan:
        """Returns how to draft for the next step of so many sessions."""
        return self.of(num_sessions).plan(max_nodes)

    def observe(self, num_nodes: int, cost: float, num_sessions: int) -> None:
        """Takes in a finished step, as `StepCostMeter.observe` does."""
        self.of(num_sessions).observe(num_nodes, cost)


class KnownCosts:
    """The planner of a verifier that knows its cost curve, or drafts as many nodes as there are."""

    def __init__(self, cost_curve: CostCurve | None) -> None:
        self._cost_curve = cost_curve

    def plan(self, max_nodes: int) -> Plan:
        """Returns how to draft for the next step, with `max_nodes` nodes at most."""
        return Plan(max_nodes, self._cost_curve)

    def observe(self, num_nodes: int, cost: float) -> None:
        """Does nothing: there is nothing to learn."""


def planner_of(step_costs: CostCurve | StepCostMeter | None) -> KnownCosts | StepCostMeter:
    """Returns what plans the steps of a generation.

    Raises:
        InvalidRequest: neither a cost curve nor a meter.
    """
    if isinstance(step_costs, StepCostMeter):
        return step_costs
    if step_costs is None or isinstance(step_costs, CostCurve):
        return KnownCosts(step_costs)
    raise InvalidRequest(
        "no step costs", got=repr(step_costs)[:80], expected="a CostCurve, a StepCostMeter or None"
    )


def _usual_cost(samples: Collection[tuple[int, float]]) -> float:
    """Returns the lower quartile: what disturbs a step makes it longer."""
    return sorted(cost for _, cost in samples)[(len(samples) - 1) // 4]


def _differ(one: CostCurve, other: CostCurve) -> bool:
    """Whether the curves tell another cost of drafting, whatever a pass without drafts costs."""
    for count in {*one.node_counts, *other.node_counts}:
        ratio = (one.at(count) / one.costs[0]) / (other.at(count) / other.costs[0])
        if abs(ratio - 1.0) > _TOLERANCE:
            return True
    return False
