"""Error classes and the statuses that they travel as."""

from __future__ import annotations

from retrieval_spec.errors import (
    ContextMismatch,
    DatastoreCorrupt,
    DatastoreError,
    DatastoreExists,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    RetrievalSpecError,
    ServiceUnavailable,
    Unauthenticated,
    error_types,
)

ERROR_TYPE_KEY = "retrieval-spec-error"
"""The trailing metadata that names the error class of a failed call."""

# The numbers of the gRPC protocol, by the names that the error classes carry.
STATUS_NUMBERS = {
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
# For statuses that come without the name of a class: from a proxy, or from gRPC itself.
_ERROR_OF_STATUS: dict[str, type[RetrievalSpecError]] = {
    "CANCELLED": ServiceUnavailable,
    "INVALID_ARGUMENT": InvalidRequest,
    "DEADLINE_EXCEEDED": ServiceUnavailable,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": DatastoreExists,
    "RESOURCE_EXHAUSTED": LimitExceeded,
    "FAILED_PRECONDITION": DatastoreError,
    "ABORTED": ContextMismatch,
    "UNIMPLEMENTED": ServiceUnavailable,
    "UNAVAILABLE": ServiceUnavailable,
    "DATA_LOSS": DatastoreCorrupt,
    "UNAUTHENTICATED": Unauthenticated,
}
STATUS_NAMES = {number: name for name, number in STATUS_NUMBERS.items()}


def error_from(type_name: str, status: str, message: str) -> RetrievalSpecError:
    """Returns the error that the other side raised: its own class, else the one its status stands for."""
    error_type = error_types().get(type_name) or _ERROR_OF_STATUS.get(status, RetrievalSpecError)
    return error_type(message)
