"""Presets by name: ours here, those that reproduce published systems in `published`.

Each is a function that returns a `Preset`. The docstring of a published one names the source, what is
reproduced with which defaults, and what differs on purpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module

from retrieval_spec.drafters.blend import Blend
from retrieval_spec.drafters.combination import trust_last
from retrieval_spec.drafters.preset import Preset, Source
from retrieval_spec.drafters.registry import DRAFTERS
from retrieval_spec.errors import InvalidRequest


def default() -> Preset:
    """All that needs no model, as one calibrated tree: own context, what was written and asked, corpora."""
    kinds = ("session", "history", "prompts", "corpus", "dense")
    return Preset(tuple(Source(kind) for kind in kinds), Blend)


def session() -> Preset:
    """The own context alone."""
    return Preset((Source("session"),))


def corpus() -> Preset:
    """The datastores alone."""
    return Preset((Source("corpus"),))


def session_recycling() -> Preset:
    """The own context and what the target found likely before: for a verifier that reports its top-k."""
    return Preset((Source("session"), Source("recycling")), trust_last)


def with_groups(chosen: Preset, members: Mapping[str, str], min_tenants: int) -> Preset:
    """Returns a preset that also drafts what tenants of a group share on purpose (`drafters.group`).

    Raises:
        InvalidRequest: so few tenants that nothing is hidden, or a preset whose rule names its sources.
    """
    if min_tenants < 2:
        raise InvalidRequest("too few tenants to share what they wrote", got=min_tenants, expected=">= 2")
    if chosen.combine is not Blend:
        raise InvalidRequest("groups need a preset that blends its sources", expected="preset default")
    shared = Source("group", {"members": dict(members), "min_tenants": min_tenants})
    return replace(chosen, sources=(*chosen.sources, shared))


# Strings, so that no source is imported before somebody asks for it.
PRESETS = {
    "default": "presets:default",
    "session": "presets:session",
    "corpus": "presets:corpus",
    "session+recycling": "presets:session_recycling",
    "pld": "published.copying:pld",
    "sam": "published.copying:sam",
    "sam-recycling": "published.copying:sam_recycling",
    "rest": "published.corpora:rest",
    "dresd": "published.corpora:dresd",
    "anpd": "published.counts:anpd",
    "aded": "published.counts:aded",
    "llamacpp-cache": "published.counts:llamacpp_cache",
    "token-recycling": "published.verified:token_recycling",
    "lookahead-pool": "published.pools:lookahead_pool",
    "ouroboros-pool": "published.pools:ouroboros_pool",
    "hierarchy": "published.pools:hierarchy",
    "suffix": "published.outputs:suffix",
    "suffix-vllm": "published.outputs:suffix_vllm",
    "sglang-ngram": "published.outputs:sglang_ngram",
    "opt-tree": "published.models:opt_tree",
    "rasd": "published.models:rasd",
}


def preset(name: str) -> Preset:
    """Returns a preset by its name.

    Raises:
        InvalidRequest: no preset has that name.
    """
    if name not in PRESETS:
        raise InvalidRequest("unknown preset", got=name, expected=" or ".join(sorted(PRESETS)))
    module, _, function = PRESETS[name].partition(":")
    made: Preset = getattr(import_module(f"retrieval_spec.drafters.{module}"), function)()
    return made


def preset_or_sources(name: str) -> Preset:
    """Returns a preset by its name, or one that fuses sources: `history`, or `session+history`.

    Raises:
        InvalidRequest: there is no such preset.
    """
    if name in PRESETS or not ("+" in name or name in DRAFTERS):
        return preset(name)
    return Preset(tuple(Source(kind) for kind in name.split("+")))
