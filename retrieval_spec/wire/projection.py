"""A projection as columns of its message."""

from __future__ import annotations

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.projection import Projection
from retrieval_spec.v1 import draft_pb2 as pb
from retrieval_spec.wire.columns import FLOAT32, column_bytes, read_column


def write_projection(message: pb.Projection, projection: Projection) -> None:
    """Fills a message."""
    message.mean = column_bytes(projection.mean)
    message.scale = column_bytes(projection.scale)
    message.components = column_bytes(projection.components)
    message.model_fingerprint = projection.model_fingerprint


def read_projection(message: pb.Projection) -> Projection:
    """Returns the projection that a message holds, checked.

    Raises:
        InvalidRequest: columns that do not fit each other, or numbers that are not finite.
    """
    size = len(message.mean) // 4
    if not size:
        raise InvalidRequest("the projection has no dimensions")
    rows = len(message.components) // (4 * size)
    return Projection(
        read_column(message.mean, "mean", FLOAT32, size),
        read_column(message.scale, "scale", FLOAT32, size),
        read_column(message.components, "components", FLOAT32, rows * size).reshape(rows, size),
        message.model_fingerprint,
    ).check()
