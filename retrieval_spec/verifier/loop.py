"""The generation loop over draft trees, run by the host's own `generate` through `custom_generate`.

The host prepares every option as it does for itself: logits processors, stopping criteria, the cache.
The loop drafts, forwards, accepts, and cuts the cache back; one token at least comes out of each step.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.step_costs import BatchCostMeter, KnownCosts, StepCostMeter, planner_of
from retrieval_spec.verifier.acceptance import Outcome, accept
from retrieval_spec.verifier.cache import capacity_tokens
from retrieval_spec.verifier.drafts import GuardedSession, OneWarning, check_source, draft_together
from retrieval_spec.verifier.feedback import FeedbackCollector
from retrieval_spec.verifier.layout import Layout, lay_out
from retrieval_spec.verifier.mixed import MixedSampler
from retrieval_spec.verifier.results import result, wants_scores
from retrieval_spec.verifier.rows import Chooser, ContextBuffer, Row, check_stopping, processors_of_rows
from retrieval_spec.verifier.sampling import KeyedSampler, greedy, row_seed
from retrieval_spec.verifier.stopping import StopRule
from retrieval_spec.verifier.support import check_model, check_request, check_rotation, check_window
from retrieval_spec.verifier.target import Target

if TYPE_CHECKING:
    from retrieval_spec.budget import CostCurve
    from retrieval_spec.client import DraftSource
    from retrieval_spec.tree import DraftTree


class TreeVerifier:
    """Decodes over draft trees wherever the host takes a `custom_generate` callable.

        verifier = TreeVerifier(draft_source)
        model.generate(input_ids, custom_generate=verifier, max_new_tokens=100)

    The output equals the host's own greedy output token for token; a sampled one equals the sampled
    output of the same verifier with the same seed and any other draft source. The rows of a batch are
    verified in one pass, and each goes on from its own accepted path. Statistics of the last generation
    stand in the attributes; one generation at a time.

    Args:
        draft_source: where trees come from.
        max_nodes: drafted nodes of a row in one step at most.
        step_costs: what a step costs by its drafted nodes, or a meter to learn it with; then only nodes
            that pay are drafted.
        namespace: whose history the sessions read and join.
        seed: decides every sampled token, together with its position and its row.
        streamer: gets every decided token; the host keeps its own `streamer` argument to itself.
        emit_every: so many tokens go to the streamer at once, so that a piece does not show how many drafts a
            step accepted; the last piece holds what is left.

    Raises:
        InvalidRequest: `emit_every` is no number of tokens.

    Attributes:
        steps: forward passes after the prompt's, counted once for each row that was not finished.
        accepted_tokens: decided tokens that had been drafted.
        drafted_nodes: nodes that went through the target model, roots not counted.
    """

    def __init__(
        self,
        draft_source: DraftSource,
        *,
        max_nodes: int = 16,
        step_costs: CostCurve | StepCostMeter | BatchCostMeter | None = None,
        namespace: str = "default",
        seed: int = 0,
        streamer: Any = None,
        emit_every: int = 1,
    ) -> None:
        if emit_every < 1:
            raise InvalidRequest("emit_every is too small", got=emit_every, expected=">= 1")
        self.draft_source = draft_source
        self.max_nodes = max_nodes
        self.planner = step_costs if isinstance(step_costs, BatchCostMeter) else planner_of(step_costs)
        self.namespace = namespace
        self.seed = seed
        self.streamer = streamer
        self.emit_every = emit_every
        self.steps = self.accepted_tokens = self.drafted_nodes = 0
        self.warn = OneWarning()

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
            InvalidRequest: see `check_request` in `support`, `check_source` in `drafts`, and `rows`.
            ModelMismatch: the source drafts from hidden states of another model.
        """
        check_model(model)
        check_request(input_ids, generation_config, model_inputs)
        is_cache_seen = _is_cache_seen(generation_config, model_inputs["past_key_values"])
        self._check_batch(input_ids.shape[0], model_inputs["past_key_values"], is_cache_seen)
        vocab_size = model.config.get_text_config(decoder=True).vocab_size
        check_source(self.draft_source, vocab_size)
        stop_rule = StopRule(stopping_criteria)
        check_stopping(stopping_criteria, stop_rule, input_ids.shape[0])
        check_window(model, model_inputs["past_key_values"], stop_rule.max_length_tokens)
        check_rotation(model, input_ids.shape[1], stop_rule.max_length_tokens)
        processors = processors_of_rows(logits_processor, input_ids.shape[0])
        target = Target(model, model_inputs, is_cache_seen)
        self.steps = self.accepted_tokens = self.drafted_nodes = 0
        collector = FeedbackCollector.of_source(model, self.draft_source)
        rows = self._rows(input_ids, processors, generation_config, stop_rule, vocab_size)
        run = _Run(self, model, target, rows, stop_rule, collector)
        try:
            # What the caller goes on with must be open to changes in place.
            with torch.no_grad() if is_cache_seen else torch.inference_mode():
                run.to_the_end(input_ids, generation_config.prefill_chunk_size)
            for row in rows:
                row.session.finish()
        finally:
            for row in rows:
                row.session.close()
            collector.close()
            target.finish()
        return result(generation_config, rows, target.cache)

    def planner_for(self, num_rows: int) -> KnownCosts | StepCostMeter:
        """Returns what plans the steps of so many rows."""
        return self.planner.of(num_rows) if isinstance(self.planner, BatchCostMeter) else self.planner

    def _rows(
        self, input_ids: Any, processors: list[Any], config: Any, rule: StopRule, vocab_size: int
    ) -> list[Row]:
        self.warn = OneWarning()
        rows = []
        for index, own in enumerate(processors):
            context = ContextBuffer(input_ids[index : index + 1])
            seed = row_seed(self.seed, index)
            chooser = Chooser(
                context,
                own,
                KeyedSampler(seed) if config.do_sample else greedy,
                MixedSampler(seed) if config.do_sample else None,
                keep_scores=wants_scores(config),
            )
            prompt = input_ids[index].tolist()
            session = GuardedSession(self.draft_source, prompt, self.namespace, vocab_size, self.warn)
            rows.append(Row(index, context, chooser, session, rule))
        return rows

    def _check_batch(self, num_rows: int, cache: Any, is_cache_seen: bool) -> None:
        if num_rows == 1:
            return
        remedy = "generate one sequence at a time"
        if self.streamer is not None:
            raise InvalidRequest("a streamer takes one sequence", got=f"{num_rows} of them", remedy=remedy)
        if isinstance(self.planner, StepCostMeter):
            raise InvalidRequest(
                "the meter is for one sequence", got="StepCostMeter", expected="BatchCostMeter"
            )
        if is_cache_seen and capacity_tokens(cache) is not None:
            raise InvalidRequest(
                "a static cache of several sequences cannot be handed back",
                remedy="leave out past_key_values and return_dict_in_generate, or cache_implementation",
            )


class _Run:
    """One generation from prefill to stop."""

    def __init__(
        self,
        verifier: TreeVerifier,
        model: Any,
        target: Target,
        rows: list[Row],
        stop_rule: StopRule,
        collector: FeedbackCollector,
    ) -> None:
        self._verifier = verifier
        self._target = target
        self._rows = rows
        self._stop_rule = stop_rule
        self._collector = collector
        self._held: list[int] = []  # decided, and not streamed yet
        limits = (stop_rule.max_length_tokens, getattr(model.config, "max_position_embeddings", None))
        self._end_tokens = min(limit for limit in limits if limit is not None)

    def to_the_end(self, input_ids: Any, chunk_tokens: int | None) -> None:
        """Decides tokens until the host's criteria say stop."""
        logits = self._target.prefill(input_ids, chunk_tokens)
        roots = input_ids[:, -1].tolist()
        for row in self._rows:
            prompt = Layout([roots[row.index]], [-1], [0], [{}])
            self._stream(self._decide(row, prompt, logits[row.index, None], 1))
        while active := [row for row in self._rows if not row.is_stopped]:
            began_s = time.perf_counter()
            planner = self._verifier.planner_for(len(active))
            outcomes, num_nodes = self._step(active, planner)
            planner.observe(num_nodes, time.perf_counter() - began_s)
            for outcome in outcomes:
                self._stream(outcome)
        if self._verifier.streamer is not None:
            self._emit(len(self._held) or 1)
            self._verifier.streamer.end()

    def _step(self, active: list[Row], planner: KnownCosts | StepCostMeter) -> tuple[list[Outcome], int]:
        """Drafts, verifies and decides; returns what came out and how many nodes were verified."""
        layouts: list[Layout | None] = [None] * len(self._rows)
        paths: list[list[int] | None] = [None] * len(self._rows)
        trees = self._draft(active, planner)
        laid_out = []
        for row, tree in zip(active, trees, strict=True):
            row.chooser.proposals = row.session.proposals
            laid_out.append(lay_out(row.root, tree, self._room(row), self._stop_rule.end_ids))
            layouts[row.index] = laid_out[-1]
        logits = self._target.verify(layouts)
        num_nodes = int(logits.shape[1])
        outcomes = []
        for row, layout in zip(active, laid_out, strict=True):
            outcomes.append(self._decide(row, layout, logits[row.index, : len(layout)], num_nodes))
            paths[row.index] = outcomes[-1].path
        self._target.keep(paths, num_nodes, [row.index for row in active if row.is_stopped])
        return outcomes, self._count(laid_out, outcomes)

    def _draft(self, active: list[Row], planner: KnownCosts | StepCostMeter) -> list[DraftTree]:
        """Returns a tree for each row."""
        wanted = max(self._room(row) for row in active) > 0
        width = min(self._verifier.max_nodes, self._target.max_nodes) if wanted else 0
        plan = planner.plan(width * len(active))
        return draft_together(
            self._verifier.draft_source,
            [row.session for row in active],
            min(width, plan.max_nodes),
            *plan,
            self._verifier.warn,
        )

    def _room(self, row: Row) -> int:
        # The root stands at `length - 1`; the token after the deepest node must still be wanted.
        return self._end_tokens - row.context.length - 1

    def _count(self, layouts: list[Layout], outcomes: list[Outcome]) -> int:
        num_nodes = sum([len(layout) - 1 for layout in layouts])
        self._verifier.steps += len(outcomes)
        self._verifier.drafted_nodes += num_nodes
        self._verifier.accepted_tokens += sum([outcome.num_accepted for outcome in outcomes])
        return num_nodes

    def _decide(self, row: Row, layout: Layout, logits: Any, num_nodes: int) -> Outcome:
        outcome = accept(layout, row.chooser.at(logits), row.stops)
        row.root = outcome.token_ids[-1]
        feedback = self._collector.of(layout, logits, outcome.path[-1], row.index, num_nodes)
        row.session.commit(outcome.token_ids, feedback)
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


def _is_cache_seen(generation_config: Any, cache: Any) -> bool:
    return bool(generation_config.return_dict_in_generate or getattr(cache, "_is_user_defined", False))
