"""The one name that vLLM imports from here."""

from __future__ import annotations

from retrieval_spec.integrations.vllm import SuffixDecodingCache, SuffixDecodingDraft

__all__ = ["SuffixDecodingCache", "SuffixDecodingDraft"]
