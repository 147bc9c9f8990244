"""Times `generate` of transformers plain, with prompt lookup and over draft trees, on the shipped model.

    OMP_WAIT_POLICY=PASSIVE python tools/bench_transformers.py --threads 2

Prompts are those of the demo: the beginnings of files that neither the model nor the datastore has seen. The
datastore holds the rest of the standard library. All ways run prompt by prompt in turn, in an order that
rotates; each figure is the median of the repeats, and every repeat has a new engine, so that no output of
its own prompt was ever learned. Every output is compared with the plain one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from retrieval_spec import Engine, LocalClient
from retrieval_spec.build import build_datastore
from retrieval_spec.commands.demo import DECODING, prompt_texts, standard_library
from retrieval_spec.commands.generate import load_model
from retrieval_spec.datastore.corpus import Corpus
from retrieval_spec.demo_model import demo_model_dir
from retrieval_spec.integrations.transformers import attach, generate
from retrieval_spec.step_costs import StepCostMeter
from retrieval_spec.verifier.statistics import Statistics

BARS = {"plain": 1.8, "prompt lookup": 1.3}
LOOKUP_TOKENS = 10


@dataclass
class Way:
    """One way to generate: seconds by prompt, one for each repeat."""

    run: Callable[[Any], Any]
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def time(self, number: int, inputs: Any) -> list[int]:
        """Runs one prompt and notes how long it took."""
        began = time.perf_counter()
        output = self.run(inputs)
        self.seconds.setdefault(number, []).append(time.perf_counter() - began)
        return output[0].tolist()

    @property
    def total(self) -> float:
        """The medians of all prompts together."""
        return sum(map(statistics.median, self.seconds.values()))

    def ratios(self, base: Way) -> list[float]:
        """How many times faster than `base`, repeat by repeat."""
        repeats = zip(*base.seconds.values(), strict=True), zip(*self.seconds.values(), strict=True)
        return [sum(theirs) / sum(ours) for theirs, ours in zip(*repeats, strict=True)]


def main() -> int:
    """Prints the table or one JSON object; returns 1 if a bar is missed or an output differs."""
    arguments = parse()
    import torch

    torch.set_num_threads(arguments.threads)
    model, tokenizer = load_model(demo_model_dir())
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "stdlib"
        build_datastore(Corpus(standard_library()), tokenizer=demo_model_dir(), out=store)
        inputs = [tokenizer(text, return_tensors="pt") for text in prompt_texts(arguments.prompts)]
        ways, counts, differing = measure(model, inputs, store, arguments)
    report = summary(ways, counts, differing, arguments)
    print(json.dumps(report) if arguments.json else table(report))
    missed = any(report["speedup"][name] < bar for name, bar in BARS.items())
    return int(missed or bool(differing))


def parse() -> argparse.Namespace:
    """Returns the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--max-nodes", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measured-budget", action="store_true", help="draft only nodes that pay")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure(
    model: Any, prompts: list[Any], store: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Way], Statistics, int]:
    """Returns the times of every way, what the drafts did, and how many outputs differed."""
    counts, differing = Statistics(), 0
    options = {**DECODING, "max_new_tokens": arguments.new_tokens}
    step_costs = StepCostMeter() if arguments.measured_budget else None
    clients: dict[str, LocalClient] = {}

    def over_trees(inputs: Any) -> Any:
        own = {"draft_source": clients["trees"], "max_nodes": arguments.max_nodes, "step_costs": step_costs}
        return model.generate(**inputs, custom_generate=generate, statistics=counts, **own, **options)

    def assisted(inputs: Any) -> Any:
        with attach(model, clients["paths"], max_nodes=arguments.max_nodes):
            return model.generate(**inputs, **options)

    ways = {
        "plain": Way(lambda inputs: model.generate(**inputs, **options)),
        "prompt lookup": Way(
            lambda inputs: model.generate(**inputs, prompt_lookup_num_tokens=LOOKUP_TOKENS, **options)
        ),
        "candidate generator": Way(assisted),
        "draft trees": Way(over_trees),
    }
    for repeat in range(-1, arguments.repeats):  # the first one warms up
        for name in ("trees", "paths"):
            clients[name] = LocalClient(Engine(model.config.vocab_size, datastores=[store]))
        for number, inputs in enumerate(prompts[:2] if repeat < 0 else prompts):
            order = list(ways.values())
            turn = (repeat + number) % len(order)
            outputs = [way.time(number, inputs) for way in order[turn:] + order[:turn]]
            differing += any(output != outputs[0] for output in outputs)
        if repeat < 0:
            counts.steps = counts.accepted_tokens = counts.drafted_nodes = 0
            for way in ways.values():
                way.seconds.clear()
    return ways, counts, differing


def summary(
    ways: dict[str, Way], counts: Statistics, differing: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Returns what was measured."""
    ours, tokens = ways["draft trees"], arguments.prompts * arguments.new_tokens
    return {
        "prompts": arguments.prompts,
        "threads": arguments.threads,
        "repeats": arguments.repeats,
        "differing_outputs": differing,
        "mean_acceptance_length": counts.mean_acceptance_length,
        "drafted_nodes_a_step": counts.drafted_nodes / max(counts.steps, 1),
        "tokens_per_s": {name: tokens / way.total for name, way in ways.items()},
        "speedup": {name: way.total / ours.total for name, way in ways.items() if way is not ours},
        "speedup_by_repeat": {name: sorted(ours.ratios(ways[name])) for name in BARS},
    }


def table(report: dict[str, Any]) -> str:
    """Returns the report for people."""
    lines = [f"{'way':<22}{'tokens/s':>10}{'draft trees are faster':>26}"]
    for name, speed in report["tokens_per_s"].items():
        ratio = f"{report['speedup'][name]:.2f}x" if name in report["speedup"] else ""
        bar = f" (bar {BARS[name]}x)" if name in BARS else ""
        lines.append(f"{name:<22}{speed:>10.1f}{ratio + bar:>26}")
    for name, ratios in report["speedup_by_repeat"].items():
        lines.append(f"against {name}, repeat by repeat: {', '.join(f'{ratio:.2f}' for ratio in ratios)}")
    lines.append(f"mean acceptance length {report['mean_acceptance_length']:.2f}")
    lines.append(f"outputs that differ from plain ones: {report['differing_outputs']}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
