"""What the benchmarks share: figures beside their bars, percentiles, and stores and peaks to measure."""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval_spec.datastore.manifest import Facts, TokenizerFacts
from retrieval_spec.datastore.store import write_datastore
from retrieval_spec.structures.context_array import ContextArray, separator_of
from retrieval_spec.structures.context_arrays import ContextArrays, new_scratch


@dataclass
class Row:
    """One figure beside its bar."""

    what: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the bar is met; figures without a bar always do."""
        return self.bar is None or (self.value >= self.bar if self.at_least else self.value <= self.bar)

    def line(self) -> str:
        """The row as text."""
        sign = "" if self.bar is None else f"{'>=' if self.at_least else '<='} {self.bar:g}"
        return (
            f"{self.what:<66}{self.value:>12,.2f} {self.unit:<12}{sign:<12}{'' if self.holds else 'MISSED'}"
        )


def print_rows(rows: Sequence[Row]) -> None:
    """Prints a line for each row at once."""
    print("\n".join(row.line() for row in rows), flush=True)


def write_json(path: Path, rows: Sequence[Row]) -> None:
    """Writes the rows as JSON."""
    path.write_text(json.dumps([{**asdict(row), "holds": row.holds} for row in rows], indent=1))


def seconds_of(work: Callable[[], Any]) -> float:
    """Returns how long one call takes, without the garbage collector."""
    gc.disable()
    began = time.perf_counter()
    work()
    elapsed = time.perf_counter() - began
    gc.enable()
    return elapsed


def percentiles(samples_us: Sequence[float]) -> tuple[float, float]:
    """Returns p50 and p99."""
    return float(np.percentile(samples_us, 50)), float(np.percentile(samples_us, 99))


def peak_bytes() -> int:
    """Returns the largest resident size that this process had; getrusage would count the parent's too."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def contexts_of(held_out: Sequence[Any], max_contexts: int = 20_000) -> list[Any]:
    """Returns 32 tokens before every 37th place of the documents."""
    contexts = (document[end - 32 : end] for document in held_out for end in range(64, document.size, 37))
    return [np.ascontiguousarray(context) for context, _ in zip(contexts, range(max_contexts), strict=False)]


def draft_times_us(
    array: ContextArray | ContextArrays, contexts: Sequence[Any], max_nodes: int = 64
) -> list[float]:
    """Times drafts, one for each context."""
    scratch, samples = new_scratch(), []
    for context in contexts:
        began = time.perf_counter_ns()
        array.draft(context, max_nodes, 64, scratch)
        samples.append((time.perf_counter_ns() - began) / 1e3)
    return samples


def call_us(array: ContextArray) -> float:
    """Returns what the call from Python costs: a context that ends in an unknown token returns at once."""
    return percentiles(draft_times_us(array, [np.array([array.num_ids], np.int32)] * 4_000))[0]


def write_store(path: Path, array: ContextArray, tokenizer: TokenizerFacts, vocab_size: int, by: str) -> Path:
    """Writes the array as a datastore, every document of it listed."""
    separators = np.flatnonzero(array.tokens == separator_of(array.tokens.dtype))
    facts = Facts(
        name=path.name,
        vocab_size=vocab_size,
        depth_tokens=array.depth_tokens,
        tokenizer=tokenizer,
        created_by=by,
    )
    starts = np.concatenate([[0], separators[:-1] + 1]).astype(np.int64)
    write_datastore(path, facts, {**array.columns(), "documents": starts})
    return path


def start_server(store: Path, address: str, *flags: str) -> subprocess.Popen[str]:
    """Starts the sidecar and returns when it serves."""
    command = [sys.executable, "-m", "retrieval_spec.cli", "serve", "--listen", address]
    # As installed: with byte code of our own modules, too.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [*command, "--datastore", str(store), *flags], stdout=subprocess.PIPE, text=True, env=environ
    )
    assert process.stdout is not None
    if not process.stdout.readline():
        raise SystemExit("the server did not start")
    return process
