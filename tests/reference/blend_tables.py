"""The blend's tables by name: what each evidence is worth, and how outcomes change that.

The names follow each other in one array of float32 in this order. Sums are made in double precision and
rounded when they are kept.
"""

from __future__ import annotations

from bisect import bisect_right
from math import exp, log, prod

import numpy as np

from tests.reference.blend_anchor import SUPPORTS

KINDS, TEXTS = 5, 3
LENGTHS, COUNTS, WIDTHS = 13, 8, 4
LENGTH_STEPS = [1, 2, 3, 4, 5, 7, 10, 16, 32]
SHARE_STEPS = [0.0, 0.02, 0.05, 0.12, 0.25, 0.5, 0.75, 0.97]
TOKEN_SHARE_STEPS = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03]
PROB_STEPS = [0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98]
DEPTH_STEPS = [1, 2, 4, 8, 16]
OUTCOMES = 24

ESCAPES = (KINDS, 2, LENGTHS, COUNTS, WIDTHS)
MATCH_BINS, SHARE_BINS, PROB_BINS = len(LENGTH_STEPS) + 1, len(SHARE_STEPS) + 1, len(PROB_STEPS) + 1
SHAPES = {
    "escapes": ESCAPES,
    "weight": (1,),
    "bias": (1,),
    "supports": (TEXTS, MATCH_BINS, SHARE_BINS),
    "tree_support": (PROB_BINS + 2,),
    "supporting": (MATCH_BINS,) * TEXTS,
    "matches": (MATCH_BINS,) * TEXTS,
    "shares": (SHARE_BINS,) * TEXTS,
    "depths": (len(DEPTH_STEPS) + 1, PROB_BINS),
    "anchors": (SUPPORTS, MATCH_BINS),
    "seen": ESCAPES,
    "outcomes": (2, OUTCOMES),
}

TABLE_RATE, WEIGHT_RATE = 0.05, 0.001
PRIOR_COUNT, TREE_PRIOR_COUNT, MOST_SEEN = 20.0, 2.0, 2_000.0
TREES = 3
OUTCOME_PRIOR, OUTCOME_DECAY = 10.0, np.float32(0.998)
LOWEST_PROB = 1e-4

Cell = tuple[str, tuple[int, ...]]
"""A table and a place in it."""


class Tables:
    def __init__(self, prior: np.ndarray) -> None:
        self.cells = np.zeros(sum(map(prod, SHAPES.values())), np.float32)
        self.cells[: prior.size] = prior
        ends = np.cumsum([prod(shape) for shape in SHAPES.values()])
        parts = np.split(self.cells, ends[:-1])
        self.by_name = {name: part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}

    def __getitem__(self, cell: Cell) -> float:
        name, place = cell
        return float(self.by_name[name][place])

    def add(self, cell: Cell, change: float) -> None:
        name, place = cell
        self.by_name[name][place] = self[cell] + change

    def mixed(self, features: list[Cell], prob: float) -> float:
        """A candidate's probability: what its contexts give, corrected by what else is known of it."""
        score = self["bias", (0,)] + self["weight", (0,)] * log_odds(prob)
        for feature in features:
            score += self[feature]
        return 1.0 / (1.0 + exp(-score))

    def learn_candidate(self, features: list[Cell], prob: float, is_next: bool) -> None:
        error = float(is_next) - self.mixed(features, prob)
        for feature in features:
            self.add(feature, TABLE_RATE * error)
        self.add(("bias", (0,)), WEIGHT_RATE * error)
        self.add(("weight", (0,)), WEIGHT_RATE * error * log_odds(prob))

    def learn_escape(self, place: tuple[int, ...], is_found: bool) -> None:
        """Moves an escape to the mean of its outcomes; what ships counts as a few."""
        seen = self["seen", place]
        prior_count = TREE_PRIOR_COUNT if place[0] == TREES else PRIOR_COUNT
        self.add(("escapes", place), (float(is_found) - self["escapes", place]) / (seen + prior_count + 1.0))
        self.by_name["seen"][place] = min(seen + 1.0, MOST_SEEN)

    def correction(self, path_prob: float) -> float:
        """How many times as often as predicted nodes of about this path probability were accepted."""
        at, part = outcome_of(path_prob)
        low, high = (
            (self["outcomes", (0, place)] + OUTCOME_PRIOR) / (self["outcomes", (1, place)] + OUTCOME_PRIOR)
            for place in (at, at + 1)
        )
        return low + part * (high - low)

    def judge(self, drafted: list[tuple[int, int, float]], num_verified: int, tokens: list[int]) -> None:
        """Notes of the tokens, parents and path probabilities of a tree which came true.

        What follows a node that was not verified is never known.
        """
        self.by_name["outcomes"] *= OUTCOME_DECAY
        node, num_accepted = -1, 0
        for other, (token, parent, path_prob) in enumerate(drafted):
            if parent >= num_verified:
                continue
            if parent == node and tokens[num_accepted : num_accepted + 1] == [token]:
                node, num_accepted = other, num_accepted + 1
                self._note(0, path_prob, 1.0)
            self._note(1, path_prob, path_prob)

    def _note(self, row: int, path_prob: float, weight: float) -> None:
        at, part = outcome_of(path_prob)
        self.add(("outcomes", (row, at)), weight * (1.0 - part))
        self.add(("outcomes", (row, at + 1)), weight * part)


def bin_of(value: float, steps: list[float] | list[int]) -> int:
    return bisect_right(steps, value)


def log_odds(prob: float) -> float:
    bounded = min(max(prob, LOWEST_PROB), 1.0 - LOWEST_PROB)
    return log(bounded / (1.0 - bounded))


def stage_of_match(length: int) -> int:
    return bin_of(length, [1, 2, 3, 4, 5, 6, 7, 9, 13, 17, 25, 41])


def escape_place(kind: int, is_later: bool, stage: int, total: int, num_new: int) -> tuple[int, ...]:
    """Where the tables say how likely a context knows the next token."""
    count = min(max(total, 1).bit_length(), COUNTS) - 1
    return kind, int(is_later), stage, count, bin_of(num_new, [2, 3, 5])


def outcome_of(path_prob: float) -> tuple[int, float]:
    """The bin of a path probability, by halves of log-odds from -8, and how far it is to the next one."""
    at = min(max((log_odds(path_prob) + 8.0) / 0.5, 0.0), OUTCOMES - 1.001)
    return int(at), at - int(at)
