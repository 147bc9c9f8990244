"""Hugging Face transformers: `custom_generate` over draft trees, and a candidate generator for its own loop.

    model.generate(**inputs, custom_generate=generate, draft_source=client, max_new_tokens=256)

What `generate` of the host keeps to itself (`streamer`, `assistant_model`) is given under names of our own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from retrieval_spec.errors import InvalidRequest, MissingDependency
from retrieval_spec.integrations.tokenizers import check_datastores

if TYPE_CHECKING:
    from retrieval_spec.budget import CostCurve
    from retrieval_spec.client import DraftSource
    from retrieval_spec.step_costs import BatchCostMeter, StepCostMeter
    from retrieval_spec.verifier.statistics import Statistics

__all__ = ["attach", "check_host", "generate"]

# What this file and the verifier use of the host, by the names under which it is found.
_USED = (
    ("generation", "GenerationMixin._extract_generation_mode_kwargs", "own arguments of custom_generate"),
    ("generation", "GenerationMixin._get_candidate_generator", "candidate generators"),
    ("generation", "GenerationMode", "generation modes"),
    ("generation", "EosTokenCriteria", "stopping criteria by kind"),
    ("cache_utils", "DynamicLayer", "caches of layers"),
    ("cache_utils", "DynamicSlidingWindowLayer", "caches of layers with a window"),
    ("masking_utils", "create_causal_mask", "attention masks of four dimensions"),
)
# Arguments of the host's generate that never reach a custom_generate function: name -> what to do.
_KEPT_BY_HOST = {
    "streamer": "pass it as draft_streamer=",
    "assistant_model": "pass it as draft_model=",
    "synced_gpus": "leave it out: one process verifies alone",
}


def generate(
    model: Any,
    input_ids: Any,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: Any,
    *,
    draft_source: DraftSource | None = None,
    draft_model: Any = None,
    draft_streamer: Any = None,
    draft_tokenizer: Any = None,
    max_nodes: int = 16,
    step_costs: CostCurve | StepCostMeter | BatchCostMeter | None = None,
    namespace: str = "default",
    seed: int = 0,
    emit_every: int = 1,
    statistics: Statistics | None = None,
    **model_inputs: Any,
) -> Any:
    """Decodes over draft trees; give it to the host's `generate` as `custom_generate`.

    Greedy output is equal to the host's own token for token; a sampled one follows the same distribution
    and, for one `seed`, is the same whatever the drafts are. A server that cannot be reached, or fails
    later, leaves the generation plain, with one warning.

    Args:
        model: given by the host, like the four that follow and `model_inputs`.
        input_ids: the prompts, padded on the left.
        logits_processor: the host's and the user's.
        stopping_criteria: the host's and the user's.
        generation_config: every other option.
        draft_source: where trees come from: `LocalClient`, `DraftClient`, `FusedSource`.
        draft_model: an assistant model with the target's tokenizer; its tree is fused with the retrieved one.
        draft_streamer: gets the prompt and every decided token, as the host's `streamer` would.
        draft_tokenizer: the model's tokenizer, to compare with the datastores' where the model was not
            loaded from a folder that has it.
        max_nodes: drafted nodes a sequence in one step at most.
        step_costs: what a step costs by its drafted nodes, or a meter to learn it with: then only nodes that
            pay are drafted.
        namespace: whose history the sessions read and join.
        seed: decides every sampled token, together with its position and the row of the batch.
        emit_every: so many tokens go to the streamer at once.
        statistics: is filled with what the drafts did.
        **model_inputs: attention mask, positions, cache.

    Raises:
        MissingDependency: the host is too old.
        InvalidRequest: no source, or an option that drafts cannot be combined with.
        UnsupportedModel: a model or a cache that cannot go back to an accepted path.
        TokenizerMismatch: a datastore was built with another tokenizer.
    """
    check_host()
    _check_kept_arguments()
    from retrieval_spec.verifier.loop import TreeVerifier

    source = _source(draft_source, draft_model)
    check_datastores(source, draft_tokenizer, model)
    verifier = TreeVerifier(
        source,
        max_nodes=max_nodes,
        step_costs=step_costs,
        namespace=namespace,
        seed=seed,
        streamer=draft_streamer,
        emit_every=emit_every,
    )
    if draft_streamer is not None:
        draft_streamer.put(input_ids.cpu())
    try:
        return verifier(
            model, input_ids, logits_processor, stopping_criteria, generation_config, **model_inputs
        )
    finally:
        if statistics is not None:
            statistics.steps += verifier.steps
            statistics.accepted_tokens += verifier.accepted_tokens
            statistics.drafted_nodes += verifier.drafted_nodes


@contextmanager
def attach(
    model: Any,
    draft_source: DraftSource,
    *,
    max_nodes: int = 16,
    namespace: str = "default",
    draft_tokenizer: Any = None,
) -> Iterator[Any]:
    """Within the block, the host's own assisted decoding drafts from `draft_source`.

    For code that cannot hand over a `custom_generate`: the host verifies one path of each tree, the one of
    which most tokens are expected to be accepted, one sequence at a time. What it would have drafted with,
    an `assistant_model` of the call included, is not asked.

        with attach(model, client):
            model.generate(**inputs, max_new_tokens=256)

    Args:
        model: the target; `generate` of this very object drafts.
        draft_source: where trees come from.
        max_nodes: nodes of a tree, of which one path is verified.
        namespace: whose history the sessions read and join.
        draft_tokenizer: as in `generate`.

    Yields:
        The model.

    Raises:
        MissingDependency: the host is too old.
        UnsupportedModel: a model whose cache cannot go back.
        InvalidRequest: a source for another vocabulary.
        TokenizerMismatch: a datastore was built with another tokenizer.
    """
    check_host()
    from retrieval_spec.verifier.candidates import RetrievalCandidateGenerator, check_assisted

    check_assisted(model, draft_source)
    check_datastores(draft_source, draft_tokenizer, model)
    opened: list[RetrievalCandidateGenerator] = []

    def candidate_generator(generation_config: Any, input_ids: Any, **_: Any) -> Any:
        while opened:
            opened.pop().close()
        vocab_size = model.config.get_text_config(decoder=True).vocab_size
        limit_tokens = generation_config.max_length
        opened.append(
            RetrievalCandidateGenerator(
                draft_source, vocab_size, limit_tokens, max_nodes=max_nodes, namespace=namespace
            )
        )
        return opened[-1]

    asked = model.generation_config.prompt_lookup_num_tokens
    model._get_candidate_generator = candidate_generator
    # What makes the host decode with assistance at all; nothing is looked up in the prompt.
    model.generation_config.prompt_lookup_num_tokens = asked or 1
    try:
        yield model
    finally:
        del model._get_candidate_generator
        model.generation_config.prompt_lookup_num_tokens = asked
        while opened:
            opened.pop().close()


def check_host() -> None:
    """Refuses a host that lacks what is used of it, whatever version it calls itself.

    Raises:
        MissingDependency: transformers is not installed, or too old.
    """
    try:
        installed = version("transformers")
    except PackageNotFoundError as error:
        raise MissingDependency(
            "transformers is not installed", remedy="pip install 'retrieval-spec[torch]'"
        ) from error
    for module, name, what in _USED:
        found: Any = import_module(f"transformers.{module}")
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise MissingDependency(
                f"the installed transformers has no {what}",
                got=f"version {installed} without {module}.{name}",
                expected="version 5 or newer",
                remedy="pip install -U transformers",
            )


def _check_kept_arguments() -> None:
    """Refuses arguments that the host would drop without a word: it hands them to its own loops alone."""
    frame = sys._getframe(2)  # whoever called `generate` of this module
    given = frame.f_locals
    if frame.f_code.co_name != "generate" or "custom_generate" not in given:
        return
    for name, remedy in _KEPT_BY_HOST.items():
        if given.get(name) not in (None, False):
            raise InvalidRequest(
                "the host keeps an argument from custom_generate functions", got=name, remedy=remedy
            )


def _source(draft_source: DraftSource | None, draft_model: Any) -> DraftSource:
    """Returns the source, fused with the draft model if there is one."""
    if draft_source is None:
        raise InvalidRequest(
            "nothing to draft with", expected="draft_source=", remedy="pass a LocalClient or a DraftClient"
        )
    if draft_model is None:
        return draft_source
    from retrieval_spec.verifier.draft_model import HuggingFaceDraftModel
    from retrieval_spec.verifier.fused_source import FusedSource

    if hasattr(draft_model, "generate"):
        draft_model = HuggingFaceDraftModel(draft_model)
    return FusedSource([draft_source], draft_model)
