"""Every error that leaves the package, each with the gRPC status it travels as.

    RetrievalSpecError                      INTERNAL
    ├── InvalidInput                        INVALID_ARGUMENT
    │   ├── InvalidTokens
    │   ├── InvalidTree
    │   ├── InvalidFeedback
    │   ├── InvalidDistribution
    │   └── InvalidRequest
    ├── NotFound                            NOT_FOUND
    │   ├── UnknownSession
    │   └── MissingPath
    ├── ContextMismatch                     ABORTED
    ├── LimitExceeded                       RESOURCE_EXHAUSTED
    ├── DatastoreError                      FAILED_PRECONDITION
    │   ├── DatastoreCorrupt                DATA_LOSS
    │   ├── DatastoreVersion
    │   ├── DatastoreExists                 ALREADY_EXISTS
    │   ├── TokenizerMismatch
    │   └── ModelMismatch
    ├── UnsupportedModel                    FAILED_PRECONDITION
    ├── MissingDependency                   FAILED_PRECONDITION
    ├── Unauthenticated                     UNAUTHENTICATED
    └── ServiceUnavailable                  UNAVAILABLE

This module imports nothing: the status is a name, and only the service turns it into a gRPC object.
"""

from __future__ import annotations

from typing import ClassVar


class RetrievalSpecError(Exception):
    """The root of the tree: says what is wrong, what was got, what was expected and what to do.

    The text is one line, so that a command can print it as it is and a status can carry it.
    """

    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(
        self,
        what: str,
        *,
        got: object = None,
        expected: object = None,
        remedy: str | None = None,
    ) -> None:
        parts = [what]
        if got is not None:
            parts.append(f"got {got}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if remedy is not None:
            parts.append(remedy)
        super().__init__(" ".join("; ".join(parts).split()))


class InvalidInput(RetrievalSpecError):
    """A value from outside that no layer below may see."""

    grpc_status = "INVALID_ARGUMENT"


class InvalidTokens(InvalidInput):
    """Token ids of a wrong type, shape or range."""


class InvalidTree(InvalidInput):
    """A draft tree that breaks the contract of `DraftTree`."""


class InvalidFeedback(InvalidInput):
    """Feedback of a verifier that no source can use; the tokens beside it may still be committed."""


class InvalidDistribution(InvalidInput):
    """A draft model's probabilities that are no distribution over the vocabulary."""


class InvalidRequest(InvalidInput):
    """An argument, option or message field that is malformed or out of range."""


class NotFound(RetrievalSpecError):
    """Something that was named does not exist."""

    grpc_status = "NOT_FOUND"


class UnknownSession(NotFound):
    """The session was never opened, was closed, or belonged to an earlier server process."""


class MissingPath(NotFound):
    """A file or folder that was named does not exist."""


class ContextMismatch(RetrievalSpecError):
    """Verifier and session disagree on the context length: a message was lost, repeated or late."""

    grpc_status = "ABORTED"


class LimitExceeded(RetrievalSpecError):
    """A request is larger than the limits allow."""

    grpc_status = "RESOURCE_EXHAUSTED"


class DatastoreError(RetrievalSpecError):
    """A datastore cannot be used as it is."""

    grpc_status = "FAILED_PRECONDITION"


class DatastoreCorrupt(DatastoreError):
    """A file of a datastore is missing, truncated or altered."""

    grpc_status = "DATA_LOSS"


class DatastoreVersion(DatastoreError):
    """The datastore was written in a format that this version does not read."""


class DatastoreExists(DatastoreError):
    """The place where a datastore should be written is taken."""

    grpc_status = "ALREADY_EXISTS"


class TokenizerMismatch(DatastoreError):
    """A datastore or a draft model has another tokenizer, so its ids mean other text."""


class ModelMismatch(DatastoreError):
    """The datastore holds hidden states of another model than the target."""


class UnsupportedModel(RetrievalSpecError):
    """The target model or a generation option cannot be verified over trees."""

    grpc_status = "FAILED_PRECONDITION"


class MissingDependency(RetrievalSpecError):
    """An optional package is needed that is not installed."""

    grpc_status = "FAILED_PRECONDITION"


class Unauthenticated(RetrievalSpecError):
    """The server does not know who calls, or nobody that it knows."""

    grpc_status = "UNAUTHENTICATED"


class ServiceUnavailable(RetrievalSpecError):
    """The server cannot be reached, is not ready, or did not answer in time."""

    grpc_status = "UNAVAILABLE"


def error_types() -> dict[str, type[RetrievalSpecError]]:
    """Returns every class of the tree above by name, for the client's reverse table."""
    found: dict[str, type[RetrievalSpecError]] = {}
    pending = [RetrievalSpecError]
    while pending:
        error_type = pending.pop()
        if error_type.__module__ == __name__:  # other modules may refine a class for their own use
            found[error_type.__name__] = error_type
        pending.extend(error_type.__subclasses__())
    return found
