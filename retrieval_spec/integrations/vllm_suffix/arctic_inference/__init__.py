"""Stands in for the package that vLLM's `method: suffix` looks for. See docs/vllm.md."""
