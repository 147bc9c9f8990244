"""`generate`: the host's own `generate` with drafts, for people who want one call and the statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.generation import StoppingCriteriaList, StopStringCriteria

from retrieval_spec.errors import InvalidRequest
from retrieval_spec.tree import TOKEN, Tokens
from retrieval_spec.verifier.loop import TreeVerifier
from retrieval_spec.verifier.support import check_model

if TYPE_CHECKING:
    from retrieval_spec.budget import CostCurve
    from retrieval_spec.client import DraftSource
    from retrieval_spec.step_costs import StepCostMeter


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """One finished generation.

    Attributes:
        token_ids: int32[n]  prompt and output, as the host's `generate` returns them.
        prompt_length: tokens of the prompt.
        steps: forward passes after the prompt's.
        accepted_tokens: output tokens that had been drafted. Drafts beyond a stop are not among them.
        drafted_nodes: nodes that went through the target model, roots not counted.
    """

    token_ids: Tokens
    prompt_length: int
    steps: int
    accepted_tokens: int
    drafted_nodes: int

    @property
    def output_ids(self) -> Tokens:
        """The generated tokens alone: int32[n]."""
        return self.token_ids[self.prompt_length :]

    @property
    def mean_acceptance_length(self) -> float:
        """1 + accepted drafts per step; plain decoding has 1.0."""
        return 1.0 + self.accepted_tokens / max(self.steps, 1)


def generate(
    model: Any,
    input_ids: Sequence[int] | NDArray[Any] | Any,
    draft_source: DraftSource,
    *,
    max_nodes: int = 16,
    step_costs: CostCurve | StepCostMeter | None = None,
    namespace: str = "default",
    seed: int = 0,
    emit_every: int = 1,
    **generation_options: Any,
) -> Generation:
    """Returns what `model.generate(input_ids, **generation_options)` returns, computed over draft trees.

    Greedy output is equal token for token. Sampled output follows the same distribution; for one `seed`
    it is the same whatever the drafts are.

    Args:
        model: a causal model of the host with sdpa or eager attention.
        input_ids: one prompt: a sequence, an array or a tensor, of shape [n] or [1, n].
        draft_source: where trees come from: `LocalClient`, `DraftClient` or `NoDrafts`.
        max_nodes: drafted nodes in one step at most.
        step_costs: what a step costs by its drafted nodes: then a step drafts only nodes that pay, and
            none where none does. A `StepCostMeter` learns it from the steps' times; keep it for the next
            generation. None drafts `max_nodes` wherever there are as many.
        namespace: whose history the session reads and joins.
        seed: decides every sampled token, together with its position.
        emit_every: so many tokens go to `streamer` at once: see `TreeVerifier`.
        **generation_options: whatever the host's `generate` takes, `tokenizer=` for stop strings and
            `streamer=` included.

    Raises:
        UnsupportedModel: the model cannot be verified over trees.
        InvalidRequest: an option that drafts cannot be combined with, or step costs that are none.
    """
    check_model(model)
    for name in ("assistant_model", "custom_generate", "negative_prompt_ids"):
        if generation_options.get(name) is not None:
            raise InvalidRequest("an option that drafts cannot be combined with", got=name)
    prompt = _as_prompt(input_ids, model)
    _check_one_sequence(model, prompt, generation_options)
    streamer = generation_options.get("streamer")
    verifier = TreeVerifier(
        draft_source,
        max_nodes=max_nodes,
        step_costs=step_costs,
        namespace=namespace,
        seed=seed,
        streamer=streamer,
        emit_every=emit_every,
    )
    options = _with_stop_strings(model, generation_options)
    output = model.generate(prompt, custom_generate=verifier, **options)
    sequence = output if isinstance(output, torch.Tensor) else output.sequences
    return Generation(
        sequence[0].cpu().numpy().astype(TOKEN),
        int(prompt.shape[1]),
        verifier.steps,
        verifier.accepted_tokens,
        verifier.drafted_nodes,
    )


def _check_one_sequence(model: Any, prompt: Any, options: dict[str, Any]) -> None:
    configs = (options.get("generation_config"), model.generation_config)
    outputs = [options.get("num_return_sequences")]
    outputs += [getattr(config, "num_return_sequences", None) for config in configs]
    num_sequences = prompt.shape[0] * next((number for number in outputs if number), 1)
    if num_sequences != 1:
        raise InvalidRequest(
            "the statistics are of one sequence at a time",
            got=f"{num_sequences} sequences",
            remedy="give integrations.transformers.generate to model.generate as custom_generate",
        )


def _as_prompt(input_ids: Any, model: Any) -> Any:
    if not isinstance(input_ids, torch.Tensor):
        input_ids = torch.from_numpy(np.asarray(input_ids, np.int64))
    prompt = input_ids.to(device=model.device, dtype=torch.long)
    return prompt[None] if prompt.dim() == 1 else prompt


def _with_stop_strings(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Turns stop strings into a criterion here: the host drops `tokenizer` before it would need it."""
    options = dict(options)
    tokenizer = options.pop("tokenizer", None)
    stop_strings = options.get("stop_strings")
    for config in (options.get("generation_config"), model.generation_config):
        stop_strings = stop_strings or getattr(config, "stop_strings", None)
    if not stop_strings:
        return options
    if tokenizer is None:
        raise InvalidRequest("stop strings need the tokenizer", remedy="pass tokenizer=")
    options["stop_strings"] = None
    criterion = StopStringCriteria(tokenizer=tokenizer, stop_strings=stop_strings)
    options["stopping_criteria"] = StoppingCriteriaList(
        [*(options.get("stopping_criteria") or []), criterion]
    )
    return options
