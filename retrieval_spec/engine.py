"""The sans-IO core: sessions, their cursors and one fused draft tree a step.

No sockets, no threads, no clock: whoever calls decides when. The gRPC service and `LocalClient` are
two thin ways in. An engine is shared by all sessions; a session belongs to one caller at a time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from retrieval_spec.budget import CostCurve, share_nodes
from retrieval_spec.drafters.base import (
    Budget,
    Drafter,
    Int64s,
    TextDrafter,
    TopKDrafter,
    own_source,
)
from retrieval_spec.drafters.blend import Blend
from retrieval_spec.drafters.combination import ask_all
from retrieval_spec.drafters.joint import Combination, Fuse, Joining, Joint
from retrieval_spec.drafters.opening import Places, common_projection, open_sources
from retrieval_spec.drafters.preset import Preset
from retrieval_spec.drafters.presets import preset as preset_of
from retrieval_spec.drafters.stepping import (
    Both,
    Rows,
    commit_and_draft,
    compile_parts,
    learn_from,
    one_by_one,
)
from retrieval_spec.errors import InvalidRequest, LimitExceeded
from retrieval_spec.feedback import Feedback
from retrieval_spec.fusion import fuse_sources
from retrieval_spec.kernels.fusion import COMPILED
from retrieval_spec.ledger import Ledger
from retrieval_spec.limits import Limits, tenant_of
from retrieval_spec.memory import MEASURED_TOKENS, LearnedMemory
from retrieval_spec.roster import Roster
from retrieval_spec.session import Session, TokenIds
from retrieval_spec.tree import MAX_VOCAB_SIZE, DraftTree, Forest, Tokens, as_tokens

MAX_SOURCES = 16
"""One bit each in `DraftTree.sources`."""

MAX_SHARE = 4
"""How many times the average one session of a batch may take of the common budget."""

_NAMESPACE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}/)?[A-Za-z0-9_-]{1,64}")


class Stepped(NamedTuple):
    """A step that was done at once.

    Attributes:
        forest: one tree each.
        due: sessions to `tend` once the trees are under way, by their places in the step.
        seats: of all sessions.
    """

    forest: Forest
    due: list[int]
    seats: Sequence[int]


class Engine:
    """Drafting sources opened once and shared by all sessions.

    Attributes:
        preset: its sources, and how they are combined; of `drafters` that were given, nothing.
        datastores: name -> tokenizer fingerprint of every datastore among the sources.
        max_nodes: nodes in one tree at most: the limits' bound, or a preset's smaller one.
        memory: what closed sessions taught.
        roster: where open sessions sit.
        wanted_topk: ids a node that are of use in `Feedback.topk_ids`; 0 if no source learns from them.
        both: how the halves of large steps are done: one after the other, unless somebody has another thread.
        projection: what turns the target's state into `Feedback.hidden_state`; None if no source is asked
            with it.

    Args:
        vocab_size: token ids lie in `0 .. vocab_size - 1`; may exceed a datastore's (padded embeddings).
        drafters: name -> drafter, in place of the preset's; the order fixes the bits of `sources`.
        preset: which registered sources to open and how to combine them (`drafters.presets`).
        datastores: folders written by `retrieval-spec build`, or what is open already; each becomes a source.
        limits: what one engine accepts.

    Raises:
        InvalidRequest: a vocabulary, preset or number of sources out of range.
        DatastoreError, MissingPath: a datastore that cannot be used.
    """

    def __init__(
        self,
        vocab_size: int,
        drafters: Mapping[str, Drafter] | None = None,
        preset: str | Preset = "default",
        datastores: Places = (),
        limits: Limits | None = None,
    ) -> None:
        if not 1 <= vocab_size <= MAX_VOCAB_SIZE:
            raise InvalidRequest(
                "vocabulary size out of range", got=vocab_size, expected=f"1 to {MAX_VOCAB_SIZE}"
            )
        self.vocab_size = vocab_size
        self.limits = limits or Limits()
        self.preset = chosen = preset if isinstance(preset, Preset) else preset_of(preset)
        self.drafters = dict(open_sources(vocab_size, chosen, datastores) if drafters is None else drafters)
        self.max_nodes = min(self.limits.max_nodes, chosen.max_nodes)
        self.datastores = {
            name.partition(":")[2]: drafter.tokenizer_fingerprint
            for name, drafter in self.drafters.items()
            if isinstance(drafter, TextDrafter)
        }
        opened = self.drafters.values()
        wanted_topk = max((d.wanted_topk for d in opened if isinstance(d, TopKDrafter)), default=0)
        self.wanted_topk = min(wanted_topk, self.limits.max_topk)
        self.projection = common_projection(opened)
        if len(self.drafters) > MAX_SOURCES:
            raise InvalidRequest(
                "too many drafting sources", got=len(self.drafters), expected=f"<= {MAX_SOURCES}"
            )
        self.source_names = tuple(self.drafters)
        self.joining = _joining(ask_all if drafters is not None else chosen.combine, self.source_names)
        self.ledger = Ledger(self.limits)
        self.roster = Roster()
        self.both: Both = one_by_one
        self.memory = LearnedMemory(self.drafters.values(), [self.joining], self.limits.max_learned_bytes)

    @property
    def num_sessions(self) -> int:
        """Sessions that are open."""
        return self.ledger.num_sessions

    def open_session(self, prompt_ids: TokenIds, namespace: str = "default") -> Session:
        """Returns a session whose context is the prompt, which may be empty.

        Raises:
            InvalidTokens: an id outside the vocabulary.
            InvalidRequest: a malformed namespace.
            LimitExceeded: the prompt is too long, too many sessions are open or their memory is used up.
        """
        if not _NAMESPACE.fullmatch(namespace):
            raise InvalidRequest(
                "malformed namespace",
                got=repr(namespace[:80]),
                expected="1 to 64 of A-Z a-z 0-9 _ -, with a tenant and / before it where there are tenants",
            )
        tenant = tenant_of(namespace)
        self.ledger.check_room(tenant)  # before the ids are looked at, so that a refusal is cheap
        prompt = as_tokens(prompt_ids, self.vocab_size)
        self.check_context_length(prompt.size)
        reserved_bytes = self.ledger.open(tenant, prompt.size)
        try:
            return Session(self, prompt, namespace, reserved_bytes)
        except BaseException:
            self.ledger.close(tenant, reserved_bytes)
            raise

    def draft_batch(
        self,
        sessions: Sequence[Session],
        total_nodes: int,
        max_nodes: Sequence[int] | None = None,
        cost_curve: CostCurve | None = None,
    ) -> list[DraftTree]:
        """Returns one tree a session, together the `total_nodes` most probable paths that were found.

        What others leave no place for is not looked for: a path may be missing that a session alone would
        have found. `max_nodes` bounds each session's own tree, and no session gets more than `MAX_SHARE`
        times the average: drafting nodes that the selection then drops would cost more than it can gain. With
        the curve of the pass that verifies them all, only nodes that pay are among them.
        """
        total_nodes = max(total_nodes, 0)
        most = _most_of_one(total_nodes, len(sessions))
        caps = [most] * len(sessions) if max_nodes is None else [min(most, cap) for cap in max_nodes]
        if len(sessions) == 1:
            return [sessions[0].draft(caps[0], cost_curve)]
        joints, budgets = [one.joint for one in sessions], [self.budget(cap) for cap in caps]
        trees = self.joining.draft_all(joints, budgets, total_nodes)
        return _shared(joints, trees, total_nodes, cost_curve)

    def step_batch(
        self,
        seats: Sequence[int],
        lengths: Sequence[int],
        num_committed: Sequence[int],
        max_nodes: Sequence[int],
        token_ids: Tokens,
        total_nodes: int,
        cost_curve: CostCurve | None = None,
    ) -> Stepped | None:
        """Commits to sessions and drafts for them if all is as usual; else does nothing: None.

        The same as `Session.expect`, `Session.commit` and `draft_batch`, wherever none of these can fail and
        no source has to be told or asked itself. What nobody waits for is left to `learn` and `Session.tend`.

        Args:
            seats: of the sessions, one at least.
            lengths: tokens that each context is taken to hold.
            num_committed: tokens to append to each.
            max_nodes: of each tree.
            token_ids: int32[sum of num_committed]  those to append, session after session; not checked yet.
            total_nodes: of all trees together.
            cost_curve: of the pass that verifies them; a session alone asks anew while all nodes pay.
        """
        seated = self.roster.look(seats)
        if seated is None or (cost_curve is not None and len(seats) == 1):
            return None
        if not self._has_room(lengths, num_committed):
            return None
        total_nodes = max(total_nodes, 0)
        most = min(_most_of_one(total_nodes, len(seats)), self.max_nodes)
        columns: Int64s = np.array((seats, lengths, num_committed, max_nodes), np.int64)
        rows = Rows(columns, token_ids, self.vocab_size, most)
        drafted = commit_and_draft(seated, rows, total_nodes, self.limits.max_depth_nodes, self.both)
        if drafted is None:
            return None
        for at, num_left in drafted.late:
            self.roster.session(seats[at]).joint.make_room(num_left)
        forest = drafted.forest
        if drafted.late or cost_curve is not None:
            joints = [self.roster.session(seat).joint for seat in seats]
            trees = drafted.trees(joints, [self.budget(min(most, cap)) for cap in max_nodes])
            forest = Forest.of(_shared(joints, trees, total_nodes, cost_curve))
        return Stepped(forest, [at for at, _ in drafted.due], seats)

    def learn(self, stepped: Stepped) -> None:
        """Learns from what became of the trees before, once those of a step are under way.

        Otherwise sessions learn when they draft after their next commits; and so they do if one has ended.
        """
        seated = self.roster.look(stepped.seats)
        if seated is not None:
            learn_from(seated.cards[stepped.seats], {group.locks for group in seated.groups})

    def _has_room(self, lengths: Sequence[int], num_committed: Sequence[int]) -> bool:
        """Whether no commit is large, or comes near a limit."""
        most = max(num_committed)
        return (
            most <= min(MEASURED_TOKENS, self.limits.max_append_tokens)
            and max(lengths) + most <= self.limits.max_context_tokens
            and self.ledger.has_memory_for(sum(num_committed))
        )

    def budget(self, max_nodes: int) -> Budget:
        """Returns what a tree of one session may cost that is asked for so many nodes."""
        return Budget(max(0, min(max_nodes, self.max_nodes)), self.limits.max_depth_nodes)

    def warm_up(self) -> None:
        """Compiles what only large steps and several sources need; any draft compiles the rest."""
        compile_parts()
        chain = DraftTree.chain([0], [0.5])
        tree = DraftTree(chain.token_ids, chain.parents, chain.probs, own_source(1))
        fuse_sources([tree, tree], 1, ("warm-up", "warm-up"), COMPILED)

    @property
    def state_dimensions(self) -> int:
        """Dimensions of `Feedback.hidden_state`; 0 if no source is asked with it."""
        return self.projection.dimensions if self.projection else 0

    def check_context_length(self, length: int) -> None:
        """Refuses contexts that are too long.

        Raises:
            LimitExceeded: more tokens than `limits.max_context_tokens`.
        """
        if length > self.limits.max_context_tokens:
            raise LimitExceeded(
                "context too long",
                got=length,
                expected=f"<= {self.limits.max_context_tokens} tokens",
                remedy="raise max_context_tokens",
            )

    def check_append(self, length: int, num_tokens: int) -> None:
        """Refuses commits that are too large, or for which a session of `length` tokens has no room.

        Raises:
            LimitExceeded: more tokens than one commit or context may have, or no memory is left.
        """
        if num_tokens > self.limits.max_append_tokens:
            raise LimitExceeded(
                "too many tokens in one commit",
                got=num_tokens,
                expected=f"<= {self.limits.max_append_tokens}",
                remedy="commit them in parts, or open the session with them as its prompt",
            )
        self.check_context_length(length + num_tokens)
        self.ledger.check_growth(num_tokens)

    def check_feedback(self, feedback: Feedback) -> None:
        """Refuses feedback that no source can use.

        Raises:
            InvalidFeedback: it cannot be relied on, or has more ids a node than anybody wants.
        """
        feedback.check(self.vocab_size, self.state_dimensions, self.limits.max_topk)


def _most_of_one(total_nodes: int, num_sessions: int) -> int:
    return min(total_nodes, MAX_SHARE * -(-total_nodes // max(num_sessions, 1)))


def _shared(
    joints: Sequence[Joint], trees: Sequence[DraftTree], total_nodes: int, cost_curve: CostCurve | None
) -> list[DraftTree]:
    """Returns what of the trees goes to the target, and tells the sources."""
    shared = share_nodes(trees, total_nodes, cost_curve)
    for joint, tree, kept in zip(joints, trees, shared, strict=True):
        if len(kept) < len(tree):
            joint.keep(len(kept))
    return shared


def _joining(combine: Combination | type[Blend], source_names: tuple[str, ...]) -> Joining:
    return combine(source_names) if isinstance(combine, type) else Fuse(combine, source_names)
