"""The generation loop over draft trees, run by the host's own `generate` through `custom_generate`.

The host prepares every option as it does for itself: logits processors, stopping criteria, the cache.
The loop drafts, forwards, accepts, and cuts the cache back; one token at least comes out of each step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers.generation import GenerateDecoderOnlyOutput

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.step_costs import StepCostMeter, planner_of
from retrieval_spec.verifier.acceptance import Outcome, accept
from retrieval_spec.verifier.cache import window_tokens
from retrieval_spec.verifier.drafts import GuardedSession, check_source
from retrieval_spec.verifier.feedback import FeedbackCollector
from retrieval_spec.verifier.layout import Layout, lay_out
from retrieval_spec.verifier.mixed import MixedSampler
from retrieval_spec.verifier.sampling import KeyedSampler, greedy, highest
from retrieval_spec.verifier.stopping import StopRule
from retrieval_spec.verifier.support import (
    check_model,
    check_request,
    check_rotation,
    check_window,
)
from retrieval_spec.verifier.target import Target

if TYPE_CHECKING:
    from retrieval_spec.budget import CostCurve
    from retrieval_spec.client import DraftSource
    from retrieval_spec.model_tree import Proposals


class TreeVerifier:
    """Decodes over draft trees wherever the host takes a `custom_generate` callable.

        verifier = TreeVerifier(draft_source)
        model.generate(input_ids, custom_generate=verifier, max_new_tokens=100)

    The output equals the host's own greedy output token for token; a sampled one equals the sampled
    output of the same verifier with the same seed and any other draft source. Statistics of the last
    generation stand in the attributes; one generation at a time.

    Args:
        draft_source: where trees come from.
        max_nodes: drafted nodes in one step at most.
        step_costs: what a step costs by its drafted nodes, or a meter to learn it with; then only nodes
            that pay are drafted.
        namespace: whose history the session reads and joins.
        seed: decides every sampled token, together with its position.
        streamer: gets every decided token; the host keeps its own `streamer` argument to itself.
        emit_every: so many tokens go to the streamer at once, so that a piece does not show how many drafts a
            step accepted; the last piece holds what is left.

    Raises:
        InvalidRequest: `emit_every` is no number of tokens.

    Attributes:
        steps: forward passes after the prompt's.
        accepted_tokens: decided tokens that had been drafted.
        drafted_nodes: nodes that went through the target model, roots not counted.
    """

    def __init__(
        self,
        draft_source: DraftSource,
        *,
        max_nodes: int = 16,
        step_costs: CostCurve | StepCostMeter | None = None,
        namespace: str = "default",
        seed: int = 0,
        streamer: Any = None,
        emit_every: int = 1,
    ) -> None:
        if emit_every < 1:
            raise InvalidRequest("emit_every is too small", got=emit_every, expected=">= 1")
        self.draft_source = draft_source
        self.max_nodes = max_nodes
        self.planner = planner_of(step_costs)
        self.namespace = namespace
        self.seed = seed
        self.streamer = streamer
        self.emit_every = emit_every
        self.steps = self.accepted_tokens = self.drafted_nodes = 0

    def __call__(
        self,
        model: Any,
        input_ids: Any,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_inputs: Any,
    ) -> Any:
        """Generates; the host calls this with what it prepared, and returns what this returns.

        Raises:
            UnsupportedModel: see `check_model`, `check_window` and `check_rotation` in `support`.
            InvalidRequest: see `support.check_request` and `drafts.check_source`.
            ModelMismatch: the source drafts from hidden states of another model.
        """
        check_model(model)
        check_request(input_ids, generation_config, model_inputs)
        vocab_size = model.config.get_text_config(decoder=True).vocab_size
        check_source(self.draft_source, vocab_size)
        stop_rule = StopRule(stopping_criteria)
        check_window(model, stop_rule.max_length_tokens)
        check_rotation(model, input_ids.shape[1], stop_rule.max_length_tokens)
        target = Target(model, model_inputs)
        self.steps = self.accepted_tokens = self.drafted_nodes = 0
        context = ContextBuffer(input_ids)
        chooser = Chooser(
            context,
            logits_processor,
            KeyedSampler(self.seed) if generation_config.do_sample else greedy,
            MixedSampler(self.seed) if generation_config.do_sample else None,
            keep_scores=_wants_scores(generation_config),
        )
        collector = FeedbackCollector.of_source(model, self.draft_source)
        session = GuardedSession(self.draft_source, input_ids[0].tolist(), self.namespace, vocab_size)
        run = _Run(self, model, target, session, chooser, stop_rule, context, collector)
        try:
            with torch.inference_mode():
                run.to_the_end(input_ids, generation_config.prefill_chunk_size)
            session.finish()
        finally:
            session.close()
            collector.close()
        return _result(generation_config, context, chooser, target)


class ContextBuffer:
    """All tokens decided so far, as the processors and criteria of the host read them.

    Args:
        prompt_ids: int64[1, n]  the prompt.
    """

    def __init__(self, prompt_ids: Any) -> None:
        self.length = int(prompt_ids.shape[1])
        self._buffer = torch.empty((1, 2 * self.length + 64), dtype=torch.long, device=prompt_ids.device)
        self._buffer[:, : self.length] = prompt_ids

    def append(self, token_id: int) -> None:
        """Adds one decided token."""
        if self.length == self._buffer.shape[1]:
            self._buffer = torch.cat([self._buffer, torch.empty_like(self._buffer)], dim=1)
        self._buffer[0, self.length] = token_id
        self.length += 1

    def ids(self) -> Any:
        """Returns int64[1, length], a view whose content never changes."""
        return self._buffer[:, : self.length]


class Chooser:
    """The target's own choice at a node: the host's processors, then greedy or the keyed draw.

    Processors see the prompt and the path's own tokens, once for each decided token and in order, as
    they do in the host's loop: also those that keep state are right.

    Attributes:
        proposals: the children that a draft model drew at random for the next step; a sampled token is
            tested against them first.
    """

    def __init__(
        self,
        context: ContextBuffer,
        processors: Any,
        pick: Callable[[Any, int], int],
        mixed: MixedSampler | None,
        *,
        keep_scores: bool,
    ) -> None:
        self._context = context
        self._processors = processors
        self._pick = pick
        self._mixed = mixed
        self._step_start = context.length
        self.proposals: Proposals = {}
        self._is_plain = pick is greedy and not processors and not keep_scores
        self.scores: tuple[Any, ...] | None = () if keep_scores else None
        self.logits: tuple[Any, ...] = ()

    def at(self, logits: Any) -> Callable[[int], int]:
        """Returns the choice by node, given logits[n, vocab_size] of all nodes."""
        if self._is_plain:
            return highest(logits.float()).__getitem__
        self._step_start = self._context.length
        return lambda node: self._choose(logits[node : node + 1])

    def _choose(self, logits: Any) -> int:
        # Processors work on float32 in the host's loop, whatever the model computes in.
        raw = logits.to(copy=True, dtype=torch.float32, device=self._context.ids().device)
        scores = self._processors(self._context.ids(), raw.clone() if self.scores is not None else raw)
        if self.scores is not None:
            self.scores += (scores,)
            self.logits += (raw,)
        if self._mixed is not None and self.proposals:
            path = tuple(self._context.ids()[0, self._step_start :].tolist())
            if path in self.proposals:
                return self._mixed(scores, self._context.length, self.proposals[path])
        return self._pick(scores, self._context.length)


class _Run:
    """One generation from prefill to stop."""

    def __init__(
        self,
        verifier: TreeVerifier,
        model: Any,
        target: Target,
        session: GuardedSession,
        chooser: Chooser,
        stop_rule: StopRule,
        context: ContextBuffer,
        collector: FeedbackCollector,
    ) -> None:
        self._verifier = verifier
        self._target = target
        self._session = session
        self._chooser = chooser
        self._stop_rule = stop_rule
        self._context = context
        self._collector = collector
        self._is_stopped = False
        self._held: list[int] = []  # decided, and not streamed yet
        limits = (stop_rule.max_length_tokens, getattr(model.config, "max_position_embeddings", None))
        self._end_tokens = min(limit for limit in limits if limit is not None)
        self._window_tokens = window_tokens(target.cache.layers) or 2**31 - 1

    def to_the_end(self, input_ids: Any, chunk_tokens: int | None) -> None:
        """Decides tokens until the host's criteria say stop."""
        prompt = Layout([int(input_ids[0, -1])], [-1], [0], [{}])
        outcome = self._decide(prompt, self._target.prefill(input_ids, chunk_tokens))
        self._stream(outcome)
        while not self._is_stopped:
            began_s = time.perf_counter()
            outcome, num_nodes = self._step(outcome.token_ids[-1])
            self._verifier.planner.observe(num_nodes, time.perf_counter() - began_s)
            self._stream(outcome)
        if self._verifier.streamer is not None:
            self._emit(len(self._held) or 1)
            self._verifier.streamer.end()

    def _step(self, root_id: int) -> tuple[Outcome, int]:
        """Drafts, verifies and decides; returns what came out and how many nodes were verified."""
        # The root stands at `length - 1`; the token after the deepest node must still be wanted.
        room = self._end_tokens - self._context.length - 1
        # A windowed layer drops its oldest keys when the pass itself overflows the window.
        width = min(self._verifier.max_nodes, self._window_tokens - self._context.length - 1)
        plan = self._verifier.planner.plan(width if room > 0 else 0)
        tree = self._session.draft(*plan)
        self._chooser.proposals = self._session.proposals
        layout = lay_out(root_id, tree, room, self._stop_rule.end_ids)
        outcome = self._decide(layout, self._target.verify(layout))
        self._target.keep(outcome.path, len(layout))
        self._verifier.steps += 1
        self._verifier.drafted_nodes += len(layout) - 1
        self._verifier.accepted_tokens += outcome.num_accepted
        return outcome, len(layout) - 1

    def _decide(self, layout: Layout, logits: Any) -> Outcome:
        outcome = accept(layout, self._chooser.at(logits), self._stops)
        self._session.commit(outcome.token_ids, self._collector.of(layout, logits, outcome.path[-1]))
        return outcome

    def _stream(self, outcome: Outcome) -> None:
        if self._verifier.streamer is not None:
            self._held += outcome.token_ids
            self._emit(self._verifier.emit_every)

    def _emit(self, num_tokens: int) -> None:
        """Hands on what was held back, so many tokens at a time and no fewer."""
        while len(self._held) >= num_tokens:
            self._verifier.streamer.put(torch.tensor(self._held[:num_tokens]))
            del self._held[:num_tokens]

    def _stops(self, token_id: int) -> bool:
        self._context.append(token_id)
        self._is_stopped = self._stop_rule.stops(token_id, self._context, self._chooser.scores)
        return self._is_stopped


def _wants_scores(generation_config: Any) -> bool:
    wanted = generation_config.output_scores or generation_config.output_logits
    return bool(generation_config.return_dict_in_generate and wanted)


def _result(generation_config: Any, context: ContextBuffer, chooser: Chooser, target: Target) -> Any:
    # A copy made here is an ordinary tensor, free of the buffer and of inference mode.
    sequences = context.ids().clone()
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateDecoderOnlyOutput(
        sequences=sequences,
        scores=chooser.scores if generation_config.output_scores else None,
        logits=chooser.logits if generation_config.output_logits else None,
        past_key_values=target.cache,
    )
