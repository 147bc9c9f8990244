#!/usr/bin/env python
"""Times generation on a model of realistic size with random weights that is forced to write recorded outputs.

    OMP_WAIT_POLICY=PASSIVE python tools/bench_generate.py DATA --shape llama-0.1b
    python tools/bench_generate.py DATA --device cuda --shape llama-8b --dtype bfloat16 --batch 1 4 16 64

DATA holds `FAMILY.jsonl` of `{"prompt_ids", "output_ids"}`. Every pass is computed in full, the head over the
whole vocabulary included; then the recorded token wins at its place. So both the cost of a pass over a draft
tree and the share of drafts that is accepted are the true ones, whatever machine it is, without weights that
somebody trained. All ways go through the same model: the host's plain decoding, this project's loop without
drafts, the host's prompt lookup (one sequence at a time), and draft trees of the default preset without
datastores, from an engine in this process and from a sidecar. They take turns batch by batch, in an order
that rotates. Engines are new in every family and repetition, so that no output was ever seen before. An
output that differs from the recorded one ends the run.

Drafts follow the cost curve that is measured at the start; in batches it is learned on the way. Exit code 1
where draft trees are slower than plain decoding over everything.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch  # noqa: E402
from forced import report, texts, ways  # noqa: E402
from forced.measuring import Sample, measure  # noqa: E402
from forced.models import SHAPES, best_num_threads, num_parameters, random_model  # noqa: E402
from forced.target import ForcedTarget  # noqa: E402

from retrieval_spec.budget import CostCurve  # noqa: E402
from retrieval_spec.step_costs import BatchCostMeter  # noqa: E402
from retrieval_spec.verifier.costs import measure_step_costs  # noqa: E402

PLAIN, OWN, LOOKUP, TREES, REMOTE = "plain", "own loop without drafts", "lookup", "trees", "trees over gRPC"
ALL_WAYS = (PLAIN, OWN, LOOKUP, TREES, REMOTE)
CURVE_NODES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-0.1b")
    parser.add_argument("--vocab-size", type=int, default=151_936, help="of the traces' tokenizer")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="default: what plain decoding is fastest with")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="generations in a pass")
    parser.add_argument("--families", nargs="+", help="default: all of the folder")
    parser.add_argument("--traces", type=int, default=2, help="batches of a family")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="the last ones of each prompt")
    parser.add_argument("--new-tokens", type=int, default=96, help="the first ones of each output")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--first-repeat", type=int, default=0, help="where a run goes on from another's")
    parser.add_argument("--max-nodes", type=int, default=16, help="of a sequence in a step")
    parser.add_argument("--lookup-tokens", type=int, default=10, help="the host's prompt_lookup_num_tokens")
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic")
    parser.add_argument("--ways", nargs="+", choices=ALL_WAYS, default=list(ALL_WAYS))
    parser.add_argument("--json", type=Path, help="samples and settings are also written here")
    parser.add_argument("--read", type=Path, nargs="+", help="shows what earlier runs wrote, all together")
    return parser.parse_args(arguments)


def texts_of(arguments: argparse.Namespace, size: int) -> dict[str, list[texts.Batch]]:
    """Returns the batches of every family that has enough recordings for one."""
    cut = texts.Cut(arguments.prompt_tokens, arguments.new_tokens)
    families = arguments.families or sorted(path.stem for path in arguments.data.glob("*.jsonl"))
    found = {}
    for family in families:
        items = texts.read(arguments.data / f"{family}.jsonl", arguments.traces * size, cut)
        found[family] = list(texts.batches(items, size, arguments.vocab_size - 1))
    return {family: batches for family, batches in found.items() if batches}


def ways_of(
    arguments: argparse.Namespace, size: int, step_costs: Any, client: ways.DraftClient
) -> list[ways.Way]:
    """Returns what is compared for batches of a size."""
    options = {"cache_implementation": "static"} if arguments.cache == "static" else {}
    vocab_size, max_nodes = arguments.vocab_size, arguments.max_nodes
    known = [
        ways.Host(PLAIN, **options),
        ways.WithoutDrafts(OWN, vocab_size, **options),
        ways.Host(LOOKUP, prompt_lookup_num_tokens=arguments.lookup_tokens),
        ways.InProcess(TREES, vocab_size, max_nodes, step_costs(), **options),
        ways.Sidecar(REMOTE, client, max_nodes, step_costs(), **options),
    ]
    return [way for way in known if way.name in arguments.ways and (size == 1 or way.name != LOOKUP)]


def runs(arguments: argparse.Namespace, target: ForcedTarget) -> Iterator[tuple[int, list[Sample]]]:
    """Yields the samples of each size of batches."""
    counts = [count for count in CURVE_NODES if count <= arguments.max_nodes]
    curve = measure_step_costs(target.model, counts, arguments.prompt_tokens, rounds=8)
    print(f"a step, milliseconds: {described(curve)}", flush=True)
    with ExitStack() as exit:
        folder = exit.enter_context(tempfile.TemporaryDirectory())
        client = exit.enter_context(ways.sidecar(Path(folder), arguments.vocab_size))
        for size in arguments.batch:
            step_costs = (lambda: curve) if size == 1 else BatchCostMeter
            compared = ways_of(arguments, size, step_costs, client)
            repeats = range(arguments.first_repeat, arguments.first_repeat + arguments.repeats)
            yield size, measure(target, compared, texts_of(arguments, size), repeats)
        answers = client.counters
        print(f"sidecar: asked {answers.asked}, answered in time {answers.answered}, rested {answers.rested}")


def described(curve: CostCurve) -> str:
    """Returns nodes and costs as text."""
    return ", ".join(
        f"{nodes} nodes {cost:.1f}" for nodes, cost in zip(curve.node_counts, curve.costs, strict=True)
    )


def show(samples: list[Sample], size: int) -> bool:
    """Prints what was found for a size of batches; returns whether draft trees are no slower than plain."""
    names = list(dict.fromkeys(one.way for one in samples))
    plain = report.fastest(samples, [name for name in names if name in (PLAIN, OWN)])
    drafting = [name for name in names if name in (TREES, REMOTE)]
    lookup = LOOKUP if LOOKUP in names else None
    bases = [plain, *([lookup] if lookup else [])]
    print(f"\nbatch {size}; plain is: {plain}\n")
    print("\n".join(report.table(samples, plain, drafting, lookup)))
    print()
    print("\n".join(report.rates(samples)))
    print("\n".join(report.spread(samples, bases, [*([lookup] if lookup else []), *drafting])), flush=True)
    base, *ours = (
        report.figures(samples, way, {one.family for one in samples}) for way in (plain, *drafting)
    )
    return all(own.seconds <= base.seconds for own in ours)


def write(options: argparse.Namespace, done: dict[int, list[Sample]]) -> None:
    """Writes samples and settings."""
    settings = {name: str(value) for name, value in vars(options).items()}
    samples = {size: [asdict(one) for one in found] for size, found in done.items()}
    options.json.write_text(json.dumps({"settings": settings, "samples": samples}))


def read(paths: list[Path]) -> dict[int, list[Sample]]:
    """Returns the samples of runs that were written, by size of batches."""
    found: dict[int, list[Sample]] = {}
    for path in paths:
        for size, samples in json.loads(path.read_text())["samples"].items():
            found.setdefault(int(size), []).extend(Sample(**one) for one in samples)
    return found


def main(arguments: list[str] | None = None) -> int:
    """Prints the tables; returns 1 if draft trees are slower than plain decoding."""
    options = parsed(arguments)
    if options.read:
        return int(not all([show(samples, size) for size, samples in read(options.read).items()]))
    logging.getLogger("retrieval_spec").setLevel(logging.ERROR)
    max_tokens = max(options.prompt_tokens + options.new_tokens + 1, 1_024)
    shape = SHAPES[options.shape]
    model = random_model(shape, options.vocab_size, options.dtype, options.device, max_tokens)
    print(f"{options.shape}: {num_parameters(model) / 1e6:.0f} million weights, {options.dtype}")
    if options.threads:
        torch.set_num_threads(options.threads)
    elif options.device == "cpu":
        threads, by_threads = best_num_threads(model)
        torch.set_num_threads(threads)
        found = ", ".join(f"{count}: {cost:.1f}" for count, cost in by_threads.items())
        print(f"{threads} threads; a plain step by threads, milliseconds: {found}", flush=True)
    done: dict[int, list[Sample]] = {}
    is_faster = True
    for size, samples in runs(options, ForcedTarget(model)):
        done[size] = samples
        is_faster &= show(samples, size)
    if options.json:
        write(options, done)
    return int(not is_faster)


if __name__ == "__main__":
    sys.exit(main())
