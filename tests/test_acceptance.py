"""Recorded outputs are drafted better by the default preset than by its parts, and as well as it predicts."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.presets import preset
from retrieval_spec.engine import Engine
from tests.reference.acceptance import drafted_paths
from tests.replay import num_accepted, recorded

VOCAB_SIZE = 151_936
FAMILIES = ("code", "chat", "sql", "agent_tools")
NUM_ITEMS, MAX_OUTPUT_TOKENS, MAX_NODES = 12, 300, 16

OTHERS = {
    "session": preset("session"),
    "session+history": Preset((Source("session"), Source("history"))),
    "suffix": preset("suffix"),
}


class Outcome(NamedTuple):
    """Accepted tokens per step, and how many the drafts expected; families weigh alike."""

    accepted: float
    predicted: float


def replayed(data_dir, chosen: Preset) -> dict[str, Outcome]:
    return {family: replayed_family(data_dir, family, chosen) for family in FAMILIES}


def replayed_family(data_dir, family: str, chosen: Preset) -> Outcome:
    engine = Engine(VOCAB_SIZE, preset=chosen)
    num_steps, accepted, predicted = 0, 0, 0.0
    for prompt, output in recorded(data_dir, family, NUM_ITEMS):
        session, left = engine.open_session(prompt), output[:MAX_OUTPUT_TOKENS]
        while left:
            tree = session.draft(MAX_NODES)
            size = num_accepted(drafted_paths(tree), left)
            session.commit(left[: size + 1])
            left = left[size + 1 :]
            num_steps, accepted = num_steps + 1, accepted + size
            predicted += float(tree.path_probs().sum())
        session.close()
    return Outcome(accepted / num_steps, predicted / num_steps)


def mean(outcomes: dict[str, Outcome]) -> Outcome:
    return Outcome(*(sum(column) / len(outcomes) for column in zip(*outcomes.values(), strict=True)))


@pytest.fixture(scope="module")
def default(data_dir):
    return replayed(data_dir, preset("default"))


@pytest.mark.parametrize(
    ("name", "tolerance"), [("session", 0.0), ("session+history", 0.0), ("suffix", 0.01)]
)
def test_the_default_preset_accepts_as_much_as_others(data_dir, default, name, tolerance):
    other = replayed(data_dir, OTHERS[name])
    for family in FAMILIES:
        assert default[family].accepted >= other[family].accepted * (1.0 - tolerance), family


def test_the_default_preset_accepts_what_it_predicts(default):
    whole = mean(default)
    assert whole.accepted > 0.5
    assert whole.predicted == pytest.approx(whole.accepted, rel=0.1)
