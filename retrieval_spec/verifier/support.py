"""The door: models and requests that cannot be verified over trees are refused by name, before any work."""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache
from transformers.generation import GenerationMode

from retrieval_spec.errors import InvalidRequest, UnsupportedModel
from retrieval_spec.verifier.cache import capacity_tokens, check_cache, check_layers, window_tokens

ATTENTION = ("eager", "sdpa")
# What the host hands over and the loop carries on; anything else would be lost without a word.
_KNOWN_INPUTS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


def check_state(model: Any) -> None:
    """Refuses models whose state cannot be cut back to what was accepted.

    Raises:
        UnsupportedModel: an encoder, or recurrent state.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise UnsupportedModel("the target model has an encoder", got=name, expected="a causal model")
    if getattr(model, "_is_stateful", False):
        raise UnsupportedModel(
            "the target model keeps recurrent state, which cannot go back to an accepted path",
            got=name,
            remedy="generate with it without drafts",
        )


def check_model(model: Any) -> None:
    """Refuses models whose state cannot be cut back to an accepted path or whose mask cannot be a tree.

    Raises:
        UnsupportedModel: an encoder, recurrent state, or an attention code that takes no 4D mask.
    """
    check_state(model)
    attention = model.config.get_text_config(decoder=True)._attn_implementation
    if attention not in ATTENTION:
        raise UnsupportedModel(
            "the attention code takes no tree mask",
            got=attention,
            expected=" or ".join(ATTENTION),
            remedy='load the model with attn_implementation="sdpa"',
        )
    check_layers(_cache_layers(model))


def check_window(model: Any, cache: Any, max_length_tokens: int) -> None:
    """Refuses a generation so long that keys would be lost or hidden in a way that no tree mask tells.

    Raises:
        UnsupportedModel: prompt and output may grow longer than a chunk of chunked attention, or than a
            static cache's window.
    """
    config = model.config.get_text_config(decoder=True)
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        limit, what = window_tokens(_cache_layers(model)), "the model attends within chunks"
    else:
        capacity = capacity_tokens(cache)
        limit, what = None if capacity is None else capacity + 1, "the static cache forgets keys"
    if limit is not None and max_length_tokens > limit:
        raise UnsupportedModel(
            f"{what} that are shorter than the generation may become",
            got=f"{max_length_tokens} tokens",
            expected=f"<= {limit}",
            remedy="lower max_new_tokens, leave cache_implementation out, or generate without drafts",
        )


def check_rotation(model: Any, prompt_tokens: int, max_length_tokens: int) -> None:
    """Refuses a generation in which the model changes how it encodes positions ("longrope").

    Then a draft beyond the border would change the frequencies of tokens before it, and the host may
    compute the whole cache anew.

    Raises:
        UnsupportedModel: the prompt is before the border and the output may cross it.
    """
    config = model.config.get_text_config(decoder=True)
    rotation = getattr(config, "rope_parameters", None) or {}
    # Models with several kinds of layers hold one set of parameters for each kind.
    for parameters in (rotation, *(kind for kind in rotation.values() if isinstance(kind, dict))):
        if parameters.get("rope_type") != "longrope":
            continue
        border = parameters.get("original_max_position_embeddings") or config.max_position_embeddings
        if prompt_tokens <= border < max_length_tokens:
            raise UnsupportedModel(
                "the model changes its position encoding within this generation",
                got=f"{prompt_tokens} to {max_length_tokens} tokens",
                expected=f"up to {border}, or a prompt beyond",
                remedy="lower max_new_tokens, or generate without drafts",
            )


def _cache_layers(model: Any) -> list[Any]:
    layers: list[Any] = DynamicCache(config=model.config.get_text_config(decoder=True)).layers
    return layers


def check_request(input_ids: Any, generation_config: Any, model_inputs: dict[str, Any]) -> None:
    """Refuses what the loop does not do.

    Raises:
        InvalidRequest: another search than greedy or sampling, no cache, outputs that the loop does not
            collect, or inputs beside token ids.
        UnsupportedModel: a cache that cannot be cut back, or a model without plain position ids.
    """
    _check_mode(generation_config)
    check_cache(model_inputs.get("past_key_values"))
    for name in ("output_attentions", "output_hidden_states"):
        if model_inputs.get(name) or getattr(generation_config, name, None):
            raise InvalidRequest("not collected over draft trees", got=f"{name}=True", remedy="leave it out")
    unknown = sorted(
        name for name, value in model_inputs.items() if value is not None and name not in _KNOWN_INPUTS
    )
    if unknown:
        raise InvalidRequest("model inputs that the verifier does not carry", got=", ".join(unknown))
    _check_positions(input_ids, model_inputs)


def _check_mode(generation_config: Any) -> None:
    mode = generation_config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise InvalidRequest(
            "drafts are verified in greedy search and in sampling",
            got=mode.value,
            remedy="leave out num_beams, penalty_alpha, dola_layers and assisted generation",
        )
    if not generation_config.use_cache:
        raise InvalidRequest("drafts need the key-value cache", got="use_cache=False")


def _check_positions(input_ids: Any, model_inputs: dict[str, Any]) -> None:
    positions = model_inputs.get("position_ids")
    if positions is None or positions.dim() != 2:
        raise UnsupportedModel(
            "the model takes no plain position ids", expected="position_ids of shape [1, tokens]"
        )
    cached_tokens = model_inputs["past_key_values"].get_seq_length()
    if positions.shape[1] != input_ids.shape[1] or cached_tokens >= input_ids.shape[1]:
        raise InvalidRequest(
            "a cache was passed without the whole prompt",
            got=f"{input_ids.shape[1]} tokens, {cached_tokens} in the cache",
            remedy="pass all token ids, those in the cache included",
        )
