"""`Projection`: a target's hidden state as a short unit vector, computed where the target runs.

The steps are those of DReSD (huawei-noah/HEBO, branch DReSD): z-score each dimension, project on the
principal components, normalise. Shared by server, wire, client and verifier; knows numpy and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_spec.errors import InvalidFeedback, InvalidRequest, ModelMismatch
from retrieval_spec.tree import Float32s

DIMENSIONS = 64
"""Principal components that are kept, as published."""
MAX_HIDDEN_SIZE = 65_536
MAX_DIMENSIONS = 1_024
_CHUNK_ROWS = 65_536
_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """What turns one model's hidden states into the vectors that a dense datastore holds.

    Attributes:
        mean: float32[h]  mean of each dimension of the hidden state.
        scale: float32[h]  what a centred dimension is multiplied by, 1 / its standard deviation.
        components: float32[d, h]  principal components of the scaled states, the strongest first.
        model_fingerprint: of the model whose states they are, see `target_states.model_fingerprint`.
    """

    mean: Float32s
    scale: Float32s
    components: Float32s
    model_fingerprint: str

    @property
    def hidden_size(self) -> int:
        """Dimensions of the model's hidden state."""
        return int(self.mean.shape[0])

    @property
    def dimensions(self) -> int:
        """Dimensions of a projected state."""
        return int(self.components.shape[0])

    def equals(self, other: Projection) -> bool:
        """Whether both turn every state of the same model into the same vector."""
        return self.model_fingerprint == other.model_fingerprint and all(
            np.array_equal(ours, theirs)
            for ours, theirs in (
                (self.mean, other.mean),
                (self.scale, other.scale),
                (self.components, other.components),
            )
        )

    @classmethod
    def fit(
        cls, states: NDArray[Any], dimensions: int = DIMENSIONS, model_fingerprint: str = ""
    ) -> Projection:
        """Returns the projection on the strongest principal components of sampled states.

        Equal states give equal projections: each component's largest entry is positive.

        Args:
            states: float16 or float32[n, h]  two at least; read in pieces, so they may lie on disk.
            dimensions: components to keep, 1 to h.
            model_fingerprint: of the model that the states come from.

        Raises:
            InvalidRequest: too few states, another shape, more components than dimensions, or a
                number that is not finite.
        """
        if states.ndim != 2 or states.shape[0] < 2 or not 1 <= dimensions <= states.shape[1]:
            raise InvalidRequest(
                "cannot fit a projection",
                got=f"states {states.shape}, {dimensions} components",
                expected="two states or more, and no more components than a state has dimensions",
            )
        mean, covariance = _moments(states)
        deviation = np.sqrt(np.diagonal(covariance))
        # A dimension that never moves says nothing; dividing by its rounding errors would shout.
        scale = np.where(deviation > _TINY, 1 / np.maximum(deviation, _TINY), 0)
        _, vectors = np.linalg.eigh(covariance * np.outer(scale, scale))
        components = _with_fixed_signs(vectors[:, ::-1][:, :dimensions].T)
        return cls(
            mean.astype(np.float32),
            scale.astype(np.float32),
            np.ascontiguousarray(components, np.float32),
            model_fingerprint,
        ).check()

    def apply(self, states: NDArray[Any]) -> Float32s:
        """Returns float32[d] for states[h], float32[n, d] for states[n, h], each row of length 1.

        A state equal to the mean has no direction and stays the zero vector.

        Raises:
            InvalidFeedback: states of another size, or a number that is not finite.
        """
        if states.ndim not in (1, 2) or states.shape[-1] != self.hidden_size:
            raise InvalidFeedback(
                "hidden state of another size", got=states.shape, expected=f"{self.hidden_size} dimensions"
            )
        with np.errstate(over="ignore", invalid="ignore"):  # what that gives is refused below
            scaled = (states.astype(np.float32) - self.mean) * self.scale
            projected = scaled @ self.components.T
            norms = np.linalg.norm(projected, axis=-1, keepdims=True)
        # One sum finds every NaN and infinity: both survive products and sums.
        if not np.isfinite(norms.sum()):
            raise InvalidFeedback("the hidden state holds a number that is not finite")
        unit: Float32s = projected / np.maximum(norms, np.float32(_TINY))
        return unit

    def check(self) -> Projection:
        """Returns the projection itself if `apply` can rely on it.

        Raises:
            InvalidRequest: a wrong type, shapes that do not fit each other, or a number that is not finite.
        """
        parts = {"mean": self.mean, "scale": self.scale, "components": self.components}
        for name, part in parts.items():
            if part.dtype != np.float32 or not np.isfinite(part).all():
                raise InvalidRequest(
                    f"projection: {name} is wrong", got=part.dtype, expected="finite float32 numbers"
                )
        size = self.mean.shape[0] if self.mean.ndim == 1 else 0
        rows = self.components.shape[0] if self.components.ndim == 2 else 0
        if (
            self.scale.shape != (size,)
            or self.components.shape != (rows, size)
            or not 1 <= rows <= min(size, MAX_DIMENSIONS)
            or size > MAX_HIDDEN_SIZE
        ):
            raise InvalidRequest(
                "projection: shapes do not fit each other",
                got=f"{self.mean.shape}, {self.scale.shape}, {self.components.shape}",
                expected=f"[h], [h] and [d, h] with d <= h, d <= {MAX_DIMENSIONS}, h <= {MAX_HIDDEN_SIZE}",
            )
        return self

    def check_model(self, model_fingerprint: str) -> Projection:
        """Returns the projection itself if it was made for this model.

        Raises:
            ModelMismatch: for another one.
        """
        if model_fingerprint != self.model_fingerprint:
            raise ModelMismatch(
                "the dense datastore was built with another model",
                got=model_fingerprint,
                expected=self.model_fingerprint,
                remedy="build it again with the target model",
            )
        return self


def _moments(states: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns mean and covariance, in two passes over pieces of the states."""
    total = np.zeros(states.shape[1], np.float64)
    for chunk in _chunks(states):
        total += chunk.sum(axis=0, dtype=np.float64)
    if not np.isfinite(total).all():
        raise InvalidRequest("the states hold a number that is not finite")
    mean = total / states.shape[0]
    products = np.zeros((states.shape[1], states.shape[1]), np.float64)
    for chunk in _chunks(states):
        centred = chunk.astype(np.float64) - mean
        products += centred.T @ centred
    return mean, products / states.shape[0]


def _chunks(states: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (states[start : start + _CHUNK_ROWS] for start in range(0, states.shape[0], _CHUNK_ROWS))


def _with_fixed_signs(components: NDArray[np.float64]) -> NDArray[np.float64]:
    rows = np.arange(components.shape[0])
    largest = components[rows, np.abs(components).argmax(axis=1)]
    return components * np.where(largest < 0, -1, 1)[:, None]
