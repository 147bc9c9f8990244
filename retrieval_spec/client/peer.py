"""What a client knows of its server; whatever the server says of itself is taken as hostile too."""

from __future__ import annotations

from collections.abc import Sequence

from retrieval_spec import wire
from retrieval_spec.errors import InvalidTree, ServiceUnavailable, TokenizerMismatch
from retrieval_spec.feedback import MAX_TOPK
from retrieval_spec.tree import MAX_VOCAB_SIZE, DraftTree
from retrieval_spec.v1 import draft_pb2 as pb

MAX_SOURCES = 16
"""One bit each in `DraftTree.sources`."""

MAX_STATE_DIMENSIONS = 65_536


class Peer:
    """The server as far as known.

    Attributes:
        info: what it said of itself last; None before it said anything.
        source_names: the drafter behind each bit of a tree's `sources`.
        incarnation_seen: of the process that answered last.
        no_draft: the empty tree, with those names.
    """

    def __init__(self) -> None:
        self.info: pb.ServerInfo | None = None
        self.source_names: tuple[str, ...] = ()
        self.incarnation_seen = 0
        self.vocab_size = 0
        self.no_draft = DraftTree.empty()

    @property
    def takes_ended(self) -> bool:
        """Whether it understands what streams tell of ended sessions."""
        return self.info is not None and self.info.takes_ended

    def learn(self, info: pb.ServerInfo) -> None:
        """Takes over what a server says of itself; a successor must draft for the same vocabulary.

        Within one process more sources may come, each with the next bit.

        Raises:
            TokenizerMismatch: it does not.
            ServiceUnavailable: it says nonsense.
        """
        if self.info is None or info != self.info:
            _check(info)
            if self.info is not None and info.vocab_size != self.vocab_size:
                raise TokenizerMismatch(
                    "the server came back with another vocabulary",
                    got=info.vocab_size,
                    expected=self.vocab_size,
                    remedy="open a new client",
                )
            self.info = info
            self.vocab_size = info.vocab_size
            self.source_names = tuple(info.source_names)
            self.no_draft = DraftTree.empty(self.source_names)
        self.incarnation_seen = info.incarnation

    def read(
        self, result: pb.DraftStepResult, max_nodes: Sequence[int], total_nodes: int
    ) -> list[wire.Outcome]:
        """Returns what an answer brings to each session of the question (`wire.read_result`).

        Another process may say who it is, but has no drafts for what the former one was asked.

        Raises:
            InvalidRequest, InvalidTree, InvalidTokens: the answer is no good.
        """
        outcomes = wire.read_result(result, max_nodes, total_nodes, self.vocab_size, self.source_names)
        if result.incarnation != self.incarnation_seen:
            if any([isinstance(outcome, DraftTree) for outcome in outcomes]):
                raise InvalidTree("drafts of another server process than the one asked")
            self.incarnation_seen = result.incarnation
        return outcomes


def _check(info: pb.ServerInfo) -> None:
    if not 1 <= info.vocab_size <= MAX_VOCAB_SIZE:
        raise ServiceUnavailable("the server names no vocabulary", got=info.vocab_size)
    numbers = (
        ("sources", len(info.source_names), MAX_SOURCES),
        ("top-k ids", info.wanted_topk, MAX_TOPK),
        ("dimensions of a state", info.state_dimensions, MAX_STATE_DIMENSIONS),
    )
    for name, number, most in numbers:
        if not 0 <= number <= most:
            raise ServiceUnavailable(f"the server names too many {name}", got=number, expected=f"<= {most}")
