"""Checks a host on a machine with a GPU: greedy outputs with and without drafts, and what was accepted.

    python tools/gpu_checks.py vllm --model MODEL --server unix:/run/retrieval-spec/drafts.sock
    python tools/gpu_checks.py sglang --model MODEL --server ...
    python tools/gpu_checks.py tensorrt-llm --model MODEL --server ... --vocab-size 152064

Each run has a process of its own, since no host gives all of a GPU's memory back. In 16-bit precision a batch
of another shape may round otherwise, and then a greedy choice between two nearly equal tokens may differ with
any drafts, the host's own included: `--dtype float32` tells such differences from errors.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

PROMPTS = [
    "Write a Python class for a bank account with deposit, withdraw and transfer, then write its unit tests.",
    "Repeat the following list three times, word by word: alpha, beta, gamma, delta, epsilon, zeta, eta.",
    "Explain step by step how to solve 3x + 7 = 22, then solve 5x + 7 = 32 and 9x + 7 = 52 in the same way.",
    "Translate into JSON with the fields name, age and city: Ann is 31 and lives in Rome; Bob, 42, in Oslo.",
]


def run_vllm(arguments: argparse.Namespace, with_drafts: bool) -> dict[str, Any]:
    """Generates with vLLM, without drafts under the same restrictions that drafts from a CPU bring."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    from vllm import LLM, SamplingParams

    options: dict[str, Any] = {"async_scheduling": False, "disable_log_stats": False}
    if with_drafts:
        options["additional_config"] = {"retrieval_spec": {"server": arguments.server}}
        options["speculative_config"] = {
            "method": "custom_class",
            "model": "retrieval_spec.integrations.vllm.RetrievalProposer",
            "num_speculative_tokens": arguments.num_tokens,
        }
    host = LLM(arguments.model, dtype=arguments.dtype, **options)
    params = SamplingParams(temperature=0.0, max_tokens=arguments.max_new_tokens)
    return timed(
        lambda: [list(one.outputs[0].token_ids) for one in host.generate(PROMPTS, params)],
        lambda: {
            one.name: one.value
            for one in host.get_metrics()
            if "spec_decode" in one.name and hasattr(one, "value")
        },
    )


def run_sglang(arguments: argparse.Namespace, with_drafts: bool) -> dict[str, Any]:
    """Generates with SGLang."""
    os.environ["RETRIEVAL_SPEC_SERVER"] = arguments.server
    import sglang

    options: dict[str, Any] = {}
    if with_drafts:
        options["speculative_algorithm"] = "RETRIEVAL_SPEC"
        options["speculative_num_draft_tokens"] = arguments.num_tokens + 1
        options["page_size"] = 1
    host = sglang.Engine(model_path=arguments.model, dtype=arguments.dtype, **options)
    params = {"temperature": 0.0, "max_new_tokens": arguments.max_new_tokens}
    answers: list[Any] = []

    def generate() -> list[list[int]]:
        answers[:] = host.generate(PROMPTS, params)
        return [list(one["output_ids"]) for one in answers]

    return timed(
        generate,
        lambda: {
            name: [one["meta_info"][name] for one in answers]
            for name in ("completion_tokens", "spec_verify_ct")
            if name in answers[0]["meta_info"]
        },
    )


def run_tensorrt_llm(arguments: argparse.Namespace, with_drafts: bool) -> dict[str, Any]:
    """Generates with TensorRT-LLM's PyTorch backend."""
    from tensorrt_llm import LLM, SamplingParams
    from tensorrt_llm.llmapi import UserProvidedDecodingConfig

    options: dict[str, Any] = {}
    if with_drafts:
        from retrieval_spec.integrations.tensorrt_llm import RetrievalDrafter

        drafter = RetrievalDrafter(arguments.num_tokens, arguments.vocab_size, server=arguments.server)
        config = UserProvidedDecodingConfig(max_draft_len=arguments.num_tokens, drafter=drafter)
        options["speculative_config"] = config
    host = LLM(arguments.model, dtype=arguments.dtype, **options)
    params = SamplingParams(temperature=0.0, max_tokens=arguments.max_new_tokens)
    answers: list[Any] = []

    def generate() -> list[list[int]]:
        answers[:] = host.generate(PROMPTS, params)
        return [list(one.outputs[0].token_ids) for one in answers]

    return timed(generate, lambda: {"steps": [getattr(one, "decoding_iter", None) for one in answers]})


RUNS = {"vllm": run_vllm, "sglang": run_sglang, "tensorrt-llm": run_tensorrt_llm}


def timed(generate: Callable[[], list[list[int]]], facts: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Generates twice, as the first run pays for what is only done once, and times the second."""
    generate()
    began_s = time.perf_counter()
    outputs = generate()
    return {"outputs": outputs, "seconds": time.perf_counter() - began_s, "facts": facts()}


def run_apart(arguments: argparse.Namespace, mode: str) -> dict[str, Any]:
    """Runs one of the two in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--mode", mode]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    num_tokens = sum(map(len, result["outputs"]))
    print(f"{mode}: {num_tokens} tokens, {num_tokens / result['seconds']:.1f} a second, {result['facts']}")
    return result


def report(plain: dict[str, Any], drafted: dict[str, Any]) -> int:
    """Says where outputs differ; the number of those that do."""
    differing = 0
    for index, (one, other) in enumerate(zip(plain["outputs"], drafted["outputs"], strict=True)):
        if one != other:
            differing += 1
            pairs = enumerate(zip(one, other, strict=False))
            place = next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))
            print(f"prompt {index}: differs from token {place} on")
    print(f"{len(PROMPTS) - differing} of {len(PROMPTS)} outputs are equal")
    print(f"speed: {plain['seconds'] / drafted['seconds']:.2f} times that without drafts")
    return differing


def main() -> int:
    """Runs both and compares them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("host", choices=sorted(RUNS))
    parser.add_argument("--model", required=True)
    parser.add_argument("--server", required=True, help="address of `retrieval-spec serve`")
    parser.add_argument("--num-tokens", type=int, default=8, help="drafted in a step")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument(
        "--vocab-size", type=int, default=0, help="the model's; TensorRT-LLM does not tell it"
    )
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--mode", choices=["plain", "drafted"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(RUNS[arguments.host](arguments, arguments.mode == "drafted")))
        return 0
    return int(report(run_apart(arguments, "plain"), run_apart(arguments, "drafted")) > 0)


if __name__ == "__main__":
    sys.exit(main())
