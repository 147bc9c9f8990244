"""Compares our drafts with those of other systems on the same text, and writes docs/benchmarks.md.

    python tools/bench_peers [--data DIR] [--repeats N] [--only NAME ...] [--out FILE] [--json FILE]

Every system is installed into an environment of its own under `.cache/bench/peers` by pip, from the index
that it is set up for, and keeps one process there, which does what this one asks, one at a time. Systems that
cannot be installed stand on the page with the reason. Without a folder of recordings (`--data` or
RETRIEVAL_SPEC_DATA, with `tok_qwen2/`, `corpora/` and `tokenizers/qwen2`) only text that every machine has is
replayed. The results stay in `.cache/bench/peers/results.json`; a run says how it differs from the one
before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from catalogue import BUDGETS, BUILT, FED, STATIC, SYSTEMS, System
from environments import KEPT, ROOT, NotInstalled, python_of
from figures import Comparison, RepeatsDiffer, Results, check_repeats
from page import page
from texts import library, recorded, write_set

WORKER = Path(__file__).resolve().parent / "worker.py"
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TOKENIZERS_PARALLELISM": "false",
}


class Failed(Exception):
    """Why a system could not do what it was asked."""


class Worker:
    """The process of one system; asks and answers are lines of JSON."""

    def __init__(self, environment: str) -> None:
        command = [python_of(environment), str(WORKER), environment]
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ONE_THREAD
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environ,
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def ask(self, **order: Any) -> dict[str, Any]:
        """Returns the answer to an order.

        Raises:
            Failed: the system could not do it.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in answer:
            raise Failed(answer["error"][:200])
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Bench:
    """The workers, and what could not be started.

    Attributes:
        missing: environment -> why it takes no part.
        versions: of all that runs.
    """

    def __init__(self, only: list[str] | None) -> None:
        self.missing: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}
        for environment in dict.fromkeys(system.environment for system in (*SYSTEMS, *STATIC)):
            if only is None or environment in ("ours", *only):
                self._start(environment)
            else:
                self.missing[environment] = "not asked for"

    def _start(self, environment: str) -> None:
        try:
            self._workers[environment] = Worker(environment)
            self.versions |= self._workers[environment].versions
        except (NotInstalled, Failed) as error:
            self._miss(environment, f"not installed: {error}")

    def _miss(self, environment: str, why: str) -> None:
        self.missing[environment] = why
        print(f"{environment}: {why}", file=sys.stderr, flush=True)

    def present(self, systems: tuple[System, ...]) -> list[System]:
        """Returns the systems that can be asked."""
        return [system for system in systems if system.environment in self._workers]

    def ask(self, system: System, **order: Any) -> dict[str, Any]:
        """Has a system do something in its lasting process.

        Raises:
            Failed: it could not; it takes no further part, but for our own, whose failure ends the run.
        """
        if system.environment in self.missing:
            raise Failed(self.missing[system.environment])
        try:
            return self._workers[system.environment].ask(options=system.options, **order)
        except Failed as error:
            if system.is_ours:
                raise SystemExit(f"bench_peers: {system.key}: {error}") from error
            self._workers.pop(system.environment).close()
            self._miss(system.environment, f"failed: {error}")
            raise

    def ask_fresh(self, system: System, **order: Any) -> dict[str, Any]:
        """Has a system do something in a process that has done nothing yet."""
        worker = Worker(system.environment)
        answer = worker.ask(options=system.options, **order)
        worker.close()
        return answer

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers.values():
            worker.close()


Table = dict[str, list[dict[str, Any]]]
Ask = Callable[[System], dict[str, Any]]


def in_turns(systems: list[System], repeats: int, ask: Ask) -> Table:
    """Returns every system's answers; they take turns, each repeat in another order."""
    found: Table = {system.key: [] for system in systems}
    for repeat in range(repeats):
        for turn in range(len(systems)):
            system = systems[(turn + repeat) % len(systems)]
            with suppress(Failed):
                found[system.key].append(ask(system))
    return {key: answers for key, answers in found.items() if len(answers) == repeats}


def replayed(
    bench: Bench, systems: tuple[System, ...], facts: dict[str, Any], kind: str, repeats: int
) -> Any:
    """Returns by budget what the systems accept and take."""
    found = {}
    for budget in BUDGETS:
        order = {
            "do": "replay",
            "traces": f"{facts['folder']}/{kind}.jsonl",
            "vocab_size": facts["vocab_size"],
            "max_nodes": budget,
        }

        def ask(system: System, order: dict[str, Any] = order, **more: Any) -> dict[str, Any]:
            return bench.ask(system, store=f"{facts['folder']}/{system.environment}", **order, **more)

        in_turns(bench.present(systems), 1, partial(ask, warm_up=True))
        found[str(budget)] = in_turns(bench.present(systems), repeats, ask)
        for system, answers in found[str(budget)].items():
            check_repeats(f"{system} @{budget}", answers)
    return found


def built(bench: Bench, facts: dict[str, Any], repeats: int) -> Table:
    """Builds what is looked up, as often as there are repeats; the last one stays."""

    def ask(system: System) -> dict[str, Any]:
        store = f"{facts['folder']}/{system.environment}"
        shutil.rmtree(store, ignore_errors=True)
        corpus = f"{facts['folder']}/corpus.u16"
        return bench.ask(system, do="build", corpus=corpus, store=store, vocab_size=facts["vocab_size"])

    return in_turns(bench.present(BUILT), repeats, ask)


def fed(bench: Bench, facts: dict[str, Any], repeats: int) -> Table:
    """Returns what it takes to keep outputs, each time in a fresh process."""
    order = {"do": "feed", "traces": f"{facts['folder']}/fed.jsonl", "vocab_size": facts["vocab_size"]}
    return in_turns(bench.present(FED), repeats, lambda system: bench.ask_fresh(system, **order))


def measured(bench: Bench, facts: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Returns all that one set of recordings says."""
    part: dict[str, Any] = {"facts": facts}
    for name, measure in (
        ("built", lambda: built(bench, facts, repeats)),
        ("fed", lambda: fed(bench, facts, repeats)),
        ("static", lambda: replayed(bench, STATIC, facts, "static", repeats)),
        ("replays", lambda: replayed(bench, SYSTEMS, facts, "traces", repeats)),
    ):
        began = time.perf_counter()
        part[name] = measure()
        print(
            f"{facts['name']}: {name} took {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True
        )
    return part


def machine() -> dict[str, str]:
    """Returns what this machine is, without its name."""
    try:
        told = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        told = None
    return {
        "cpu": told[1] if told else platform.machine(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def results_of(bench: Bench, sets: list[dict[str, Any]], repeats: int, command: str) -> Results:
    """Measures all sets."""
    began = time.perf_counter()
    parts = [measured(bench, facts, repeats) for facts in sets]
    for part in parts:
        part["facts"].pop("folder")
        part["missing"] = bench.missing
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "command": command,
        "repeats": repeats,
        "seconds": time.perf_counter() - began,
        "versions": bench.versions,
        "missing": bench.missing,
        "sets": parts,
    }


def compared(kept: Path, results: Results) -> Comparison | None:
    """Returns how the run before differs from this one, if it replayed the same text on such a machine."""
    if not kept.exists():
        return None
    before = json.loads(kept.read_text())

    def inputs(of: Results) -> Any:
        return [part["facts"] for part in of["sets"]], of["machine"], of["versions"]

    return Comparison.of(before, results) if inputs(before) == inputs(results) else None


def parsed() -> argparse.Namespace:
    """Returns the command line."""
    parser = argparse.ArgumentParser(
        prog="bench_peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=os.environ.get("RETRIEVAL_SPEC_DATA"), metavar="DIR")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", help="environments besides our own; default: all"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "benchmarks.md", metavar="FILE")
    parser.add_argument("--json", type=Path, default=KEPT / "results.json", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.data and not (Path(arguments.data) / "tok_qwen2").is_dir():
        parser.error("no tok_qwen2/ in the folder of recordings: name another one, or none")
    return arguments


def main() -> int:
    """Writes the page; exit code 1 where repeats, or this run and the one before, accept differently."""
    arguments = parsed()
    sets = [write_set("library", library())]
    if arguments.data:
        sets.append(write_set("recorded", recorded(Path(arguments.data))))
    else:
        print("bench_peers: no recordings; set RETRIEVAL_SPEC_DATA for them", file=sys.stderr)
    command = (
        "RETRIEVAL_SPEC_DATA=DIR " if arguments.data else ""
    ) + "make bench-peers  # the first part of make bench"
    bench = Bench(arguments.only)
    try:
        results = results_of(bench, sets, arguments.repeats, command)
    except RepeatsDiffer as error:
        print(f"bench_peers: {error}", file=sys.stderr)
        return 1
    finally:
        bench.close()
    comparison = compared(arguments.json, results)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results))
    arguments.out.write_text(page(results, comparison))
    return 1 if comparison and comparison.changed else 0


if __name__ == "__main__":
    sys.exit(main())
