"""Names of the drafting sources. A new source is one file beside this one and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from retrieval_spec.errors import InvalidRequest

# Strings, so that no source is imported before somebody asks for it.
DRAFTERS = {
    "history": "retrieval_spec.drafters.history:HistoryDrafter",
    "group": "retrieval_spec.drafters.group:GroupDrafter",
    "prompts": "retrieval_spec.drafters.prompts:PromptsDrafter",
    "ngram_trie": "retrieval_spec.drafters.ngram_trie:NGramTrieDrafter",
    "suffix_context": "retrieval_spec.drafters.suffix:ContextSuffixDrafter",
    "suffix_outputs": "retrieval_spec.drafters.suffix:OutputsSuffixDrafter",
    "session": "retrieval_spec.drafters.session:SessionDrafter",
    "corpus": "retrieval_spec.drafters.corpus:CorpusDrafter",
    "dense": "retrieval_spec.drafters.dense:DenseDrafter",
    "frequent": "retrieval_spec.drafters.frequent:FrequentDrafter",
    "model": "retrieval_spec.drafters.model:ModelDrafter",
    "text_model": "retrieval_spec.drafters.text_model:TextModelDrafter",
    "phrases": "retrieval_spec.drafters.phrases:PhrasesDrafter",
    "ngram": "retrieval_spec.drafters.ngram:NGramDrafter",
    "recycling": "retrieval_spec.drafters.recycling:RecyclingDrafter",
    "trigram": "retrieval_spec.drafters.trigram:TrigramDrafter",
    "ngram_cache": "retrieval_spec.drafters.ngram_cache:NGramCacheDrafter",
}


def drafter_class(name: str) -> Any:
    """Returns the class registered under `name`; its `open(vocab_size=..., **params)` makes a drafter.

    Raises:
        InvalidRequest: no source has that name.
    """
    if name not in DRAFTERS:
        raise InvalidRequest("unknown drafter", got=name, expected=" or ".join(sorted(DRAFTERS)))
    module, _, attribute = DRAFTERS[name].partition(":")
    return getattr(import_module(module), attribute)
