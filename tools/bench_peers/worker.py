"""One drafting system's process: takes orders as lines of JSON, and answers each with one.

    ENVIRONMENT/bin/python tools/bench_peers/worker.py MODULE < orders > answers

MODULE is one of `sides`: it has `make(vocab_size, max_nodes, store, **options)`, which returns a side, and,
if it looks up a corpus, `build(corpus, store, vocab_size)`. Runs on one core, in one thread.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from replaying import Trace, feed, replay, resident_bytes

Answer = dict[str, Any]


def traces(path: str) -> list[Trace]:
    """Reads recordings."""
    with open(path) as lines:
        return [json.loads(line) for line in lines]


def do_replay(module: ModuleType, order: dict[str, Any]) -> Answer:
    """Replays recordings with a budget; some of them once before, unmeasured, so that all code is there."""
    make = partial(module.make, order["vocab_size"], order["max_nodes"], order["store"], **order["options"])
    recordings = traces(order["traces"])
    if order.get("warm_up"):
        replay(make, recordings[:2], order["max_nodes"])
        return {}
    return {**replay(make, recordings, order["max_nodes"])}


def do_feed(module: ModuleType, order: dict[str, Any]) -> Answer:
    """Feeds recordings to a system and watches the memory."""
    recordings = traces(order["traces"])
    make = partial(module.make, order["vocab_size"], 16, None, **order["options"])
    feed(make(), recordings[:2])
    side, before = make(), resident_bytes()
    seconds, after = feed(side, recordings), resident_bytes()
    tokens = sum(len(trace["output_ids"]) for trace in recordings)
    if "prompts" in module.KEEPS:
        tokens += sum(len(trace["prompt_ids"]) for trace in recordings)
    grown = None if before is None or after is None else after - before
    return {"tokens": tokens, "seconds": seconds, "bytes": grown}


def do_build(module: ModuleType, order: dict[str, Any]) -> Answer:
    """Builds what a system looks up, on disk."""
    began = perf_counter()
    module.build(order["corpus"], order["store"], order["vocab_size"])
    seconds = perf_counter() - began
    size = sum(path.stat().st_size for path in Path(order["store"]).rglob("*") if path.is_file())
    return {"tokens": os.path.getsize(order["corpus"]) // 2, "seconds": seconds, "bytes": size}


ORDERS = {"replay": do_replay, "feed": do_feed, "build": do_build}


def use_one_core() -> None:
    """Keeps this process on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def main() -> int:
    """Answers until there are no more orders; the first answer says whether the system can be imported."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a system prints is not an answer
    use_one_core()
    try:
        module = import_module(f"sides.{sys.argv[1]}")
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return 1
    print(json.dumps({"versions": module.versions()}), file=answers)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer = ORDERS[order["do"]](module, order)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
