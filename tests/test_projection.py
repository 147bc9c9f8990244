from __future__ import annotations

import numpy as np
import pytest

from retrieval_spec.errors import InvalidFeedback, InvalidRequest, ModelMismatch
from retrieval_spec.projection import Projection

RNG = np.random.default_rng(7)
# Four directions of very different strength, mixed into eight dimensions, off the origin.
STATES = (RNG.normal(size=(500, 4)) * [8, 4, 2, 1] @ RNG.normal(size=(4, 8)) + 3).astype(np.float32)


@pytest.fixture(scope="module")
def projection():
    return Projection.fit(STATES, 3, "model-a")


def test_the_fit_keeps_the_strongest_directions_of_the_scaled_states(projection):
    scaled = (STATES.astype(np.float64) - STATES.mean(axis=0)) / STATES.std(axis=0)
    _, _, directions = np.linalg.svd(scaled, full_matrices=False)
    agreement = np.abs(np.sum(projection.components * directions[:3], axis=1))
    np.testing.assert_allclose(agreement, 1, atol=1e-4)
    assert (projection.hidden_size, projection.dimensions, projection.model_fingerprint) == (8, 3, "model-a")


def test_one_state_and_many_are_projected_alike_on_unit_vectors(projection):
    many = projection.apply(STATES)
    assert many.shape == (500, 3)
    assert many.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(many, axis=1), 1, atol=1e-6)
    one = projection.apply(STATES[7])
    assert one.shape == (3,)
    np.testing.assert_allclose(one, many[7], atol=1e-6)
    np.testing.assert_allclose(projection.apply(STATES[7].astype(np.float16)), one, atol=1e-2)


def test_the_mean_itself_has_no_direction(projection):
    assert projection.apply(projection.mean).tolist() == [0, 0, 0]


def test_a_dimension_that_never_moves_is_left_out():
    states = STATES.copy()
    states[:, 2] = 1e4
    projection = Projection.fit(states, 3)
    loud = states[0].copy()
    loud[2] = 0
    np.testing.assert_array_equal(projection.apply(loud), projection.apply(states[0]))


def test_equal_states_give_equal_projections(projection):
    again = Projection.fit(STATES.copy(), 3, "model-a")
    np.testing.assert_array_equal(again.components, projection.components)
    largest = np.abs(projection.components).argmax(axis=1)
    assert (projection.components[np.arange(3), largest] > 0).all()


@pytest.mark.parametrize("size", [7, 9])
def test_a_state_of_another_size_is_refused(projection, size):
    with pytest.raises(InvalidFeedback, match="another size"):
        projection.apply(np.zeros(size, np.float32))


def test_a_state_without_a_dimension_is_refused(projection):
    with pytest.raises(InvalidFeedback, match="another size"):
        projection.apply(np.float32(3).reshape(()))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 3e38])
def test_a_state_that_is_not_finite_is_refused(projection, wrong):
    states = STATES[:5].copy()
    states[3] = wrong
    with pytest.raises(InvalidFeedback, match="not finite"):
        projection.apply(states)


@pytest.mark.parametrize(
    ("states", "dimensions"),
    [(STATES[:1], 3), (STATES, 9), (STATES, 0), (STATES[0], 1), (np.full((4, 8), np.nan), 3)],
)
def test_states_that_fit_nothing_are_refused(states, dimensions):
    with pytest.raises(InvalidRequest):
        Projection.fit(states, dimensions)


@pytest.mark.parametrize(
    "changes",
    [
        {"mean": np.zeros(7, np.float32)},
        {"mean": np.zeros(8, np.float64)},
        {"mean": np.zeros((1, 8), np.float32)},
        {"scale": np.full(8, np.nan, np.float32)},
        {"components": np.zeros((9, 8), np.float32)},
        {"components": np.zeros((0, 8), np.float32)},
        {"components": np.zeros(8, np.float32)},
    ],
)
def test_a_projection_whose_parts_do_not_fit_is_refused(projection, changes):
    parts = {name: getattr(projection, name) for name in ("mean", "scale", "components")}
    with pytest.raises(InvalidRequest, match="projection"):
        Projection(**{**parts, **changes}, model_fingerprint="model-a").check()


def test_a_projection_of_another_model_is_refused(projection):
    assert projection.check_model("model-a") is projection
    with pytest.raises(ModelMismatch, match="another model"):
        projection.check_model("model-b")
