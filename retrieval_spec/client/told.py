"""What a stream was told of and nobody answered: ended sessions, until an answer shows that it was heard."""

from __future__ import annotations

from collections import deque

from retrieval_spec import wire
from retrieval_spec.v1 import draft_pb2 as pb


class Told:
    """Ended sessions that were told of on one stream. What comes before a question is heard with it."""

    def __init__(self) -> None:
        self._newest: deque[pb.CloseSessionRequest] = deque(maxlen=wire.MAX_ENDED)
        self._num = self._num_before = self._num_heard = 0

    def add(self, ended: pb.CloseSessionRequest) -> None:
        """Notes one."""
        self._num += 1
        self._newest.append(ended)

    def asked(self) -> None:
        """Notes that a question follows."""
        self._num_before = self._num

    def answered(self) -> None:
        """Notes the answer to the last question."""
        self._num_heard = self._num_before

    @property
    def all_heard(self) -> bool:
        """Whether the server has heard all."""
        return self._num == self._num_heard

    @property
    def unheard(self) -> list[pb.CloseSessionRequest]:
        """The newest of those that it may not have heard."""
        newest = list(self._newest)
        return newest[max(len(newest) - (self._num - self._num_heard), 0) :]
